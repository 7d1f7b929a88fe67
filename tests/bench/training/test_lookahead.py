import torch
from torch import nn

import zoo
from bench.config import Budget, Recipe
from bench.data.augment import BatchStream, Normalization
from bench.data.sources import load_dataset
from bench.training.evaluation import evaluate
from bench.training.lookahead import DECAY, Lookahead
from bench.training.loop import fit
from bench.training.optim import create_optimizer


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


def test_val_is_looked_at_with_the_weights_that_are_tested():
    """Also where the last step is none at which fast weights return to the slow ones: 3 epochs of 5 steps, every 4."""
    digits = load_dataset("digits")
    images, labels = torch.tensor(digits.train.images[:80]), torch.tensor(digits.train.labels[:80])
    normalization = Normalization.of(images)
    batches = BatchStream(images, labels, 16, normalization, device=torch.device("cpu"))
    recipe = Recipe(optimizer="sgd", lr=0.05, lookahead=4)
    torch.manual_seed(0)
    model = zoo.create_model("lenet5", 10)
    seen = []

    def look(net):
        seen.append({name: value.clone() for name, value in net.state_dict().items()})
        return evaluate(net, batches, 10)

    fit(model, create_optimizer(model, recipe, 0.05, 0.0), batches, recipe, Budget(epochs=3), evaluate_val=look)
    assert len(seen) == 3
    assert all(torch.equal(seen[-1][name], value) for name, value in model.state_dict().items())
