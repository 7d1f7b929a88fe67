"""Every kind of flag has words, and the reports use them."""

import ast
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from bench.flags import FLAG_WORDS, REMARKS, Flag, FlagKind, flag_words
from bench.gate.result import CompareOptions, Comparison, ModelResult
from bench.gate.revisions import Side
from bench.gate.summary import remarks
from bench.gate.timing.interference import Notice
from bench.gate.timing.sample import PairSample
from bench.records import RunRecord, save_record
from reports.data.loading import load_runs
from reports.pages.snapshot import _disturbances

BENCH = Path(__file__).parents[2] / "bench"
FUNCTIONS = {"Flag", "Notice", "_flag"}


def emitted():
    """Each kind that the code names where it makes a flag or a notice: as an argument, or first in a pair."""
    for file in sorted(BENCH.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        notices = file.name in ("nvml.py", "contention.py")
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                given = [*node.args[:1], *(each.value for each in node.keywords if each.arg == "kind")]
                if name in FUNCTIONS:
                    yield from (each.value for each in given if isinstance(each, ast.Constant))
            elif notices and isinstance(node, ast.Tuple) and len(node.elts) == 2 and is_text(node.elts[1]):
                yield from (each.value for each in node.elts[:1] if isinstance(each, ast.Constant))


def is_text(node):
    return isinstance(node, ast.JoinedStr | ast.Name)


def test_remarks_on_a_run_are_no_disturbance(tmp_path):
    assert set(get_args(FlagKind)) > REMARKS
    flags = [Flag(kind=kind, phase="train", message="so much") for kind in ("layout", "load", "peak_exceeded")]
    for number, own in enumerate((flags[::2], flags)):
        record = RunRecord(run_id=f"r{number}", status="completed", config={}, environment={}, flags=own)
        save_record(record, str(tmp_path))
    assert load_runs(tmp_path).set_index("run_id").disturbed.to_dict() == {"r0": 0, "r1": 1}


def test_every_kind_that_is_emitted_has_words():
    found = set(emitted())
    assert found == set(get_args(FlagKind)) == FLAG_WORDS.keys()
    assert {"gpu_load", "gpu_throttling", "gpu_clock", "gpu_unknown", "launch_bound", "load"} <= found
    assert all(
        words == words.strip() and "_" not in words.replace("channels_last", "") for words in FLAG_WORDS.values()
    )


@pytest.mark.parametrize("kind", get_args(FlagKind))
def test_reports_say_the_words(kind):
    flag = Flag(kind=kind, phase="measure_infer", message="so much")
    assert str(flag) == f"{FLAG_WORDS[kind]} during measure infer: so much"
    record = RunRecord(run_id="a", status="completed", config={}, environment={}, flags=[flag])
    (row,) = _disturbances({"a": record})
    assert (row["kind"], row["phase"]) == (FLAG_WORDS[kind], "measure infer")
    side, pair = Side("here"), PairSample((), (1, 1), (0.01, 0.01), 1.0, (Notice(kind, "so much"),))
    comparison = Comparison(side, side, CompareOptions(), ({}, {}), (), (ModelResult("a", "unchanged", pairs=(pair,)),))
    words = FLAG_WORDS[kind]
    assert f"{words[0].upper()}{words[1:]}, 1 of 1 pairs: so much." in remarks(comparison)


def test_a_kind_of_another_version_is_read_and_shown_by_its_name():
    flag = Flag.model_validate({"kind": "sun_spots", "phase": "", "message": "many"})
    assert str(flag) == "sun spots: many"
    assert flag_words("few_blocks") == "few blocks were timed"
    with pytest.raises(ValidationError, match="expected text"):
        Flag.model_validate({"kind": 3, "phase": "", "message": "many"})
