import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.events import Note, Phase, Row, Unsaved, from_json, read_events, to_json

ROW = {"epoch": 0, "step": 7, "train_loss": 2.25, "train_top1": 1 / 3, "images_per_s": 1e6}


@pytest.mark.parametrize(
    "event", [Phase("measure_infer"), Row(ROW | {"val_top1": 0.1 + 0.2}, 0.5), Note("3 of 4"), Unsaved("ü\n\u2028")]
)
def test_events_come_back_as_they_were_sent_each_on_one_line(event):
    line = to_json(event)
    assert "\n" not in line
    assert from_json(line) == event


def test_a_loss_that_is_not_finite_arrives_as_none():
    assert from_json(to_json(Row(ROW | {"train_loss": math.nan}, 0.5))).row["train_loss"] is None


BAD = [
    "",
    "hello",
    "[1]",
    "{}",
    '{"event": "nothing"}',
    '{"event": "phase"}',
    '{"event": "row", "row": {"epoch": 1}, "share": 0.5}',
    to_json(Row(ROW, 0.5)).replace("7", '"seven"'),
    b"\xff\xfe",
]


@pytest.mark.parametrize("line", BAD)
def test_what_is_no_event_is_said_in_one_line(line):
    with pytest.raises(ValueError, match=r"^not an event: .+") as caught:
        from_json(line)
    assert "\n" not in str(caught.value)


@given(st.text() | st.binary())
def test_nothing_but_a_value_error_comes_of_noise(line):
    with pytest.raises(ValueError, match="not an event"):
        from_json(line)


def test_noise_between_events_is_warned_about_once_and_skipped():
    good = [Phase("load"), Phase("train")]
    with pytest.warns(UserWarning, match="hello") as caught:
        found = list(read_events(["hello\n", to_json(good[0]) + "\n", *BAD, to_json(good[1]) + "\n"]))
    assert found == good
    assert len(caught) == 1
