import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from bench.training.checkpoint import STATE, WEIGHTS, Checkpoints

ROOT = Path(__file__).parents[3]

TRAIN = """
import sys
import torch
import zoo
from pathlib import Path
from bench.config import Budget, Recipe
from bench.data.augment import BatchStream, Normalization
from bench.data.sources import load_dataset
from bench.data.transforms import Augmentation
from bench.stages import hash_weights
from bench.training.checkpoint import Checkpoints
from bench.training.loop import evaluate, fit
from bench.training.optim import create_optimizer

name, folder, optimizer = sys.argv[1:4]
torch.set_num_threads(1)
dataset = load_dataset("digits")
images, labels = torch.tensor(dataset.train.images[:120]), torch.tensor(dataset.train.labels[:120])

class Told(BatchStream):
    def epoch(self, epoch, start=0):
        for index, batch in enumerate(super().epoch(epoch, start), start):
            print("step", epoch, index, flush=True)
            yield batch

augmentation = Augmentation(flip=True, crop_padding=2)
stream = Told(
    images, labels, 20, Normalization.of(images), device=torch.device("cpu"), augmentation=augmentation
)
recipe = Recipe(optimizer=optimizer, lr=1e-3, warmup=0.2, clip_grad_norm=1.0)
torch.manual_seed(0)
model = zoo.create_model(name)
checkpoints = Checkpoints(Path(folder), every_seconds=0.0)
training = fit(
    model, create_optimizer(model, recipe, 1e-3, 1e-2), stream, recipe, Budget(epochs=4),
    evaluate_val=lambda: evaluate(model, stream, 10), checkpoints=checkpoints,
)
rows = [(row["epoch"], row["step"], row["train_loss"], row["train_top1"], row["val_loss"]) for row in training.history]
print("end", hash_weights(model), training.step, rows, flush=True)
"""


def train(name, folder, optimizer="sgd", kill_after=None):
    """Train in a process of its own; kill it after so many steps were begun. Returns its last words, or None."""
    command = [sys.executable, "-W", "ignore", "-c", TRAIN, name, str(folder), optimizer]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        for begun, line in enumerate(process.stdout):
            if line.startswith("end"):
                return line
            if kill_after is not None and begun >= kill_after:
                process.kill()
                return None
    raise AssertionError("training failed")


@pytest.mark.parametrize(("name", "optimizer"), [("simple_cnn", "sgd"), ("resnet20", "adamw")])
def test_a_training_killed_at_random_steps_ends_as_if_it_never_was(tmp_path, name, optimizer):
    whole = train(name, tmp_path / "whole", optimizer)
    random.seed(name)
    for _ in range(3):
        assert train(name, tmp_path / "killed", optimizer, kill_after=random.randint(1, 6)) is None
    assert train(name, tmp_path / "killed", optimizer) == whole


def make(folder):
    checkpoints = Checkpoints(folder, every_seconds=1e9)
    for step in (1, 2, 3):
        checkpoints.save(step, {"w": torch.full((3,), float(step))}, {"step": step, "rng": torch.get_rng_state()})
    return checkpoints


def test_the_newest_is_loaded_and_two_are_kept(tmp_path):
    checkpoints = make(tmp_path)
    weights, state = checkpoints.load()
    assert weights["w"].tolist() == [3.0] * 3
    assert state["step"] == 3
    assert torch.equal(state["rng"], torch.get_rng_state())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000000002", "step-000000000003"]
    checkpoints.remove()
    assert checkpoints.load() is None


@pytest.mark.parametrize("file", [WEIGHTS, STATE, "sha256.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_one_is_told_and_the_one_before_it_used(tmp_path, file, damage):
    checkpoints = make(tmp_path)
    path = tmp_path / "step-000000000003" / file
    if damage == "truncate":
        os.truncate(path, path.stat().st_size // 2)
    elif damage == "flip":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    else:
        path.unlink()
    with pytest.warns(UserWarning, match="step-000000000003 is damaged"):
        weights, _ = checkpoints.load()
    assert weights["w"].tolist() == [2.0] * 3


def test_all_damaged_is_a_fresh_start(tmp_path):
    checkpoints = make(tmp_path)
    for path in tmp_path.glob("step-*/*"):
        path.write_bytes(b"")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert checkpoints.load() is None
    assert len(caught) == 2


def test_a_full_disk_leaves_the_ones_before(small_disk):
    checkpoints = make(small_disk / "checkpoints")
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(4, {"w": torch.zeros(10**6)}, {})
    weights, _ = checkpoints.load()
    assert weights["w"].tolist() == [3.0] * 3
    assert len(list((small_disk / "checkpoints").iterdir())) == 2
