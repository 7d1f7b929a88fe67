import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bench.config import Recipe
from bench.errors import ConfigError
from bench.training.optim import create_optimizer, lr_factor, peak_lr, rate_factors, weight_decay


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def test_cosine_values():
    recipe = Recipe(schedule="cosine", warmup=0.2)
    expected = {0.0: 0.0, 0.1: 0.5, 0.2: 1.0, 0.6: 0.5, 1.0: 0.0}
    for progress, factor in expected.items():
        assert lr_factor(recipe, progress) == pytest.approx(factor, abs=1e-12)
    assert lr_factor(Recipe(schedule="cosine"), 0.25) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_triangle_rises_and_falls_to_nothing():
    recipe = Recipe(schedule="linear", warmup=0.2)
    expected = {0.0: 0.0, 0.1: 0.5, 0.2: 1.0, 0.6: 0.5, 1.0: 0.0}
    assert {progress: lr_factor(recipe, progress) for progress in expected} == pytest.approx(expected, abs=1e-12)


def test_steps_come_at_their_shares_of_the_budget():
    recipe = Recipe(schedule="step", warmup=0.1, steps=(0.5, 0.75), step_factor=0.1)
    progress = (0.05, 0.1, 0.49, 0.5, 0.74, 0.75, 1.0)
    expected = (0.5, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01)
    assert [lr_factor(recipe, each) for each in progress] == pytest.approx(expected)


def test_one_cycle_is_torchs_own():
    steps, warmup = 100, 0.3
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=steps + 1, pct_start=31 / 101, anneal_strategy="linear", cycle_momentum=False
    )
    recipe = Recipe(schedule="one_cycle", warmup=warmup)
    for step in range(steps + 1):
        assert lr_factor(recipe, step / steps) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9), step
        optimizer.step()
        if step < steps:
            theirs.step()


@given(st.sampled_from(["cosine", "linear", "one_cycle", "step", "constant"]), st.floats(0, 0.9), st.floats(0, 1))
def test_factor_stays_between_nothing_and_the_peak(schedule, warmup, progress):
    assert 0 <= lr_factor(Recipe(schedule=schedule, warmup=warmup), progress) <= 1


def test_recipe_goes_before_the_architecture_and_is_scaled_with_the_batch():
    assert peak_lr(Recipe(lr=0.3), 0.05, 512) == 0.3
    assert peak_lr(Recipe(), 0.05, 512) == pytest.approx(0.2)
    assert peak_lr(Recipe(), None, 128) == pytest.approx(0.1)
    assert weight_decay(Recipe(weight_decay=0.0), 4e-5) == 0.0
    assert weight_decay(Recipe(), 4e-5) == 4e-5
    assert weight_decay(Recipe(), None) == 5e-4


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_no_other_optimizer_takes_the_rate_that_is_given_for_sgd(optimizer):
    with pytest.raises(ConfigError, match=f"'classic' leaves lr open under '{optimizer}'.*--set recipe.lr=1e-3"):
        peak_lr(Recipe(name="classic", optimizer=optimizer), 0.1, 128)
    assert peak_lr(Recipe(optimizer=optimizer, lr=1e-3), 0.1, 128) == 1e-3


@pytest.mark.parametrize("faster", [1.0, 64.0])
@pytest.mark.parametrize("spared", [True, False])
def test_decay_shrinks_weights_and_spares_norms_and_biases(spared, faster):
    """A higher rate for the biases of batch norms is none for their decay."""
    net = small_net()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1.0)
    recipe = Recipe(momentum=0.0, decay_norm_and_bias=not spared, norm_bias_lr_factor=faster)
    optimizer = create_optimizer(net, recipe, lr=0.1, decay=0.5)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter in net.parameters():
        kept = spared and parameter.ndim <= 1
        assert torch.allclose(parameter, torch.full_like(parameter, 1.0 if kept else 0.95))


@pytest.mark.parametrize(
    ("recipe", "reference"),
    [
        (
            Recipe(optimizer="sgd", nesterov=True),
            lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True, weight_decay=0.01),
        ),
        (Recipe(optimizer="sgd", nesterov=False), lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.01)),
        (Recipe(optimizer="adam"), lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.01)),
        (Recipe(optimizer="adamw"), lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.01)),
    ],
)
def test_optimizer_steps_like_torchs_own(recipe, reference):
    recipe = recipe.model_copy(update={"decay_norm_and_bias": True})
    # In double precision: the bias before the batch norm has no gradient but its rounding error, which in single
    # precision Adam would take for one and make a step of.
    ours, theirs = small_net().double(), small_net().double()
    optimizers = create_optimizer(ours, recipe, 0.1, 0.01), reference(theirs.parameters())
    for step in range(3):
        for net, optimizer in zip((ours, theirs), optimizers, strict=True):
            torch.manual_seed(step)
            optimizer.zero_grad()
            net(torch.randn(4, 1, 4, 4, dtype=torch.float64)).square().sum().backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-8)


def test_frozen_parameters_are_left_out():
    net = small_net()
    net[0].requires_grad_(False)
    groups = create_optimizer(net, Recipe(), 0.1, 0.1).param_groups
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in net.parameters() if p.requires_grad}


def test_rates_fall_geometrically_from_the_last_layer_to_the_first_and_the_head_has_its_own():
    net = nn.Sequential(*(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)) for _ in range(3)), nn.Linear(2, 3))
    factors = rate_factors(net, Recipe(stem_lr_factor=0.01, head_lr_factor=10.0), head=["3"])
    for layer, factor in (("0", 0.01), ("1", 0.1), ("2", 1.0), ("3", 10.0)):
        assert [f for name, f in factors.items() if name.startswith(layer)] == pytest.approx(
            [factor] * len(list(net[int(layer)].parameters()))
        )
    assert factors["0.1.bias"] == factors["0.0.weight"]  # a norm goes with its convolution
    assert set(rate_factors(net, Recipe(), head=["3"]).values()) == {1.0}


def test_each_layer_steps_at_its_rate_and_the_first_group_is_at_the_peak():
    net = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1))
    recipe = Recipe(momentum=0.0, nesterov=False, stem_lr_factor=0.25, head_lr_factor=4.0)
    optimizer = create_optimizer(net, recipe, 0.1, 0.0, head=["2"])
    before = [parameter.detach().clone() for parameter in net.parameters()]
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = [float((old - new).squeeze().detach()) for old, new in zip(before, net.parameters(), strict=True)]
    assert moved == pytest.approx([0.025, 0.025, 0.1, 0.1, 0.4, 0.4], rel=1e-4)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert len(create_optimizer(net, Recipe(), 0.1, 0.0, head=["2"]).param_groups) == 2
