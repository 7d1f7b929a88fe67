"""Training with real gradients and without values, on the meta device: each optimizer, each feature of a recipe."""

import dataclasses

import pytest
import torch
from fake_cuda import DOWNLOAD, META, READ, UPLOAD, meta_device
from torch import nn

from bench.config import Budget, Recipe
from bench.data.augment import BatchStream, Normalization
from bench.data.mosaic import MosaicStream
from bench.data.sources import MosaicLayout
from bench.data.transforms import Augmentation
from bench.training import averaging, muon
from bench.training.initialisation import initialise
from bench.training.loop import fit
from bench.training.optim import create_optimizer

STEPS, EPOCHS = 10, 2
AN_EPOCH = {
    (READ, "bench/training/progress.py:Meter.is_finite"): "whether training has diverged",
    (READ, "bench/training/progress.py:Meter.row"): "the epoch's loss and accuracy",
    (UPLOAD, "bench/data/augment.py:BatchStream.epoch"): "where each crop begins, and the order of the labels",
    (UPLOAD, "bench/data/augment.py:BatchStream._holes"): "the centres of cutout's squares",
    (UPLOAD, "bench/data/mosaic.py:MosaicStream._draw.<locals>.<genexpr>"): "all draws of the epoch's canvases",
}
A_BATCH = {(UPLOAD, "bench/data/transforms.py:jitter"): "how each image is shifted and scaled"}
RECIPES = {
    "sgd": Recipe(lr=0.1, clip_grad_norm=1.0),
    "adam": Recipe(lr=1e-3, optimizer="adam", label_smoothing=0.1),
    "adamw": Recipe(lr=1e-3, optimizer="adamw", schedule="one_cycle", warmup=0.2),
    "muon": Recipe(lr=0.1, optimizer="muon", norm_bias_lr_factor=8.0),
    "ema": Recipe(lr=0.1, ema=0.99),
    "lookahead": Recipe(lr=0.1, lookahead=2),
    "frozen batch norm": Recipe(lr=0.1, freeze_batch_norm=True),
    "whitening": Recipe(lr=0.1, whiten=True, dirac=True),
    "head first": Recipe(lr=0.1, head_epochs=1, head_lr=1e-2, head_lr_factor=10.0, stem_lr_factor=0.1),
    "mixed and cut": Recipe(lr=0.1, mixup=0.2, cutmix=1.0, cutout=8),
    "small images": Recipe(lr=0.1, small_size=16, small_epochs=1, brightness=0.1, contrast=0.1, flip="alternating"),
}
NORMALIZATION = Normalization((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))


class Net(nn.Module):
    """A norm, two convolutions and a head; with an answer for each pixel if it is ``dense``."""

    def __init__(self, dense=False):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 30, 3, padding=1), nn.BatchNorm2d(30)
        self.conv, self.fc = nn.Conv2d(30, 30, 3, padding=1, bias=False), nn.Conv2d(30, 11 if dense else 10, 1)
        self.dense = dense

    def forward(self, x):
        maps = self.fc(torch.relu(self.conv(torch.relu(self.norm(self.stem(x))))))
        return maps if self.dense else maps.mean((2, 3))


def stream(recipe, count=4 * STEPS):
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, 10, (count,))
    augmentation = Augmentation(**{each.name: getattr(recipe, each.name) for each in dataclasses.fields(Augmentation)})
    options = {"channels_last": True, "augmentation": augmentation, "num_classes": 10}
    return BatchStream(images, labels, 4, NORMALIZATION, device=META, **options)


def mosaics(recipe):
    images, labels = torch.randint(0, 256, (STEPS, 3, 32, 32), dtype=torch.uint8), torch.arange(STEPS)
    return MosaicStream(images, labels, 1, NORMALIZATION, layout=MosaicLayout(48, 32, 1), device=META, flip=recipe.flip)


def train_for(recipe, batches, watch, dense=False):
    """What ``EPOCHS`` epochs of training note."""
    with META:
        model = Net(dense)
    initialise(model, recipe, batches)
    head = ("fc",) if recipe.head_epochs else ()
    optimizer = create_optimizer(model, recipe, 0.1, 1e-4, head)
    watch.seen.clear()
    training = fit(model, optimizer, batches, recipe, Budget(epochs=EPOCHS), head=head)
    assert (training.status, training.step) == ("completed", EPOCHS * STEPS)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None for parameter in trained)
    return watch.seen


def check(seen, batches=0):
    assert seen.keys() <= AN_EPOCH.keys() | (A_BATCH.keys() if batches else set())
    assert max(count for place, count in seen.items() if place in AN_EPOCH) <= 6 * (EPOCHS + 1) < EPOCHS * STEPS
    assert {seen[place] for place in A_BATCH} == {batches}


@pytest.mark.parametrize("name", RECIPES)
def test_training_waits_for_nothing_but_what_an_epoch_asks(name):
    recipe = RECIPES[name]
    with meta_device() as watch:
        seen = train_for(recipe, stream(recipe), watch)
    check(seen, batches=EPOCHS * STEPS + 2 if recipe.brightness else 0)  # one of each size warms up


def test_mosaics_are_trained_on_where_they_are_composed():
    recipe = Recipe(lr=0.1)
    with meta_device() as watch:
        check(train_for(recipe, mosaics(recipe), watch, dense=True))


def test_whitening_brings_patches_to_the_host_once_a_batch_and_before_training():
    with meta_device() as watch:
        batches = stream(RECIPES["whitening"])
        with META:
            model = Net()
        watch.seen.clear()
        initialise(model, RECIPES["whitening"], batches)
    assert watch.seen[DOWNLOAD, "bench/training/initialisation.py:_patch_covariance"] == STEPS
    assert watch.seen[UPLOAD, "bench/training/initialisation.py:whiten_stem"] == 1


def with_numbers_of_the_host(average, model):
    """An average in Python's numbers: each parameter's sum is read, as a log of it would."""
    for mean, value in zip(average.module.parameters(), model.parameters(), strict=True):
        mean.data.mul_(0.5 + 0.0 * float(value.detach().sum())).add_(value.data, alpha=0.5)
    average.updates += 1


def test_an_average_in_numbers_of_the_host_is_found(monkeypatch):
    monkeypatch.setattr(averaging.WeightAverage, "update", with_numbers_of_the_host)
    recipe = RECIPES["ema"]
    with meta_device() as watch:
        seen = train_for(recipe, stream(recipe), watch)
    assert seen[READ, "bench/training/loop.py:fit"] == EPOCHS * STEPS * len(list(Net().parameters()))


def test_an_update_whose_size_is_read_is_found(monkeypatch):
    whole = muon.orthogonalize
    monkeypatch.setattr(muon, "orthogonalize", lambda matrix: whole(matrix) * min(1.0, float(matrix.norm())))
    recipe = RECIPES["muon"]
    with meta_device() as watch:
        seen = train_for(recipe, stream(recipe), watch)
    assert seen[READ, "bench/training/muon.py:Muon._update"] >= EPOCHS * STEPS


def test_a_value_that_a_backward_pass_reads_is_found():
    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float(gradient.abs().max())

    recipe = RECIPES["sgd"]
    with meta_device() as watch, pytest.MonkeyPatch.context() as patch:
        plain = Net.forward
        patch.setattr(Net, "forward", lambda net, x: Reads.apply(plain(net, x)))
        seen = train_for(recipe, stream(recipe), watch)
    assert sum(count for (kind, _), count in seen.items() if kind == READ) >= EPOCHS * STEPS
    assert not seen.keys() <= AN_EPOCH.keys()
