"""Whole plans, each run in a process of its own, on the embedded digits."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from bench.config import load_plan
from bench.counting.complexity import count_macs
from bench.errors import ConfigError, DataError, DeviceError
from bench.events import Loading, Phase, PlanBegins, PlanEnds, Row, RunBegins, RunEnds
from bench.records import plan_folders, read_record, read_records, record_path, record_paths, stored_path
from bench.runs.resolve import (
    EVALUATION_PIXELS,
    count_of_run,
    evaluation_batch_size,
    network_input_size,
    resolve_models,
    resolve_plan,
)
from bench.runs.runner import run_plan
from bench.training.checkpoint import Checkpoints
from reports.data.history import load_points
from zoo import UnknownModelError, ZooError, list_models, model_info

FAST = {
    "recipe": "quick",
    "measure": {"seconds": 0.2, "batch_size": 4, "repeats": 3},
    "limit_train": 200,
    "limit_test": 50,
}


class Log(list):
    """An observer that keeps every event."""

    def on(self, event):
        self.append(event)

    def of(self, kind):
        return [event for event in self if isinstance(event, kind)]


def plan(*models, **overrides):
    return load_plan("quick", FAST | {"models": list(models), "budget": {"epochs": 1}} | overrides)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The same plan done twice in one folder, and once in another."""
    first, other = (str(tmp_path_factory.mktemp(name)) for name in ("first", "other"))
    logs = Log(), Log(), Log()
    outcomes = [
        run_plan(plan("lenet5", "simple_cnn"), folder, [log], command="zoobench run quick")
        for folder, log in zip((first, first, other), logs, strict=True)
    ]
    return outcomes, logs, first


def test_a_record_says_everything_that_was_measured(done):
    outcomes, _, folder = done
    for record in outcomes[0].records:
        assert record.status == "completed"
        assert read_record(record_path(folder, record.run_id)) == record
        metrics = record.metrics
        for name in ("params", "macs", "test_top1", "test_loss", "val_top1", "train_seconds"):
            assert metrics[name] is not None, name
        assert metrics["flops"] == 2 * metrics["macs"]
        for name in ("throughput_img_per_s", "train_throughput_img_per_s"):
            assert 0 < metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"]
        assert 0 <= metrics["test_top1"] <= 1
        assert len(metrics["weights_sha256"]) == 64
        assert metrics["images_seen"] == record.history[-1]["images_seen"]
        assert len(record.samples["infer_block_seconds"]) == len(record.samples["latency_seconds"]) == 3  # repeats
        assert 0 < metrics["infer_peak_memory_bytes"] < metrics["train_peak_memory_bytes"]
        assert metrics["process_peak_memory_bytes"] > 4 * metrics["params"]
        assert record.environment["energy"]
        assert sum(map(sum, record.samples["test_confusion"])) == 50
        assert record.environment["data"]["train"] == 180
        assert record.environment["data"]["val"] == 20
        assert record.environment["data"]["test"] == 50
        assert record.environment["command"] == "zoobench run quick"
        assert record.environment["peak_macs_per_s"] > 1e8
        assert json.loads(Path(stored_path(folder, "cards", record.run_id)).read_text())["params"] == metrics["params"]
        assert "kernels" in np.load(stored_path(folder, "probes", record.run_id))
        assert record.environment["versions"]["torch"]
        assert record.config["threads"] == record.environment["threads"] >= 1
    assert [record.metrics["params"] for record in outcomes[0].records] == [62_006, 94_986]


def test_the_second_time_nothing_is_trained_and_the_records_are_the_same(done):
    outcomes, logs, _ = done
    assert (outcomes[0].skipped, outcomes[1].skipped) == (0, 2)
    assert [event.config.model for event in logs[0].of(RunBegins)] == ["lenet5", "simple_cnn"]
    assert [type(event) for event in logs[1] if not isinstance(event, Loading)] == [PlanBegins, PlanEnds]
    assert logs[1].of(PlanBegins)[0].done == tuple(outcomes[0].records)
    assert outcomes[1].records == outcomes[0].records


def test_the_same_seed_gives_the_same_weights_and_accuracy_elsewhere(done):
    outcomes, _, _ = done
    for here, there in zip(outcomes[0].records, outcomes[2].records, strict=True):
        for name in ("weights_sha256", "test_top1", "test_loss", "val_loss", "train_loss"):
            assert here.metrics[name] == there.metrics[name]


