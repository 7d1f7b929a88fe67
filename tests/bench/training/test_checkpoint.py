import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import fsspec
import pytest
import torch

import bench.training.checkpoint
from bench.training.checkpoint import STATE, SUMS, WEIGHTS, Checkpoints

ROOT = Path(__file__).parents[3]

# Reads jobs and does each in a fork, so that a kill costs no new start of the interpreter.
TRAIN = """
import dataclasses, json, os, sys
import torch
import zoo
from pathlib import Path
from bench.config import Budget, Recipe
from bench.data.augment import BatchStream, Normalization
from bench.data.sources import load_dataset
from bench.data.transforms import Augmentation
from bench.training.weights import hash_weights
from bench.training.checkpoint import Checkpoints
from bench.training.evaluation import evaluate
from bench.training.loop import fit
from bench.training.optim import create_optimizer
from zoo.pretrained import head_names

torch.set_num_threads(1)
dataset = load_dataset("digits")
images, labels = torch.tensor(dataset.train.images[:120]), torch.tensor(dataset.train.labels[:120])

class Told(BatchStream):
    def epoch(self, epoch, start=0):
        for index, batch in enumerate(super().epoch(epoch, start), start):
            print("step", epoch, index, flush=True)
            yield batch

def train(name, folder, recipe):
    recipe = Recipe(lr=1e-3, weight_decay=1e-2, **recipe)
    fields = [field.name for field in dataclasses.fields(Augmentation)]
    augmentation = Augmentation(**{field: getattr(recipe, field) for field in fields})
    stream = Told(
        images, labels, 20, Normalization.of(images), device=torch.device("cpu"), augmentation=augmentation,
        num_classes=10,
    )
    torch.manual_seed(0)
    model = zoo.create_model(name)
    training = fit(
        model, create_optimizer(model, recipe, 1e-3, 1e-2), stream, recipe, Budget(epochs=4),
        head=head_names(model), evaluate_val=lambda net: evaluate(net, stream, 10),
        checkpoints=Checkpoints(Path(folder), every_seconds=0.0),
    )
    rows = [(row["epoch"], row["step"], row["train_loss"], row["val_loss"]) for row in training.history]
    print("end", hash_weights(model), training.step, rows, flush=True)

# What is imported late would be imported again by each fork.
create_optimizer(zoo.create_model("lenet5"), Recipe(), 1e-3, 1e-2).zero_grad()
from torchvision.transforms import v2

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        print("pid", os.getpid(), flush=True)
        train(*json.loads(line))
        os._exit(0)
    os.waitpid(child, 0)
"""

CASES = {
    "lenet5": {"schedule": "one_cycle", "warmup": 0.3, "clip_grad_norm": 1.0},
    "simple_cnn": {"optimizer": "adamw", "ema": 0.9, "mixup": 0.2, "drop_rate": 0.5},
    "resnet20": {"optimizer": "adam", "schedule": "linear", "head_epochs": 1, "head_lr": 1e-2, "flip": "alternating"},
    "mobilenet_v1_025": {
        "cutmix": 1.0,
        "cutout": 8,
        "crop_fill": "reflect",
        "label_smoothing": 0.1,
        "brightness": 0.1,
        "optimizer": "muon",
        "lookahead": 2,
        "small_size": 24,
        "small_epochs": 1,
        "norm_bias_lr_factor": 8.0,
    },
    "lenet5_1998": {"schedule": "step", "randaugment": 1, "momentum": 0.0},
}
KILLS = 3


