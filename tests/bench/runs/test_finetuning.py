"""Fine-tuning as a user does it, offline: pretrain on some classes, save, fine-tune on the others."""

import pytest
from safetensors.torch import load_file

from bench.config import load_plan
from bench.errors import ConfigError, DataError
from bench.records import read_record, record_path
from bench.runs.runner import run_plan
from zoo.pretrained import saved_preprocessing

MEASURE = {"seconds": 0.1, "batch_size": 4, "probes": False}


def run(results, data_dir=None, *, save_weights=False, **overrides):
    plan = load_plan("quick", {"measure": MEASURE, "models": ["simple_cnn"]} | overrides)
    outcome = run_plan(plan, str(results), data_dir=data_dir, save_weights=save_weights)
    (record,) = outcome.records
    assert record.error is None, record.error.traceback
    return record


def weights_of(results, record):
    return results / "weights" / f"{record.run_id}.safetensors"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Digits 0 to 4 are known already."""
    results = tmp_path_factory.mktemp("pretrained")
    record = run(results, save_weights=True, classes=tuple("01234"), budget={"epochs": 3}, limit_test=100)
    return record, weights_of(results, record)


def test_saved_weights_are_those_that_were_measured_and_say_how_images_were_prepared(pretrained):
    record, path = pretrained
    data = record.environment["data"]
    preprocessing = saved_preprocessing(path)
    assert [255 * mean for mean in preprocessing.mean] == pytest.approx(data["mean"])
    assert (preprocessing.input_size, data["classes"]) == (32, list("01234"))
    assert load_file(path)["fc.weight"].shape == (5, 128)
    assert data["train"] + data["val"] < 1000  # about half of the digits


def test_the_backbone_stays_while_the_head_trains_alone_and_images_are_prepared_as_for_the_weights(
    pretrained, tmp_path
):
    before, path = pretrained
    recipe = {"base": "finetune", "head_epochs": 1, "batch_size": 16}
    record = run(
        tmp_path,
        save_weights=True,
        pretrained=str(path),
        classes=tuple("56789"),
        recipe=recipe,
        budget={"epochs": 1},
        limit_train=100,
    )
    assert record.environment["data"]["mean"] == pytest.approx(before.environment["data"]["mean"])
    old, new = load_file(path), load_file(weights_of(tmp_path, record))
    moved = {name for name in old if not (old[name] == new[name]).all()}
    assert moved == {"fc.weight", "fc.bias"}
    assert set(record.environment["weights"]["loaded"]) == set(old)
    assert not record.environment["weights"]["fresh"]
    assert read_record(record_path(tmp_path, record.run_id)).config["pretrained_sha256"]


def test_what_cannot_be_is_told_before_anything_runs(tmp_path):
    with pytest.raises(DataError, match=r"no class 'nine'.*It has 0, 1"):
        run(tmp_path, classes=("nine",))
    with pytest.raises(ConfigError, match="--save-weights"):
        run("memory://bucket", save_weights=True)
    with pytest.raises(ConfigError, match="head_lr"):
        load_plan("quick", {"recipe": {"head_epochs": 2}})


def test_statistics_can_only_be_kept_of_pretrained_weights():
    with pytest.raises(ConfigError, match=r"freeze_batch_norm.*set pretrained"):
        load_plan("quick", {"recipe": "finetune"})
