import torch
from torch import nn

from bench.training.lookahead import DECAY, Lookahead


def test_fast_weights_return_to_slow_ones_every_few_steps():
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    lookahead, slow = Lookahead(net, interval=2), 0.0
    for step in range(1, 5):
        with torch.no_grad():
            net.weight += 1.0
        before = float(net.weight.detach())
        lookahead.update(step, share=step / 4)
        if step % 2:
            assert float(net.weight.detach()) == before
        else:
            decay = DECAY**2 * (step / 4) ** 3
            slow = decay * slow + (1 - decay) * before
            assert abs(float(net.weight.detach()) - slow) < 1e-6
    with torch.no_grad():
        net.weight += 1.0
    lookahead.finish()
    assert abs(float(net.weight.detach()) - slow) < 1e-6


def test_statistics_are_averaged_and_counters_are_not():
    net = nn.BatchNorm1d(2)
    assert set(Lookahead(net, 1).slow) == {"weight", "bias", "running_mean", "running_var"}
