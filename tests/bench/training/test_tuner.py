import math

import pytest
import torch
from torch import nn

import zoo
from bench.config import Recipe
from bench.training.tuner import GAIN, Form, FormTimer, FormUnavailableError, Tuning, tune

LONG, SHORT = (lambda seconds: 3600.0), (lambda seconds: 1.0)
OPEN = {"autocast", "channels_last"}


def measuring(costs, noise=()):
    """Seconds of each form, the first times multiplied by the noise; also the forms in the order they were timed."""
    seen, noise = [], list(noise)

    def measure(form):
        seen.append(form)
        if form not in costs:
            raise FormUnavailableError("no such kernel")
        return costs[form] * (noise.pop(0) if noise else 1.0)

    return measure, seen


FLOAT, BFLOAT = Form(channels_last=True), Form(autocast=True, channels_last=True)
CONTIGUOUS = Form()


def test_each_option_is_decided_with_what_was_decided_before():
    measure, seen = measuring({FLOAT: 2.0, BFLOAT: 1.0, Form(autocast=True): 0.5, CONTIGUOUS: 0.1})
    tuning = tune(FLOAT, OPEN, measure, training_seconds=LONG)
    assert tuning.form == Form(autocast=True)
    assert tuning.images_per_s == {"float32, channels_last": 0.5, "bfloat16, channels_last": 1.0,
                                   "bfloat16, contiguous": 2.0}  # fmt: skip
    assert CONTIGUOUS not in seen


@pytest.mark.parametrize(("gain", "taken"), [(GAIN * 0.99, False), (GAIN * 1.01, True)])
def test_a_small_gain_changes_nothing(gain, taken):
    measure, _ = measuring({FLOAT: 1.0, BFLOAT: 1 / gain})
    assert tune(FLOAT, {"autocast"}, measure, training_seconds=LONG).form.autocast == taken


def test_one_disturbed_block_does_not_decide():
    measure, _ = measuring({FLOAT: 1.0, BFLOAT: 1.0}, noise=[9.0, 1.0, 9.0, 1.0])
    assert tune(FLOAT, {"autocast"}, measure, training_seconds=LONG).form == FLOAT


def test_forms_take_turns():
    measure, seen = measuring({FLOAT: 1.0, BFLOAT: 1.0})
    tune(FLOAT, {"autocast"}, measure, training_seconds=LONG)
    assert seen[1:] == [BFLOAT, FLOAT, FLOAT, BFLOAT, BFLOAT, FLOAT]


def test_a_hopeless_form_is_timed_once():
    """Where a processor has no instructions for bfloat16, a step of a large network takes minutes."""
    measure, seen = measuring({FLOAT: 1.0, BFLOAT: 10.0})
    assert tune(FLOAT, {"autocast"}, measure, training_seconds=LONG).form == FLOAT
    assert seen.count(BFLOAT) == 1


def test_named_options_are_kept_and_nothing_is_timed():
    measure, seen = measuring({})
    assert tune(BFLOAT, (), measure, training_seconds=LONG) == Tuning(BFLOAT, reason="every choice was named")
    assert seen == []


def test_a_short_training_is_not_tuned():
    measure, seen = measuring({FLOAT: 1.0, BFLOAT: 0.1})
    tuning = tune(FLOAT, OPEN, measure, training_seconds=SHORT)
    assert (tuning.form, seen) == (FLOAT, [FLOAT])
    assert "too short" in tuning.reason


@pytest.mark.parametrize(("steps", "tuned"), [(23, False), (25, True)])
def test_a_training_of_few_steps_is_not_tuned_however_long_they_are(steps, tuned):
    """Both options take twelve steps to time, and the training must be twice as long."""
    measure, seen = measuring({FLOAT: 10.0, BFLOAT: 10.0, CONTIGUOUS: 10.0})
    tune(FLOAT, OPEN, measure, training_seconds=lambda seconds: seconds * steps * 8, batch_size=8)
    assert (len(seen) > 1) == tuned


def test_compiling_is_tried_where_training_is_long():
    costs = {Form(): 1.0, Form(compile=True): 0.5}
    for hours, taken in ((0.1, False), (10, True)):
        measure, _ = measuring(costs)
        tuning = tune(Form(), {"compile"}, measure, training_seconds=lambda seconds, hours=hours: hours * 3600)
        assert tuning.form.compile == taken
        assert ("too short for compiling" in tuning.reason) != taken


def test_a_form_that_does_not_work_is_left_out_and_reported():
    measure, _ = measuring({FLOAT: 1.0})
    tuning = tune(FLOAT, {"autocast"}, measure, training_seconds=LONG)
    assert tuning.form == FLOAT
    assert tuning.failed == {"bfloat16, channels_last": "no such kernel"}
    with pytest.raises(FormUnavailableError):
        tune(BFLOAT, {"autocast"}, measure, training_seconds=LONG)


def test_a_tuning_is_read_as_it_was_kept():
    tuning = Tuning(BFLOAT, {"float32, channels_last": 1.5}, {"bfloat16, contiguous": "why"}, "reason")
    assert Tuning.from_dict(tuning.to_dict()) == tuning


class Ticks:
    """A clock that goes on by a second each time it is read."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


def test_timing_leaves_no_trace_and_divides_by_the_images():
    torch.manual_seed(0)
    net = zoo.create_model("simple_cnn")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    images = torch.randn(4, 3, 32, 32)
    state = torch.get_rng_state()
    timer = FormTimer(net, images, Recipe(), clock=Ticks())
    assert [timer(form) for form in (FLOAT, BFLOAT, CONTIGUOUS)] == [0.25] * 3
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_forms_compute_as_they_say():
    seen = set()

    class Sees(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 1)

        def forward(self, x):
            out = self.conv(x)
            if self.training:
                seen.add((out.dtype, x.is_contiguous(memory_format=torch.channels_last)))
            return out.mean((2, 3))

    timer = FormTimer(Sees(), torch.randn(2, 3, 4, 4), Recipe(), clock=Ticks())
    for form, expected in ((BFLOAT, (torch.bfloat16, True)), (CONTIGUOUS, (torch.float32, False))):
        seen.clear()
        timer(form)
        assert seen == {expected}


class Picky(nn.Module):
    """Runs out of memory above two images, and cannot compute in bfloat16."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 5)

    def forward(self, x):
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("not in bfloat16")
        if len(x) > 2:
            torch.empty(2**60)
        return self.fc(x.mean((2, 3)))


def test_a_batch_that_does_not_fit_is_halved_and_a_form_that_fails_is_unavailable():
    timer = FormTimer(Picky(), torch.randn(8, 3, 4, 4), Recipe(), clock=Ticks())
    assert timer(FLOAT) == 1 / 2
    with pytest.raises(FormUnavailableError, match="RuntimeError: not in bfloat16"):
        timer(BFLOAT)
    with pytest.raises(RuntimeError, match="not in bfloat16"):
        FormTimer(Picky(), torch.randn(2, 3, 4, 4), Recipe())(BFLOAT)
    assert not math.isinf(timer(FLOAT))
