"""Nothing of ``val`` or ``test`` reaches training: the weights are the same whatever those splits hold."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bench.config import load_plan
from bench.data.sources import load_dataset, split_train
from bench.runs.job import run_job
from bench.runs.job_description import Job
from bench.runs.resolve import resolve_plan

SIDE, COUNT, VAL_FRACTION = 16, 24, 0.25
LABELS = np.arange(COUNT) % 2
_, VAL = split_train(LABELS, None, VAL_FRACTION)
RECIPES = {
    "lenet5": {
        "base": "quick",
        "batch_size": 6,
        "rotation": 10,
        "cutout": 4,
        "cutmix": 1.0,
        "ema": 0.9,
        "whiten": True,
    },
    "fcn_resnet18,output_stride=32": {"base": "quick", "batch_size": 4},
}


def write(folder, brightness):
    """Noise about a grey level of its own for ``train``, ``val`` and ``test``, as PNG files."""
    for split in ("train", "test"):
        for index, label in enumerate(LABELS):
            name = split if split == "test" else "val" if index in VAL else "train"
            random = np.random.default_rng([brightness[name], index])
            pixels = random.integers(0, 100, (SIDE, SIDE, 3)) + brightness[name]
            place = folder / split / "ab"[label] / f"{index:02}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(place)


def run(folder, model, recipe=None):
    mosaic = {"data": f"mosaic:folder:{folder}", "input_size": SIDE, "budget": {"epochs": 1}}
    plan = load_plan(
        "quick",
        {"data": f"folder:{folder}", "input_size": SIDE, "models": [model], "threads": 1}
        | {"recipe": recipe or RECIPES[model]}
        | {"val_fraction": VAL_FRACTION, "budget": {"epochs": 2}}
        | {"measure": {"seconds": 0.02, "batch_size": 2, "block_seconds": 0.01, "probes": False}}
        | (mosaic if model.startswith("fcn") else {}),
    )
    (config,) = resolve_plan(plan, data_dir=None)
    record = run_job(Job(config=config, results=str(folder / "results")))
    assert record.status == "completed", record.error
    return record


@pytest.mark.parametrize("model", RECIPES)
def test_neither_val_nor_test_reaches_the_weights(tmp_path, model):
    found = {}
    for name, brightness in {
        "alike": {"train": 50, "val": 50, "test": 50},
        "test": {"train": 50, "val": 50, "test": 150},
        "val": {"train": 50, "val": 0, "test": 50},
        "train": {"train": 60, "val": 50, "test": 50},
    }.items():
        write(tmp_path / name, brightness)
        found[name] = run(tmp_path / name, model)
    weights = {name: record.metrics["weights_sha256"] for name, record in found.items()}
    data = {name: record.environment["data"] for name, record in found.items()}
    for split in ("test", "val"):
        assert weights[split] == weights["alike"]
        assert (data[split]["mean"], data[split]["std"]) == (data["alike"]["mean"], data["alike"]["std"])
        for row, other in zip(found[split].history, found["alike"].history, strict=True):
            assert row["train_loss"] == other["train_loss"]
    # What was changed is what was evaluated on, and a change of the images that are trained on would be seen.
    assert found["test"].metrics["test_loss"] != found["alike"].metrics["test_loss"]
    assert found["val"].metrics["val_loss"] != found["alike"].metrics["val_loss"]
    assert weights["train"] != weights["alike"]


def test_the_precision_is_chosen_on_training_images(tmp_path, monkeypatch):
    seen = []

    class Timer:
        def __init__(self, model, images, recipe):
            seen.append(float(images.float().mean()))

        def __call__(self, form):
            return 1.0

    monkeypatch.setattr("bench.training.tuner.FormTimer", Timer)
    write(tmp_path, {"train": 50, "val": 50, "test": 150})
    run(tmp_path, "lenet5")
    (mean,) = seen
    assert mean < 1  # test images, normalised by the statistics of train, lie above 3


def test_the_precision_is_chosen_on_images_of_full_size(tmp_path, monkeypatch):
    seen = []

    class Timer:
        def __init__(self, model, images, recipe):
            seen.append(images.shape[-1])

        def __call__(self, form):
            return 1.0

    monkeypatch.setattr("bench.training.tuner.FormTimer", Timer)
    write(tmp_path, {"train": 50, "val": 50, "test": 150})
    run(tmp_path, "simple_cnn", {"base": "quick", "batch_size": 6, "small_size": SIDE // 2, "small_epochs": 1})
    assert seen == [SIDE]


def test_the_training_set_s_own_statistics_normalise(tmp_path):
    write(tmp_path, {"train": 50, "val": 0, "test": 150})
    data = run(tmp_path, "lenet5").environment["data"]
    dataset = load_dataset(f"folder:{tmp_path}", size=SIDE)
    train, _ = split_train(dataset.train.labels, None, VAL_FRACTION)
    pixels = dataset.train.images[train].astype(np.float64)
    np.testing.assert_allclose(data["mean"], pixels.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(data["std"], pixels.std((0, 2, 3)), rtol=1e-6)


def test_the_classes_are_those_of_train(tmp_path):
    """Classes that are text are numbered by what ``train`` holds, whatever ``test`` lacks."""
    random = np.random.default_rng(0)

    def shard(split, labels):
        images = [{"bytes": png(random), "path": ""} for _ in labels]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        pq.write_table(pa.table({"img": pa.array(images, kind), "label": labels}), tmp_path / f"{split}-0.parquet")

    shard("train", ["b", "c", "a", "b"])
    for labels in (["c", "b"], ["c"]):
        shard("test", labels)
        dataset = load_dataset(f"parquet:{tmp_path}", size=SIDE)
        assert dataset.classes == ("a", "b", "c")
        assert dataset.test.labels[0] == 2


def png(random):
    buffer = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
