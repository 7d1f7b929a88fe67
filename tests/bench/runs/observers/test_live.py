import io
import os
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bench.config import Rates, load_plan
from bench.errors import ConfigError, RecordError
from bench.events import Note, Phase, PlanBegins, PlanEnds, Row, RunBegins, RunEnds
from bench.records import RunRecord
from bench.runs.observers.display import LineDisplay
from bench.runs.observers.live import BARS, SPARKLINE_WIDTH, LiveLog, live_path, read_live, render_live, sparkline
from bench.runs.observers.tensorboard import create_tracker

MODELS = dict.fromkeys(("lenet5", "simple_cnn"), Rates(0.1, 5e-4))
RUNS = tuple(
    load_plan("quick", {"seeds": [0, 1]}).expand(
        models=MODELS, data_sha256="0", input_size=32, device="cpu", threads=1, autocast=False, channels_last=False
    )
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
    log = LiveLog(str(tmp_path), share=1.0)
    log.on(PlanBegins(RUNS, (record(RUNS[0]),)))
    assert [run.state for run in read_live(tmp_path).runs] == ["completed", "waiting", "waiting", "waiting"]
    log.on(RunBegins(RUNS[1]))
    log.on(Phase("measure_infer"))
    assert "measure infer" in shown(read_live(tmp_path))
    for share, values in ((0.1, row(0, 2.0)), (0.2, row(0, 1.5)), (0.3, row(0, 1.0, 0.3)), (0.4, row(1, 0.5))):
        log.on(Row(values, share))
    live = read_live(tmp_path).runs[1]
    assert [each["train_loss"] for each in live.rows] == [1.0, 0.5]  # the newest row of each epoch
    assert live.share == 0.4
    log.on(RunEnds(record(RUNS[1], "diverged")))
    assert read_live(tmp_path).runs[1].state == "diverged"
    log.on(RunBegins(RUNS[2]))
    log.on(PlanEnds())
    state = read_live(tmp_path)
    assert state.ended
    assert state.runs[2].state == "waiting"
    assert "2 of 4 runs done; ended" in shown(state)


def test_several_runs_at_once_each_have_their_lines_and_one_that_is_tried_again_its_rows_once(tmp_path):
    out = io.StringIO()
    observers = [LiveLog(str(tmp_path)), LineDisplay(Console(file=out, width=200))]
    events = [PlanBegins(RUNS), RunBegins(RUNS[0]), RunBegins(RUNS[1])]
    events += [Row(row(epoch, 1.0), 0.1, RUNS[0].run_id) for epoch in (0, 1, 2, 1)]
    events += [Phase("waiting", RUNS[1].run_id), Phase("test", RUNS[1].run_id)]
    events += [Note("fits", RUNS[0].run_id), Note("fits too", RUNS[1].run_id)]
    for event in events:
        for observer in observers:
            observer.on(event)
    assert [each["epoch"] for each in read_live(tmp_path).runs[0].rows] == [0, 1]
    ended = record(RUNS[0], "diverged").model_copy(update={"config": RUNS[0].model_dump()})
    observers[1].on(RunEnds(ended))
    lines = out.getvalue().splitlines()
    assert lines[:2] == [f"[{k + 1}/4] {RUNS[k].model} seed {RUNS[k].seed}: begins" for k in (0, 1)]
    assert f"[1/4] {RUNS[0].model} seed {RUNS[0].seed}: fits" in lines
    assert [line for line in lines if "waits" in line] == [
        f"[2/4] {RUNS[1].model} seed {RUNS[1].seed}: waits for another process, which does the same run in this folder"
    ]
    assert f"[2/4] {RUNS[1].model} seed {RUNS[1].seed}: fits too" in lines
    assert lines[-1].startswith("[1/4] ")


def test_a_plan_that_never_began_leaves_nothing(tmp_path):
    LiveLog(str(tmp_path / "none")).on(PlanEnds())
    assert not (tmp_path / "none").exists()
    with pytest.raises(RecordError, match="no plan has run"):
        read_live(tmp_path / "none")


def test_damaged_state_is_told(tmp_path):
    (tmp_path / "live.json").write_text('{"runs": [')
    assert live_path(tmp_path).endswith("live.json")
    with pytest.raises(RecordError):
        read_live(tmp_path)


def test_a_full_disk_costs_the_view_and_not_the_run(small_disk):
    log = LiveLog(str(small_disk), share=1.0)
    log.on(PlanBegins(RUNS))
    (small_disk / "ballast").write_bytes(b"x" * (1024 * 1024 - 16384))
    log.on(RunBegins(RUNS[0]))
    with pytest.warns(UserWarning, match="No space left"):
        log.on(Row(row(0, 1.0) | {"pad": "x" * 100_000}, 0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log.on(Row(row(0, 1.0) | {"pad": "x" * 100_000}, 0.1))


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
    tracker.on(PlanBegins(RUNS))
    tracker.on(RunBegins(RUNS[0]))
    tracker.on(Phase("train"))
    for epoch, loss in enumerate((2.0, 1.0)):
        tracker.on(Row(row(epoch, loss), 0.5))
    tracker.on(RunEnds(record(RUNS[0])))
    events = EventAccumulator(str(tmp_path / "tensorboard" / RUNS[0].run_id)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train_loss")] == [(0, 2.0), (10, 1.0)]
    assert events.Scalars("test_top1")[0].value == 0.5


def test_unknown_tracker():
    with pytest.raises(ConfigError, match="tensorboard"):
        create_tracker("wandb", "results")
