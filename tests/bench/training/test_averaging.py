import copy

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bench.training.averaging import WeightAverage


def moved(model):
    """The network after another step of something like training."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
        model(torch.randn(4, 3, 5, 5))
    return model


def test_the_average_is_torchs_to_the_last_bit_counters_included():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    ours = WeightAverage(model, 0.9)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for step in range(20):
        ours.update(moved(model))
        theirs.update_parameters(model)
        if step == 7:  # a killed run goes on with what its checkpoint holds
            state, ours = copy.deepcopy(ours.state_dict()), WeightAverage(model, 0.9)
            ours.load_state_dict(state)
    averaged = ours.module.state_dict()
    assert int(averaged["1.num_batches_tracked"]) > 1
    for name, expected in theirs.module.state_dict().items():
        assert torch.equal(averaged[name], expected), name
    assert not torch.equal(averaged["0.weight"], model[0].weight)


def test_integers_that_do_not_change_are_not_rounded():
    """As the tables of indices of a transformer with shifted windows."""
    model = nn.Linear(2, 2)
    model.register_buffer("index", torch.arange(200))
    for decay in (0.9, 0.95, 0.999, 0.9999):
        average = WeightAverage(model, decay)
        for _ in range(5):
            average.update(model)
        assert torch.equal(average.module.index, model.index)
