import math

import pytest
import torch
from torch import nn

import zoo
from bench.config import Budget, Recipe
from bench.data.augment import BatchStream, Normalization
from bench.data.sources import load_dataset
from bench.data.transforms import Augmentation
from bench.training.checkpoint import Checkpoints
from bench.training.evaluation import evaluate
from bench.training.loop import fit
from bench.training.optim import create_optimizer
from bench.training.step import train_step, warm_up
from zoo.pretrained import head_names

CPU = torch.device("cpu")


def streams(train_count=None, test_count=None):
    dataset = load_dataset("digits")
    train = torch.tensor(dataset.train.images[:train_count]), torch.tensor(dataset.train.labels[:train_count])
    test = torch.tensor(dataset.test.images[:test_count]), torch.tensor(dataset.test.labels[:test_count])
    normalization = Normalization.of(train[0])
    return (
        lambda **options: BatchStream(*train, 50, normalization, device=CPU, **options),
        BatchStream(*test, 100, normalization, device=CPU),
    )


@pytest.fixture(scope="module")
def digits():
    return streams()


@pytest.fixture(scope="module")
def few():
    """An epoch of five steps, for what holds however little is learned."""
    return streams(250, 100)


def train(digits, budget, model="lenet5", recipe=None, seed=0, **options):
    recipe = recipe or Recipe(optimizer="adamw", lr=2e-3)
    torch.manual_seed(seed)
    net = zoo.create_model(model)
    optimizer = create_optimizer(net, recipe, recipe.lr, 0.0)
    return net, fit(net, optimizer, digits[0](seed=seed), recipe, budget, **options)


def test_training_learns(digits):
    net, training = train(digits, Budget(epochs=3), evaluate_val=None)
    assert training.status == "completed"
    assert evaluate(net, digits[1], 10).top1 > 0.8
    losses = [row["train_loss"] for row in training.history]
    assert losses == sorted(losses, reverse=True)


def test_history_counts_steps_images_and_epochs(digits):
    reported = []
    _, training = train(digits, Budget(epochs=2), report=lambda row, share: reported.append(row))
    assert [row["epoch"] for row in training.history] == [0, 1]
    assert [row["step"] for row in training.history] == [30, 60]
    assert [row["images_seen"] for row in training.history] == [1500, 3000]
    assert (training.epoch, training.step, training.images_seen) == (2, 60, 3000)
    assert training.history[-1]["lr"] == pytest.approx(2e-3 * (1 + math.cos(math.pi * 59 / 60)) / 2)
    assert reported[-1] == training.history[-1]
    for row in training.history:
        assert row["images_per_s"] > 0


def test_same_seed_same_weights_and_another_seed_others(few):
    nets = [train(few, Budget(epochs=1), "simple_cnn", seed=seed)[0].state_dict() for seed in (3, 3, 4)]
    assert all(torch.equal(nets[0][key], nets[1][key]) for key in nets[0])
    assert not all(torch.equal(nets[0][key], nets[2][key]) for key in nets[0])


def test_evaluation_during_training_does_not_change_it(few):
    plain, _ = train(few, Budget(epochs=2), "simple_cnn")
    torch.manual_seed(0)
    net = zoo.create_model("simple_cnn")
    recipe = Recipe(optimizer="adamw", lr=2e-3)
    training = fit(
        net,
        create_optimizer(net, recipe, recipe.lr, 0.0),
        few[0](),
        recipe,
        Budget(epochs=2),
        evaluate_val=lambda net: evaluate(net, few[1], 10),
    )
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), net.state_dict().values(), strict=True))
    assert training.history[-1]["val_top1"] == evaluate(net, few[1], 10).top1


def test_seconds_are_the_trainings_own(digits):
    evaluations = []

    def evaluate_slowly(net):
        evaluations.append(None)
        return evaluate(net, digits[1], 10)

    torch.manual_seed(0)
    net, recipe = zoo.create_model("lenet5"), Recipe(optimizer="adamw", lr=1e-3)
    budget = Budget(seconds=0.5)
    training = fit(
        net, create_optimizer(net, recipe, 1e-3, 0.0), digits[0](), recipe, budget, evaluate_val=evaluate_slowly
    )
    assert training.status == "completed"
    assert training.seconds >= 0.5
    # No step begins after the time is over: what exceeds it is one step.
    last = training.history[-1]
    assert training.history[0]["seconds"] <= 0.5 or len(training.history) == 1
    assert last["seconds"] == training.seconds
    assert len(evaluations) == len(training.history)


class Spoils(nn.Module):
    """Puts out NaN from a certain call on."""

    def __init__(self, inner, after):
        super().__init__()
        self.inner, self.after, self.calls = inner, after, 0

    def forward(self, x):
        self.calls += 1
        return self.inner(x) * (math.nan if self.calls > self.after else 1.0)