def test_observers_see_the_plan_from_its_first_event_to_its_last(done):
    outcomes, logs, _ = done
    turns = ["measure_infer", "measure_latency", "measure_train"] * 3  # repeats
    measured = ["measure_peak", *turns, "measure_memory", "measure_memory"]
    phases = [event.phase for event in logs[0].of(Phase)]
    for own in (phases[: len(phases) // 2], phases[len(phases) // 2 :]):
        assert own == ["load", "train", "test", *measured, "probe"]
    assert logs[0].of(Row)[-1].share == 1.0
    assert [event.record for event in logs[0].of(RunEnds)] == outcomes[0].records
    assert [len(logs[0].of(kind)) for kind in (PlanBegins, PlanEnds)] == [1, 1]
    assert isinstance(logs[0][-1], PlanEnds)


def test_observers_see_the_end_of_a_plan_that_is_refused(tmp_path):
    log = Log()
    with pytest.raises(ConfigError, match="no architecture matches"):
        run_plan(plan("q*"), str(tmp_path), [log])
    assert [type(event) for event in log] == [PlanEnds]


def test_no_character_of_a_folder_s_name_is_a_wildcard(tmp_path):
    folder = str(tmp_path / "mine [2026]*")
    outcome = run_plan(plan("lenet5", measure=FAST["measure"] | {"probes": False}), folder, checkpoint_seconds=0.0)
    assert [record.run_id for record in read_records(folder)[0]] == [record.run_id for record in outcome.records]
    assert plan_folders(tmp_path) == [folder]
    checkpoints = Checkpoints(f"{folder}/checkpoints/run")
    for step in (1, 2, 3):
        checkpoints.save(step, {"w": torch.full((2,), float(step))}, {})
    assert checkpoints.load()[0]["w"].tolist() == [3.0, 3.0]
    assert len(list(Path(folder, "checkpoints", "run").iterdir())) == 2


def test_probes_that_only_a_training_leaves_are_said_to_be_missing(tmp_path):
    measure = FAST["measure"] | {"probes": False}
    run_plan(plan("lenet5", measure=measure), str(tmp_path))
    with pytest.warns(UserWarning, match="trained with measure.probes = false.*--force trains again"):
        outcome = run_plan(plan("lenet5"), str(tmp_path))
    assert (outcome.skipped, outcome.measured_again) == (1, 0)


def test_wildcards_and_families():
    assert resolve_models(["lenet5", "resnet1*", "lenet5"]) == ["lenet5", *list_models("resnet1*")]
    chosen = resolve_models(["@representative"])
    classifiers = [info for info in map(model_info, list_models()) if info.task == "classification"]
    assert {model_info(name).family for name in chosen} == {info.family for info in classifiers}
    with pytest.raises(UnknownModelError, match="lenet5"):
        resolve_models(["lenet"])
    with pytest.raises(ConfigError, match="no architecture matches"):
        resolve_models(["q*"])


def test_what_is_not_here_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        resolve_plan(plan("lenet5", data="folder:nowhere"), data_dir=tmp_path)
    missing = torch.cuda.device_count()
    with pytest.raises(DeviceError, match="--device cpu"):
        resolve_plan(plan("lenet5", device=f"cuda:{missing}"), data_dir=None)


def test_a_damaged_record_is_repeated_and_said(done, tmp_path):
    outcomes, _, _ = done
    record = outcomes[0].records[0]
    path = Path(record_path(tmp_path, record.run_id))
    path.parent.mkdir()
    path.write_text(json.dumps(record.model_dump(mode="json"))[:500])
    with pytest.warns(UserWarning, match="It is repeated now"):
        outcome = run_plan(plan("lenet5"), str(tmp_path))
    assert outcome.skipped == 0
    assert outcome.records[0].metrics["weights_sha256"] == record.metrics["weights_sha256"]


@pytest.fixture
def weights(tmp_path):
    """Of torchvision's MobileNetV3-Small, which are for images of 224 pixels."""
    path = tmp_path / "mobilenet.pt"
    torch.manual_seed(0)
    torch.save(torchvision.models.mobilenet_v3_small(num_classes=10).state_dict(), path)
    return path


def test_pretrained_weights_come_with_their_preprocessing(weights, tmp_path):
    tuned = plan("torchvision/mobilenet_v3_small", pretrained=str(weights), limit_train=12, limit_test=6)
    record = run_plan(tuned, str(tmp_path)).records[0]
    assert record.error is None
    data = record.environment["data"]
    assert data["mean"] == pytest.approx([255 * mean for mean in (0.485, 0.456, 0.406)])
    assert data["input_size"] == 224
    # The network was built and counted at the size of its weights.
    assert record.metrics["macs"] == pytest.approx(56.51e6, rel=0.05)
    weights.write_bytes(weights.read_bytes() + b" ")
    assert run_plan(tuned, str(tmp_path)).skipped == 0


def test_a_size_that_is_asked_for_goes_before_that_of_the_weights(weights, tmp_path):
    tuned = plan("torchvision/mobilenet_v3_small", pretrained=str(weights), input_size=96, limit_train=12, limit_test=6)
    (run,) = resolve_plan(tuned, data_dir=None)
    (record,) = run_plan(tuned, str(tmp_path), save_weights=True).records
    assert record.error is None
    data = record.environment["data"]
    assert (data["input_size"], record.config["input_size"]) == (96, 96)
    assert data["mean"] == pytest.approx([255 * mean for mean in (0.485, 0.456, 0.406)])
    assert (
        record.metrics["macs"] == count_of_run(run, count_macs_at) == pytest.approx(56.51e6 * (96 / 224) ** 2, rel=0.1)
    )
    # What was trained at that size says so, and is trained on and evaluated at it.
    saved = stored_path(str(tmp_path), "weights", record.run_id)
    (again,) = resolve_plan(plan("torchvision/mobilenet_v3_small", pretrained=saved), data_dir=None)
    assert network_input_size(again) == 96


def count_macs_at(model, size):
    return count_macs(model, (1, 3, size, size))


@pytest.mark.parametrize(("side", "decoded"), [(24, 32), (100, 100), (300, 224)])
def test_images_are_decoded_with_as_many_pixels_as_the_weights_have_use_for(side, decoded, weights, tmp_path):
    for split in ("train", "test"):
        for kind in ("cat", "dog"):
            (tmp_path / "pictures" / split / kind).mkdir(parents=True)
            for number in range(12 if split == "train" else 2):
                image = Image.new("RGB", (side + 8 * number, side if number < 11 else 16), (number, 0, 0))
                image.save(tmp_path / "pictures" / split / kind / f"{number}.png")
    folder = f"folder:{tmp_path / 'pictures'}"
    tuned = plan("torchvision/mobilenet_v3_small", data=folder, pretrained=str(weights))
    (run,) = resolve_plan(tuned, data_dir=None)
    assert (run.input_size, network_input_size(run)) == (decoded, 224)
    (fresh,) = resolve_plan(plan("lenet5", data=folder), data_dir=None)
    assert (fresh.input_size, network_input_size(fresh)) == (32, 32)
    asked = plan("torchvision/mobilenet_v3_small", data=folder, pretrained=str(weights), input_size=224)
    (same,) = resolve_plan(asked, data_dir=None)
    assert (same.run_id == run.run_id) == (decoded == 224)  # what comes unasked is the same training


def test_what_the_recipe_asks_of_a_network_must_be_there(tmp_path):
    asked = plan("simple_cnn", "lenet5", recipe={"base": "quick", "drop_rate": 0.1})
    with pytest.raises(ZooError, match="'lenet5' takes no argument 'drop_rate'"):
        resolve_plan(asked, data_dir=None)
    without = plan("lenet5", recipe={"base": "quick", "drop_rate": 0.0})  # which it does anyhow
    assert resolve_plan(without, data_dir=None)
    with pytest.raises(ConfigError, match=r"target_top1 .* val_fraction"):
        plan("lenet5", target_top1=0.5, val_fraction=0.0)


def test_an_open_rate_under_another_optimizer_is_refused_before_anything_runs():
    for optimizer in ("adam", "adamw"):
        refused = plan("lenet5", recipe={"base": "classic", "optimizer": optimizer})
        with pytest.raises(ConfigError, match=f"leaves lr open under '{optimizer}'"):
            resolve_plan(refused, data_dir=None)


def test_a_target_on_an_empty_val_is_refused_before_anything_runs():
    with pytest.raises(DataError, match="target_top1 is looked for on 'val'"):
        resolve_plan(plan("lenet5", limit_train=20, target_top1=0.5), data_dir=None)


def test_equal_macs_mean_steps_in_inverse_proportion(tmp_path):
    budget = {"macs": 3e9}
    target = {"target_top1": 0.01}
    outcome = run_plan(plan("lenet5", "simple_cnn", budget=budget, **target), str(tmp_path))
    for record in outcome.records:
        assert record.error is None
        step_macs = 3 * record.metrics["macs"] * record.config["recipe"]["batch_size"]
        assert record.metrics["steps"] == max(1, int(3e9 / step_macs))
        assert record.metrics["target_steps"] == record.history[0]["step"]
        assert record.metrics["target_seconds"] == record.history[0]["seconds"]


def test_published_weights_that_do_not_exist_are_told_before_anything_runs(tmp_path):
    with pytest.raises(ZooError, match="simple_cnn"):
        resolve_plan(plan("simple_cnn", pretrained=True), data_dir=None)
    with pytest.raises(ConfigError, match=r"nothing\.pt"):
        resolve_plan(plan("simple_cnn", pretrained="nothing.pt"), data_dir=None)


def test_measuring_again_adds_a_record_and_trains_nothing(done, tmp_path):
    outcomes, _, folder = done
    first = outcomes[0].records[0]
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    log = Log()
    other = plan("lenet5", measure=FAST["measure"] | {"seconds": 0.3})
    outcome = run_plan(other, str(tmp_path), [log])
    (second,) = outcome.records
    assert (outcome.skipped, outcome.measured_again) == (0, 1)
    assert not {"train", "test", "probe"} & {event.phase for event in log.of(Phase)}
    assert second.run_id == first.run_id
    tail = {"latency_p95_ms", "latency_p99_ms"}  # there where enough images fitted into the time
    assert second.metrics.keys() - tail == first.metrics.keys() - tail
    assert second.samples.keys() == first.samples.keys()
    same = {name for name in first.metrics.keys() - tail if second.metrics[name] == first.metrics[name]}
    assert {"weights_sha256", "test_top1", "val_loss", "train_seconds", "steps", "macs"} <= same
    assert not {"throughput_img_per_s", "train_throughput_img_per_s", "latency_p50_ms", "wall_seconds"} & same
    assert second.history == first.history
    assert second.environment["trained"]["started_at"] == first.environment["started_at"]
    assert second.environment["data"] == first.environment["data"]
    assert [read_record(path) for path in record_paths(tmp_path, earlier=True) if "lenet5" in path] == [second, first]

    assert run_plan(other, str(tmp_path)).skipped == 1  # as asked for
    again = run_plan(other, str(tmp_path), measure_again=True)
    assert again.measured_again == 1
    assert again.records[0].environment["trained"] == second.environment["trained"]
    points = load_points([tmp_path], "lenet5")
    assert len(points) == len(set(points.started_at)) == 3
    assert len(load_points([tmp_path], "lenet5", "test_top1")) == 1


def test_force_trains_again_and_keeps_what_was(done, tmp_path):
    outcomes, _, folder = done
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (record,) = run_plan(plan("lenet5"), str(tmp_path), force=True).records
    first = outcomes[0].records[0]
    assert record.metrics["weights_sha256"] == first.metrics["weights_sha256"]
    assert "trained" not in record.environment
    assert [read_record(path) for path in record_paths(tmp_path, earlier=True) if "lenet5" in path] == [record, first]


def test_a_name_in_one_seed_must_be_known():
    with pytest.raises(UnknownModelError, match="resnet20"):
        resolve_plan(plan("lenet5", one_seed=["resnet2O"]), data_dir=None)


def test_evaluation_takes_fewer_images_where_they_are_large():
    assert [evaluation_batch_size(size) for size in (28, 32, 64, 160, 224)] == [500, 500, 500, 80, 40]
    assert all(evaluation_batch_size(size) * size**2 <= EVALUATION_PIXELS for size in range(1, 1400))
    assert evaluation_batch_size(2000) == 1
