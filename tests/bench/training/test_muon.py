import copy

import pytest
import torch

from bench.config import Recipe
from bench.training.muon import ITERATIONS, Muon, orthogonalize
from bench.training.optim import create_optimizer


@pytest.mark.parametrize("shape", [(16, 16), (64, 576), (128, 27)])
def test_singular_values_come_close_to_one_and_directions_stay(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    update = orthogonalize(matrix)
    values = torch.linalg.svdvals(update)
    # A square random matrix has singular values near zero, which five iterations do not lift all the way.
    assert values.max() < 1.3
    assert values.min() > (0.6 if shape[0] != shape[1] else 0.05)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    between = torch.nn.functional.cosine_similarity(update.flatten(), (u @ vh).flatten(), dim=0)
    assert between > 0.95
    assert torch.allclose(orthogonalize(1000 * matrix), update, atol=1e-4)


@pytest.mark.parametrize("shape", [(16, 16), (64, 576), (128, 27)])
def test_it_is_the_iteration_as_published(shape):
    """Jordan 2024: X ← aX + (bA + cA²)X with A = XXᵀ, five times, in float64 and without our rearrangement."""
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    x = matrix.double() / matrix.double().norm()
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    assert torch.allclose(orthogonalize(matrix).double(), x, atol=1e-4)


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Flatten(),
                               torch.nn.Linear(8 * 36, 4)).to(memory_format=torch.channels_last)  # fmt: skip


def step(model, optimizer):
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)).contiguous(
        memory_format=torch.channels_last
    )
    optimizer.zero_grad()
    model(images).square().mean().backward()
    optimizer.step()


def test_filters_move_by_orthogonal_steps_and_all_else_as_under_sgd():
    ours, theirs = net(), net()
    recipe = Recipe(optimizer="muon", muon_lr=0.1, momentum=0.9)
    step(ours, create_optimizer(ours, recipe, 0.01, 0.0, head=["3"]))
    step(theirs, torch.optim.SGD(theirs.parameters(), 0.01, momentum=0.9, nesterov=True))
    moved = (ours[0].weight - net()[0].weight).detach().reshape(8, -1)
    assert torch.allclose(torch.linalg.svdvals(moved), torch.full((8,), 0.1), atol=0.035)
    for index in (1, 3):
        for a, b in zip(ours[index].parameters(), theirs[index].parameters(), strict=True):
            assert torch.allclose(a, b, atol=1e-7)


def test_the_head_is_no_filter_and_the_first_group_is_at_the_peak_rate():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 1))
    groups = create_optimizer(model, Recipe(optimizer="muon", muon_lr=0.3), 0.01, 0.1, head=["1"]).param_groups
    assert [(group["lr"], group["orthogonal"]) for group in groups] == [(0.01, False), (0.01, False), (0.3, True)]
    assert groups[2]["params"][0] is model[0].weight


def test_normalized_filters_keep_their_norm_and_the_direction_of_their_step():
    ours, free = net(), net()
    with torch.no_grad():
        for model in (ours, free):
            model[0].weight.mul_(8**0.5 / model[0].weight.norm())
    step(ours, create_optimizer(ours, Recipe(optimizer="muon", muon_lr=0.1, normalize_filters=True), 0.01, 0.0, ["3"]))
    step(free, create_optimizer(free, Recipe(optimizer="muon", muon_lr=0.1), 0.01, 0.0, ["3"]))
    assert ours[0].weight.norm().item() == pytest.approx(8**0.5)
    assert free[0].weight.norm().item() != pytest.approx(8**0.5, rel=1e-4)
    assert torch.allclose(ours[0].weight, free[0].weight * (8**0.5 / free[0].weight.norm()))
    assert torch.equal(ours[3].weight, free[3].weight)


def test_only_muon_normalizes():
    with pytest.raises(ValueError, match="normalize_filters is Muon's"):
        Recipe(normalize_filters=True)


def test_state_is_restored():
    first, second = net(), net()
    recipe = Recipe(optimizer="muon")
    optimizers = [create_optimizer(model, recipe, 0.01, 0.1) for model in (first, second)]
    step(first, optimizers[0])
    second.load_state_dict(first.state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for model, optimizer in zip((first, second), optimizers, strict=True):
        assert isinstance(optimizer, Muon)
        step(model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