def test_nan_stops_the_training_as_diverged(digits):
    torch.manual_seed(0)
    net, recipe = Spoils(zoo.create_model("lenet5"), after=8), Recipe(lr=0.01)
    training = fit(net, create_optimizer(net, recipe, 0.01, 0.0), digits[0](), recipe, Budget(epochs=5))
    assert training.status == "diverged"
    assert training.step == 8  # the warm-up was the first call, the eighth step is the first bad one
    assert not math.isfinite(training.history[-1]["train_loss"])


def test_absurd_learning_rate_diverges(digits):
    recipe = Recipe(lr=1e12, schedule="constant", momentum=0.9)
    _, training = train(digits, Budget(epochs=2), "lenet5", recipe)
    assert training.status == "diverged"


def test_warm_up_leaves_no_trace(digits):
    torch.manual_seed(0)
    net = zoo.create_model("simple_cnn").train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.get_rng_state()
    warm_up(net, next(digits[0]().epoch(0)), Recipe(), autocast=False)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_label_smoothing_is_the_mixture_with_the_uniform():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 5))
    images, targets = torch.randn(6, 1, 2, 2), torch.tensor([0, 1, 2, 3, 4, 0])
    log = net(images).log_softmax(1)
    expected = -0.9 * log.gather(1, targets[:, None]).mean() - 0.1 * log.mean()
    optimizer = create_optimizer(net, Recipe(), 0.1, 0.0)
    loss, _ = train_step(net, optimizer, images, targets, Recipe(label_smoothing=0.1), False)
    assert loss == pytest.approx(expected.item(), rel=1e-6)


def test_averaged_weights_are_the_exponential_mean_of_the_trajectory(digits):
    torch.manual_seed(0)
    net = zoo.create_model("lenet5")
    recipe = Recipe(optimizer="adamw", lr=2e-3, ema=0.9)
    trajectory = []

    class Watched(BatchStream):
        """Notes the weights before each step."""

        def epoch(self, epoch, start=0):
            for batch in super().epoch(epoch, start):
                trajectory.append(net.fc3.weight.detach().clone())
                yield batch
            trajectory.append(net.fc3.weight.detach().clone())

    dataset = load_dataset("digits")
    images, labels = torch.tensor(dataset.train.images[:250]), torch.tensor(dataset.train.labels[:250])
    stream = Watched(images, labels, 50, Normalization.of(images), device=CPU)
    fit(net, create_optimizer(net, recipe, 2e-3, 0.0), stream, recipe, Budget(epochs=1))
    after_each_step = trajectory[2:]  # the first is the warm-up's, the second is before the first step
    assert len(after_each_step) == 5
    expected = after_each_step[0]
    for weights in after_each_step[1:]:
        expected = 0.9 * expected + 0.1 * weights
    assert torch.allclose(net.fc3.weight, expected, atol=1e-7)
    assert not torch.allclose(net.fc3.weight, after_each_step[-1], atol=1e-5)


class MakesBuffers(nn.Module):
    """Makes two buffers in its first forward pass, one of which was None, and may give a third another shape."""

    def __init__(self, inner, reshapes):
        super().__init__()
        self.inner, self.reshapes = inner, reshapes
        self.register_buffer("size", torch.zeros(1))
        self.register_buffer("mask", None)

    def forward(self, x):
        if not hasattr(self, "grid"):
            self.register_buffer("grid", torch.ones(1, 1, *x.shape[2:]))
        if self.mask is None:
            self.mask = torch.ones_like(self.grid)
        if self.reshapes:
            self.size = torch.zeros(len(x))
        return self.inner(x * self.grid * self.mask)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_buffers_that_a_network_makes_in_its_forward_pass_change_nothing(digits, ema, tmp_path):
    recipe = Recipe(optimizer="adamw", lr=2e-3, ema=ema)
    trained = []
    # Averaging, torch's own, takes buffers that keep their shape.
    for wrap in (lambda net: net, lambda net: MakesBuffers(net, reshapes=ema is None)):
        torch.manual_seed(0)
        net = wrap(zoo.create_model("lenet5"))
        fit(
            net,
            create_optimizer(net, recipe, 2e-3, 0.0),
            digits[0](),
            recipe,
            Budget(epochs=2),
            evaluate_val=lambda net: evaluate(net, digits[1], 10),
            checkpoints=Checkpoints(tmp_path / str(len(trained))),
        )
        trained.append(net)
    plain, lazy = trained
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), lazy.inner.parameters(), strict=True))
    assert evaluate(plain, digits[1], 10) == evaluate(lazy, digits[1], 10)


def test_what_is_evaluated_is_what_is_kept(few):
    recipe = Recipe(optimizer="adamw", lr=2e-3, ema=0.95)
    net, training = train(
        few, Budget(epochs=2), "simple_cnn", recipe, evaluate_val=lambda net: evaluate(net, few[1], 10)
    )
    assert evaluate(net, few[1], 10).top1 == training.history[-1]["val_top1"]