@pytest.fixture(scope="module")
def trainer():
    command = [sys.executable, "-W", "ignore", "-c", TRAIN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def folder(tmp_path):
    """In memory where there is such a file system: a process that is killed is no power failure, fsync only costs."""
    in_memory = Path("/dev/shm")
    if not os.access(in_memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=in_memory) as name:
        yield Path(name)


def train(trainer, name, folder, kill_after=None):
    """Train in a process of its own; kill it when it begins step ``kill_after``. Returns what it printed
    at its end, or None."""
    trainer.stdin.write(json.dumps([name, str(folder), CASES[name]]) + "\n")
    trainer.stdin.flush()
    # What a killed one had still to say comes first.
    child = next(int(line.split()[1]) for line in trainer.stdout if line.startswith("pid"))
    for begun, line in enumerate(trainer.stdout, 1):
        if line.startswith("end"):
            return line
        if begun == kill_after:
            os.kill(child, signal.SIGKILL)
            return None
    raise AssertionError("training failed")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("name", CASES)
def test_a_training_killed_at_random_steps_ends_as_if_it_never_was(trainer, folder, name):
    whole = train(trainer, name, folder / "whole")
    random.seed(name)
    for _ in range(KILLS):
        assert train(trainer, name, folder / "killed", kill_after=random.randint(2, 7)) is None
    assert train(trainer, name, folder / "killed") == whole


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


@pytest.mark.parametrize("file", [WEIGHTS, STATE, SUMS])
@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_a_damaged_one_is_reported_and_the_one_before_it_used(tmp_path, file, damage):
    checkpoints = make(tmp_path)
    path = tmp_path / "step-000000000003" / file
    if damage == "truncate":
        os.truncate(path, path.stat().st_size // 2)
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    with pytest.warns(UserWarning, match="step-000000000003 is damaged"):
        weights, _ = checkpoints.load()
    assert weights["w"].tolist() == [2.0] * 3


def test_one_without_checksums_is_none_and_goes_with_the_next_save(tmp_path):
    checkpoints = make(tmp_path)
    (tmp_path / "step-000000000003" / SUMS).unlink()
    weights, _ = checkpoints.load()
    assert weights["w"].tolist() == [2.0] * 3
    checkpoints.save(4, {"w": torch.zeros(1)}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000000002", "step-000000000004"]


def test_all_damaged_is_a_fresh_start(tmp_path):
    checkpoints = make(tmp_path)
    for path in tmp_path.glob("step-*/*"):
        path.write_bytes(b"")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert checkpoints.load() is None
    assert len(caught) == 2


class Payload:
    """Pickled, it would make a file where it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_does_not_run_even_with_the_right_checksum(tmp_path):
    checkpoints = make(tmp_path / "checkpoints")
    folder = tmp_path / "checkpoints" / "step-000000000003"
    torch.save({"state": Payload(tmp_path / "ran")}, folder / STATE)
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (WEIGHTS, STATE)}
    (folder / SUMS).write_text(json.dumps(sums))
    with pytest.warns(UserWarning, match="is damaged"):
        assert checkpoints.load()[0]["w"].tolist() == [2.0] * 3
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_is_a_warning_and_leaves_the_ones_before(small_disk):
    checkpoints = make(small_disk / "checkpoints")
    with pytest.warns(UserWarning, match="No space left.*Training goes on"):
        checkpoints.save(4, {"w": torch.zeros(10**6)}, {})
    assert checkpoints.failure == "No space left on device"
    weights, _ = checkpoints.load()
    assert weights["w"].tolist() == [3.0] * 3
    assert len(list((small_disk / "checkpoints").iterdir())) == 2
    checkpoints.save(5, {"w": torch.zeros(1)}, {})
    assert checkpoints.load()[0]["w"].tolist() == [0.0]


def test_a_bucket_holds_checkpoints_as_a_folder_does():
    folder = "memory://bucket/plan/checkpoints/run"
    checkpoints = make(folder)
    assert checkpoints.load()[0]["w"].tolist() == [3.0] * 3
    memory = fsspec.filesystem("memory")
    assert len(memory.glob("/bucket/plan/checkpoints/run/step-*")) == 2
    memory.pipe_file(f"/bucket/plan/checkpoints/run/step-000000000003/{STATE}", b"")
    with pytest.warns(UserWarning, match="memory://bucket/plan/checkpoints/run/step-000000000003 is damaged"):
        assert Checkpoints(folder).load()[0]["w"].tolist() == [2.0] * 3
    checkpoints.remove()
    assert checkpoints.load() is None
    assert not memory.exists("/bucket/plan/checkpoints")


class KilledError(BaseException):
    pass


@pytest.mark.parametrize("root", ["memory://interrupted", "local"])
def test_a_writer_interrupted_between_any_two_writes_leaves_a_whole_checkpoint(root, tmp_path, monkeypatch):
    write = bench.training.checkpoint.write_atomically
    for allowed in range(3):
        folder = f"{root if '://' in root else tmp_path}/{allowed}"
        checkpoints = make(folder)
        left = [allowed]

        def interrupt(path, content, left=left):
            if not left[0]:
                raise KilledError
            left[0] -= 1
            write(path, content)

        with monkeypatch.context() as patch:
            patch.setattr("bench.training.checkpoint.write_atomically", interrupt)
            with pytest.raises(KilledError):
                checkpoints.save(4, {"w": torch.zeros(3)}, {})
            left[0] = allowed
            with pytest.raises(KilledError):  # again at a step that has one
                checkpoints.save(3, {"w": torch.zeros(3)}, {})
        assert Checkpoints(folder).load()[0]["w"].tolist() == [2.0] * 3
