import pytest

from bench.config import Rates, load_plan
from bench.runs.training_metrics import training_metrics
from bench.training.progress import Training


def metrics(accuracies, head_epochs=2, **overrides):
    recipe = {"base": "quick", "head_epochs": head_epochs, "head_lr": 1e-3}
    plan = load_plan("quick", {"models": ["lenet5"], "recipe": recipe} | overrides)
    (config,) = plan.expand(
        models={"lenet5": Rates(0.1, 0.0)},
        data_sha256="0" * 64,
        input_size=32,
        device="cpu",
        threads=1,
        autocast=False,
        channels_last=True,
    )
    history = [{"val_top1": accuracy, "train_loss": 1.0} for accuracy in accuracies]
    training = Training(step=30, images_seen=240, seconds=1.5, micro_batch_size=8, history=history)
    return training_metrics(training, config, 10, 8)


@pytest.mark.parametrize(("last", "flagged"), [(0.59, True), (0.6, False), (0.7, False)])
def test_a_fine_tuning_that_ended_below_the_head_alone_is_flagged(last, flagged):
    found, flags = metrics([0.5, 0.6, 0.8, last])
    assert found["head_only_top1"] == 0.6
    assert [flag.kind for flag in flags] == ["below_head_only"] * flagged
    if flagged:
        assert "59.0% on val, below the 60.0%" in flags[0].message


def test_without_a_phase_of_the_head_alone_there_is_no_such_accuracy():
    assert "head_only_top1" not in metrics([0.5, 0.6], head_epochs=0)[0]
    assert "head_only_top1" not in metrics([0.5], head_epochs=2)[0]  # the budget ended within it


def test_what_is_counted():
    found, flags = metrics([0.5])
    assert (found["epochs"], found["steps"], found["images_seen"], found["train_seconds"]) == (3.0, 30, 240, 1.5)
    assert found["val_top1"] == 0.5
    assert flags == []