def test_images_of_each_size_are_warmed_up_for_before_the_first_step_with_them(few):
    """As torch.compile compiles anew for them, which is no part of the training's seconds."""
    recipe, sizes = Recipe(small_size=8, small_epochs=2), []
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    net.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].shape[-1]))
    batches = few[0](augmentation=Augmentation(small_size=8, small_epochs=2))
    fit(net, create_optimizer(net, recipe, 0.01, 0.0), batches, recipe, Budget(epochs=3))
    assert sizes == [8] * (1 + 2 * 5) + [32] * (1 + 5)


def test_a_frozen_backbone_does_not_move_while_the_head_trains_alone_and_moves_after(few):
    moved = []
    torch.manual_seed(0)
    net = zoo.create_model("resnet20")
    start = {key: value.clone() for key, value in net.state_dict().items()}

    def look(net):
        changed = {key for key, value in net.state_dict().items() if not torch.equal(value, start[key])}
        moved.append(changed)
        return evaluate(net, few[1], 10)

    recipe = Recipe(lr=0.01, weight_decay=0.1, head_epochs=2, head_lr=0.1)
    training = fit(
        net,
        create_optimizer(net, recipe, 0.01, 0.1),
        few[0](),
        recipe,
        Budget(epochs=3),
        head=head_names(net),
        evaluate_val=look,
    )
    # Neither weights nor batch-norm statistics of the backbone, nor weight decay on them.
    assert moved[0] == moved[1] == {"fc.weight", "fc.bias"}
    assert moved[2] == set(start)
    assert [row["lr"] for row in training.history[:2]] == [0.1, 0.1]
    # The schedule begins when everything trains: the sixth of six steps, counted from the head's last one.
    last_share = (1 + math.cos(math.pi * 5 / 6)) / 2
    assert training.history[2]["lr"] == pytest.approx(0.01 * last_share)
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_frozen_batch_norms_keep_their_statistics_and_train_their_scales(few):
    torch.manual_seed(0)
    net = zoo.create_model("simple_cnn")
    start = {key: value.clone() for key, value in net.state_dict().items()}
    recipe = Recipe(optimizer="adamw", lr=2e-3, freeze_batch_norm=True)
    fit(
        net,
        create_optimizer(net, recipe, 2e-3, 0.0),
        few[0](),
        recipe,
        Budget(epochs=1),
        evaluate_val=lambda net: evaluate(net, few[1], 10),
    )
    kept = {key for key, value in net.state_dict().items() if torch.equal(value, start[key])}
    assert kept == {key for key in start if "running_" in key or "num_batches" in key}


def test_a_budget_in_macs_is_that_many_steps(digits):
    macs = 1000
    _, training = train(digits, Budget(macs=3 * macs * 50 * 37.5), macs=macs)
    assert training.status == "completed"
    assert training.step == 37
    assert [row["step"] for row in training.history] == [30, 37]


def test_the_target_is_noted_when_it_is_first_reached(digits):
    evaluate_val = {"evaluate_val": lambda net: evaluate(net, digits[1], 10)}
    _, training = train(digits, Budget(epochs=3), **evaluate_val)
    seen = [row["val_top1"] for row in training.history]
    target = sorted(seen)[1]
    first = next(row for row in training.history if row["val_top1"] >= target)
    _, training = train(digits, Budget(epochs=3), **evaluate_val, target_top1=target)
    assert training.target_step == first["step"]
    assert 0 < training.target_seconds <= training.seconds
    _, training = train(digits, Budget(epochs=1), **evaluate_val, target_top1=0.999)
    assert (training.target_step, training.target_seconds) == (None, None)


def test_clipping_bounds_the_norm_of_the_step():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 5))
    before = [parameter.detach().clone() for parameter in net.parameters()]
    recipe = Recipe(momentum=0.0, clip_grad_norm=0.01)
    optimizer = create_optimizer(net, recipe, 1.0, 0.0)
    train_step(net, optimizer, 100 * torch.randn(6, 1, 2, 2), torch.arange(6) % 5, recipe, False)
    change = torch.cat([(a - b).flatten() for a, b in zip(before, net.parameters(), strict=True)])
    assert change.norm().item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_cuda_trains_with_autocast_and_repeats_itself():
    dataset = load_dataset("digits")
    images, labels = torch.tensor(dataset.train.images), torch.tensor(dataset.train.labels)
    torch.backends.cudnn.deterministic = True
    hashes = []
    for _ in range(2):
        torch.manual_seed(0)
        device = torch.device("cuda")
        net = zoo.create_model("resnet18").to(device, memory_format=torch.channels_last)
        recipe = Recipe(lr=0.05)
        stream = BatchStream(
            images,
            labels,
            100,
            Normalization.of(images),
            device=device,
            channels_last=True,
            augmentation=Augmentation(flip=True),
        )
        training = fit(net, create_optimizer(net, recipe, 0.05, 0.0), stream, recipe, Budget(epochs=2), autocast=True)
        assert training.status == "completed"
        hashes.append([parameter.detach().clone() for parameter in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*hashes, strict=True))
