import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import zoo
from bench.config import Recipe
from bench.device import is_out_of_memory
from bench.training.optim import create_optimizer
from bench.training.progress import Training
from bench.training.step import create_timed_step, fitting_step, loss_of, train_step, warm_up

IMPOSSIBLE = 2**60
"""Elements; more than any machine can allocate, so that the allocator's own error is raised."""


class Hungry(nn.Module):
    """Asks for more memory than there is whenever it gets more images than ``at_most``."""

    def __init__(self, inner, at_most):
        super().__init__()
        self.inner, self.at_most, self.seen = inner, at_most, []

    def forward(self, x):
        self.seen.append(len(x))
        if len(x) > self.at_most:
            torch.empty(IMPOSSIBLE)
        return self.inner(x)


def linear_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5))


def batch(count=12):
    torch.manual_seed(1)
    return torch.randn(count, 3, 2, 2), torch.arange(count) % 5


def step_with(model, recipe, step):
    optimizer = create_optimizer(model, recipe, 0.1, 0.01)
    images, targets = batch()
    return step(model, optimizer, images, targets, recipe, False)


@pytest.mark.parametrize("micro_batch_size", [1, 5, 6, 12])
def test_micro_batches_step_as_the_whole_batch_does(micro_batch_size):
    recipe = Recipe(label_smoothing=0.1, clip_grad_norm=0.5)
    whole, parts = linear_net(), linear_net()
    loss, logits = step_with(whole, recipe, train_step)
    split_loss, split_logits = step_with(parts, recipe, lambda *step: train_step(*step, micro_batch_size))
    assert torch.allclose(split_loss, loss, rtol=1e-5)
    assert torch.allclose(split_logits, logits, atol=1e-6)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_effective_batch():
    whole, hungry = linear_net(), Hungry(linear_net(), at_most=3)
    training = Training(micro_batch_size=12)
    step_with(whole, Recipe(), train_step)
    step_with(hungry, Recipe(), lambda *step: fitting_step(*step, training))
    assert training.micro_batch_size == 3
    assert hungry.seen == [12, 6, 3, 3, 3, 3]
    for a, b in zip(whole.parameters(), hungry.inner.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_network_that_changes_its_input_gets_the_images_anew_when_memory_runs_out():
    class Doubles(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x.mul_(2.0))

    # The memory runs out after the change.
    whole, hungry = Doubles(linear_net()), Doubles(Hungry(linear_net(), at_most=3))
    training = Training(micro_batch_size=12)
    warm_up(hungry, batch(), Recipe(), False, training)
    assert training.changes_input
    training.micro_batch_size = 12
    step_with(whole, Recipe(), train_step)
    step_with(hungry, Recipe(), lambda *step: fitting_step(*step, training))
    assert training.micro_batch_size == 3
    for a, b in zip(whole.parameters(), hungry.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_warm_up_finds_what_fits_and_leaves_no_trace():
    model = Hungry(zoo.create_model("simple_cnn"), at_most=4)
    before = copy.deepcopy(model.state_dict())
    training = Training(micro_batch_size=16)
    warm_up(model, (torch.randn(16, 3, 32, 32), torch.zeros(16, dtype=torch.int64)), Recipe(), False, training)
    assert training.micro_batch_size == 4
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not training.changes_input


def test_warm_up_leaves_the_random_stream():
    images, targets = torch.randn(4, 3, 32, 32), torch.zeros(4, dtype=torch.int64)
    model, state = zoo.create_model("simple_cnn"), torch.get_rng_state()
    warm_up(model, (images, targets), Recipe(), autocast=False)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("frozen", [True, False])
def test_a_timed_step_moves_weights_hardly_and_statistics_as_training_does(frozen):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5))
    before = copy.deepcopy(model.state_dict())
    recipe = Recipe(optimizer="muon", freeze_batch_norm=frozen)
    step = create_timed_step(model, model, torch.randn(8, 3, 8, 8), autocast=False, recipe=recipe)
    for _ in range(20):
        step()
    moved = {name: (parameter - before[name]).abs().max() for name, parameter in model.named_parameters()}
    assert 0 < moved["0.weight"] <= max(moved.values()) < 1e-3
    assert torch.equal(model[1].running_mean, before["1.running_mean"]) == frozen


def test_one_image_that_does_not_fit_is_the_error_it_is():
    training = Training(micro_batch_size=12)
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator") as caught:
        step_with(Hungry(linear_net(), at_most=0), Recipe(), lambda *step: fitting_step(*step, training))
    assert is_out_of_memory(caught.value)
    assert training.micro_batch_size == 1


def test_no_other_error_is_taken_for_one_of_memory():
    training = Training(micro_batch_size=12)
    wrong = nn.Sequential(nn.Flatten(), nn.Linear(7, 5))
    with pytest.raises(RuntimeError, match="shapes") as caught:
        step_with(wrong, Recipe(), lambda *step: fitting_step(*step, training))
    assert not is_out_of_memory(caught.value)
    assert training.micro_batch_size == 12
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))


def test_shares_of_classes_are_learned_as_the_mixture_of_their_losses():
    model = linear_net()
    images, targets = batch()
    other = targets.flip(0)
    mixed = 0.3 * F.one_hot(targets, 5) + 0.7 * F.one_hot(other, 5)
    logits = model(images)
    expected = 0.3 * F.cross_entropy(logits, targets) + 0.7 * F.cross_entropy(logits, other)
    assert loss_of(logits, mixed, 0.0).item() == pytest.approx(expected.item(), rel=1e-5)


def test_dense_maps_are_learned_pixel_by_pixel_and_an_auxiliary_head_counts_half():
    torch.manual_seed(0)
    out, aux, targets = torch.randn(2, 5, 4, 4), torch.randn(2, 5, 4, 4), torch.randint(5, (2, 4, 4))
    flat = F.cross_entropy(out.permute(0, 2, 3, 1).reshape(-1, 5), targets.flatten())
    assert loss_of({"out": out}, targets, 0.0).item() == pytest.approx(flat.item(), rel=1e-5)
    both = loss_of({"out": out, "aux": aux}, targets, 0.0)
    assert both.item() == pytest.approx((flat + 0.5 * F.cross_entropy(aux, targets)).item(), rel=1e-5)
    assert loss_of({"out": out, "aux": None}, targets, 0.0).item() == pytest.approx(flat.item(), rel=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_cuda_out_of_memory_halves_the_micro_batch():
    torch.manual_seed(0)
    total = torch.cuda.get_device_properties(0).total_memory

    class Hoards(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(12, 5)

        def forward(self, x):
            torch.empty(len(x) * total // 8, dtype=torch.uint8, device=x.device)
            return self.fc(x.flatten(1))

    model, training = Hoards().cuda(), Training(micro_batch_size=12)
    images, targets = (tensor.cuda() for tensor in batch())
    loss, _ = fitting_step(
        model, create_optimizer(model, Recipe(), 0.1, 0.0), images, targets, Recipe(), False, training
    )
    assert torch.isfinite(loss)
    assert training.micro_batch_size in (3, 6)
