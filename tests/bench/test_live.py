import os
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bench.config import load_plan
from bench.errors import ConfigError, RecordError
from bench.live import BARS, SPARKLINE_WIDTH, LiveLog, live_path, read_live, render_live, sparkline
from bench.records import RunRecord
from bench.trackers import create_tracker

RUNS = load_plan("quick", {"seeds": [0, 1]}).expand(
    models=["lenet5", "simple_cnn"], data_sha256="0", device="cpu", threads=1, autocast=False, channels_last=False
)


def row(epoch, loss, top1=None):
    values = {
        "epoch": epoch,
        "step": 10 * epoch,
        "seconds": 1.0,
        "train_loss": loss,
        "train_top1": 0.1,
        "images_per_s": 9.0,
    }
    return values | ({"val_top1": top1} if top1 is not None else {})


def record(run, status="completed"):
    return RunRecord(
        run_id=run.run_id, status=status, config={}, environment={}, metrics={"test_top1": 0.5, "steps": 3},
        history=[row(0, 1.0, 0.25)],
    )  # fmt: skip


def shown(state):
    console = Console(width=140, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    console.print(render_live(state))
    return console.export_text()


def test_the_file_follows_the_plan(tmp_path):
    log = LiveLog(str(tmp_path))
    log.begin(RUNS, [record(RUNS[0])])
    assert [run.state for run in read_live(tmp_path).runs] == ["completed", "waiting", "waiting", "waiting"]
    log.run_begins(RUNS[1])
    log.run_goes_on({"event": "phase", "phase": "measure_infer"})
    assert "measure infer" in shown(read_live(tmp_path))
    for share, values in ((0.1, row(0, 2.0)), (0.2, row(0, 1.5)), (0.3, row(0, 1.0, 0.3)), (0.4, row(1, 0.5))):
        log.run_goes_on({"event": "row", "row": values, "share": share})
    live = read_live(tmp_path).runs[1]
    assert [each["train_loss"] for each in live.rows] == [1.0, 0.5]  # the newest row of each epoch
    assert live.share == 0.4
    log.run_ends(record(RUNS[1], "diverged"))
    assert read_live(tmp_path).runs[1].state == "diverged"
    log.run_begins(RUNS[2])
    log.close()
    state = read_live(tmp_path)
    assert state.ended
    assert state.runs[2].state == "waiting"
    assert "2 of 4 runs done; ended" in shown(state)


def test_a_plan_that_never_began_leaves_nothing(tmp_path):
    LiveLog(str(tmp_path / "none")).close()
    assert not (tmp_path / "none").exists()
    with pytest.raises(RecordError, match="no plan has run"):
        read_live(tmp_path / "none")


def test_damaged_state_is_told(tmp_path):
    (tmp_path / "live.json").write_text('{"runs": [')
    assert live_path(tmp_path).endswith("live.json")
    with pytest.raises(RecordError):
        read_live(tmp_path)


def test_a_full_disk_costs_the_view_and_not_the_run(small_disk):
    log = LiveLog(str(small_disk))
    log.begin(RUNS, [])
    (small_disk / "ballast").write_bytes(b"x" * (1024 * 1024 - 16384))
    log.run_begins(RUNS[0])
    with pytest.warns(UserWarning, match="No space left"):
        log.run_goes_on({"event": "row", "row": row(0, 1.0) | {"pad": "x" * 100_000}, "share": 0.1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log.run_goes_on({"event": "row", "row": row(0, 1.0) | {"pad": "x" * 100_000}, "share": 0.1})


def test_sparkline_values():
    assert sparkline([0.0, 1.0]) == "▁█"
    assert sparkline([1.0, 0.5, 0.0], width=2) == "█▁"
    assert sparkline([3.0, 3.0]) == "▁▁"
    assert sparkline([]) == ""


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60))
def test_sparkline_keeps_the_order(values):
    drawn = [BARS.index(bar) for bar in sparkline(values)]
    shown = values[-SPARKLINE_WIDTH:]
    assert len(drawn) == len(shown)
    by_value = [bar for _, bar in sorted(zip(shown, drawn, strict=True))]
    assert by_value == sorted(drawn)


def test_tensorboard_gets_the_figures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = create_tracker("tensorboard", str(tmp_path))
    tracker.begin(RUNS, [])
    tracker.run_begins(RUNS[0])
    tracker.run_goes_on({"event": "phase", "phase": "train"})
    for epoch, loss in enumerate((2.0, 1.0)):
        tracker.run_goes_on({"event": "row", "row": row(epoch, loss), "share": 0.5})
    tracker.run_ends(record(RUNS[0]))
    events = EventAccumulator(str(tmp_path / "tensorboard" / RUNS[0].run_id)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train_loss")] == [(0, 2.0), (10, 1.0)]
    assert events.Scalars("test_top1")[0].value == 0.5


def test_unknown_tracker():
    with pytest.raises(ConfigError, match="tensorboard"):
        create_tracker("wandb", "results")
