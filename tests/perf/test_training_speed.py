"""What the harness adds to the bare model step, and what it saves against a conventional loop."""

import time

import pytest
import torch
from perf_ratio import paired_ratio
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import zoo
from bench.config import Budget, Recipe
from bench.data.augment import BatchStream, Normalization
from bench.data.transforms import Augmentation
from bench.training.loop import fit
from bench.training.optim import create_optimizer
from bench.training.step import train_step

RECIPE = Recipe(optimizer="sgd", lr=0.01, weight_decay=5e-4, flip=True, crop_padding=4, batch_size=128)
IMAGES = {"lenet5": 12_800, "simple_cnn": 3_840}
CPU = torch.device("cpu")


def make_data(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 10, (count,), generator=generator)


class Trainee:
    """A model with its optimizer, in channels_last."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.model = zoo.create_model(name).to(memory_format=torch.channels_last)
        self.optimizer = create_optimizer(self.model, RECIPE, RECIPE.lr, 5e-4)


def whole_epoch(name: str, images: torch.Tensor, labels: torch.Tensor):
    """Images per second of one epoch by `fit`: shuffling, augmentation, schedule, metering and all."""
    trainee = Trainee(name)
    augmentation = Augmentation(flip=RECIPE.flip, crop_padding=RECIPE.crop_padding)
    normalization = Normalization.of(images)
    stream = BatchStream(images, labels, 128, normalization, device=CPU, channels_last=True, augmentation=augmentation)

    def measure() -> float:
        training = fit(trainee.model, trainee.optimizer, stream, RECIPE, Budget(epochs=1))
        return training.images_seen / training.seconds

    return measure


def bare_steps(name: str, count: int):
    """Images per second of the model step alone, again and again on one ready batch."""
    trainee = Trainee(name)
    trainee.model.train()
    images = torch.randn(128, 3, 32, 32).to(memory_format=torch.channels_last)
    targets = torch.randint(0, 10, (128,))

    def measure() -> float:
        begun = time.perf_counter()
        for _ in range(count // 128):
            train_step(trainee.model, trainee.optimizer, images, targets, RECIPE, False)
        return count // 128 * 128 / (time.perf_counter() - begun)

    measure()
    return measure


class Pictures(Dataset):
    """As tutorials do it: one PIL image at a time, transformed by torchvision."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images, self.labels = images.permute(0, 2, 3, 1).numpy(), labels.tolist()
        self.transform = transforms.Compose([
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.49, 0.48, 0.45), (0.25, 0.24, 0.26)),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def conventional_epoch(name: str, images: torch.Tensor, labels: torch.Tensor):
    """Images per second of one epoch of a conventional loop, with two workers, which are not started anew."""
    torch.manual_seed(0)
    model = zoo.create_model(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    criterion = torch.nn.CrossEntropyLoss()
    loader = DataLoader(
        Pictures(images, labels), 128, shuffle=True, num_workers=2, persistent_workers=True, drop_last=True
    )

    def measure() -> float:
        begun, seen, running = time.perf_counter(), 0, 0.0
        model.train()
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()
            running += loss.item()
            seen += len(targets)
        return seen / (time.perf_counter() - begun)

    measure()
    return measure


@pytest.mark.parametrize("name", IMAGES)
def test_epoch_against_bare_step(benchmark, name):
    """Aim: 0.90 for lenet5, 0.97 for simple_cnn."""
    epoch, bare = whole_epoch(name, *make_data(IMAGES[name])), bare_steps(name, IMAGES[name])
    ratio = benchmark.pedantic(paired_ratio, args=(epoch, bare, 20), rounds=1)
    benchmark.extra_info |= vars(ratio)
    print(f"\n{name}: whole epoch / bare step = {ratio}")
    assert ratio.low > 0


def test_epoch_against_conventional_loop(benchmark):
    """Aim: 5 for lenet5."""
    data = make_data(IMAGES["lenet5"])
    ours, conventional = whole_epoch("lenet5", *data), conventional_epoch("lenet5", *data)
    ratio = benchmark.pedantic(paired_ratio, args=(ours, conventional, 8), rounds=1)
    benchmark.extra_info |= vars(ratio)
    print(f"\nlenet5: whole epoch / conventional loop = {ratio}")
    assert ratio.low > 0
