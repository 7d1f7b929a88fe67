"""Runs on dense labels, in a process of their own, on digits laid out on small canvases."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench.config import load_plan
from bench.errors import ConfigError
from bench.records import stored_path
from bench.runs.resolve import network_input_size, resolve_plan
from bench.runs.runner import run_plan
from bench.training.dense import mean_iou


def plan(*models, **overrides):
    small = {
        "recipe": {"base": "quick", "lr": 4e-3, "batch_size": 8},
        "measure": {"seconds": 0.1, "batch_size": 2},
        "limit_train": 360,
        "limit_test": 100,
        "data": "mosaic:digits",
        "input_size": 16,
        "budget": {"epochs": 1},
    }
    return load_plan("quick", small | {"models": list(models)} | overrides)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("results"))
    outcome = run_plan(plan("fcn_resnet18,output_stride=16"), folder)
    assert outcome.records[0].error is None
    return outcome.records[0], folder


def test_a_segmentation_network_learns_more_than_the_background(done):
    record, _ = done
    assert record.status == "completed"
    confusion = np.array(record.samples["test_confusion"])
    assert confusion.shape == (11, 11)
    assert confusion.sum() == 50 * 16 * 16  # two of the hundred images on each canvas
    background = confusion[0].sum() / confusion.sum()
    assert record.metrics["test_miou"] == mean_iou(confusion.tolist())
    assert record.metrics["test_miou"] > 1.2 * background / 11  # what predicting the background alone would give
    assert record.metrics["test_pixel_accuracy"] == pytest.approx(np.trace(confusion) / confusion.sum())


def test_the_record_of_a_dense_run_has_what_other_records_have_and_no_top1(done):
    record, folder = done
    metrics = record.metrics
    assert "test_top1" not in metrics
    assert metrics["val_miou"] == record.history[-1]["val_miou"]
    assert metrics["steps"] == 324 // 2 // 8  # canvases of two images, eight a batch
    for name in ("params", "macs", "throughput_img_per_s", "train_throughput_img_per_s", "test_loss", "val_loss"):
        assert metrics[name] > 0
    assert record.environment["data"]["classes"][:2] == ["background", "0"]
    assert json.loads(Path(stored_path(folder, "cards", record.run_id)).read_text())["params"] == metrics["params"]
    probes = np.load(stored_path(folder, "probes", record.run_id))
    assert probes["map_images"].shape[1:] == (3, 16, 16)
    assert probes["cam_heat"].ndim == 3


def test_a_classifier_cannot_label_pixels():
    with pytest.raises(ConfigError, match=r"'lenet5' gives one answer an image.*fcn_resnet18.*data set 'digits'"):
        resolve_plan(plan("fcn_resnet18", "lenet5"), data_dir=None)


def test_what_has_no_meaning_for_pixels_is_refused():
    asked = {"base": "quick", "cutmix": 1.0, "cutout": 8}
    with pytest.raises(ConfigError, match="asks for cutout, cutmix"):
        resolve_plan(plan("fcn_resnet18", recipe=asked), data_dir=None)


@pytest.mark.parametrize(("asked", "size"), [(None, 520), (64, 64)])
def test_a_network_takes_canvases_as_they_are_laid_out(asked, size):
    (run,) = resolve_plan(plan("fcn_resnet50", pretrained=True, input_size=asked), data_dir=None)
    assert (run.input_size, network_input_size(run)) == (size, size)


def test_the_plan_dilation_resolves_to_equal_parameters_at_each_output_stride():
    import torch

    import zoo

    small = load_plan("dilation", {"data": "mosaic:digits"})
    runs = resolve_plan(small, data_dir=None)
    assert small.input_size > 64  # else strides would not mean what they say
    counts = {}
    for run in runs:
        with torch.device("meta"):
            model = zoo.create_model(run.model, 11, run.input_size)
        plain, stride = run.model.split(",output_stride=")
        counts.setdefault(plain, {})[int(stride)] = sum(p.numel() for p in model.parameters())
    assert sorted(counts) == ["deeplabv3_resnet18", "fcn_resnet18"]
    for by_stride in counts.values():
        assert sorted(by_stride) == [8, 16, 32]
        assert len(set(by_stride.values())) == 1
