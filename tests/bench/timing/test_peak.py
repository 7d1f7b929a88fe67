"""The peak is the best of several forms, in the layout and the type that a network multiplies in."""

import pytest
import torch

from bench.counting.complexity import count_macs
from bench.timing import peak
from bench.timing.clock import HostClock
from bench.timing.peak import Peak, create_forms, measure_peak
from bench.timing.setting import Setting

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(peak, "FORM_SECONDS", 0.002)
    monkeypatch.setattr(peak, "SIDES", (64, 128))
    monkeypatch.setattr(peak, "CHANNELS", (16,))


class ByForm:
    """A clock on which the n-th form takes the n-th time a step."""

    def __init__(self, seconds):
        self.seconds, self.steps = iter(seconds), []

    def time_block(self, step, steps):
        if step not in self.steps:
            self.steps.append(step)
            self.now = next(self.seconds)
        return self.now * steps


def test_the_peak_is_the_fastest_form_and_has_its_name():
    macs = [form.macs for form in create_forms(Setting(CPU, 32))]
    found = measure_peak(Setting(CPU, 32), ByForm([1e-3, 1e-3, 1e-3, macs[3] / 1e12]))
    assert found.form == "3×3 convolution, 16 channels"
    assert found.macs_per_s == pytest.approx(1e12)
    assert list(found.by_form.values())[:3] == pytest.approx([1000 * each for each in macs[:3]])
    assert Peak({"a": 1.0, "b": 3.0}).form == "b"


def test_forms_that_would_take_long_are_left_out():
    """As in a type for which the processor has no instructions: a thousandth of the rate."""
    macs = [form.macs for form in create_forms(Setting(CPU, 32))]
    assert macs[0] < macs[2] < 7 * macs[0] < macs[1] < macs[3]
    found = measure_peak(Setting(CPU, 32), ByForm([1 / 7, 1.0]))
    assert list(found.by_form) == ["matrix product, 64×64", "1×1 convolution, 16 channels"]


def test_a_short_measurement_leaves_the_long_forms_out():
    macs = [form.macs for form in create_forms(Setting(CPU, 32))]
    rate = macs[0] / 1e-3
    found = measure_peak(Setting(CPU, 32), ByForm([1e-3] * 4), seconds=4.5 * macs[2] / rate)
    assert list(found.by_form) == ["matrix product, 64×64", "1×1 convolution, 16 channels"]


class Convolution(torch.nn.Module):
    """A form as a network, to be counted."""

    def __init__(self, step):
        super().__init__()
        self.step, self.weight = step, torch.nn.Parameter(step.args[1])

    def forward(self, x):
        return self.step.func(x, self.weight, **self.step.keywords)


def test_forms_say_what_they_compute():
    *products, pointwise, dense = create_forms(Setting(CPU, 32))
    for form in (pointwise, dense):
        images = form.step.args[0]
        assert form.macs == len(images) * count_macs(Convolution(form.step), images.shape[1:])
    for form, side in zip(products, (64, 128), strict=True):
        assert form.macs == side**3
        assert form.step().shape == (side, side)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(
    ("options", "dtype"),
    [({}, torch.float32), ({"autocast": True}, torch.bfloat16), ({"dtype": "bfloat16"}, torch.bfloat16)],
)
def test_operands_have_the_type_that_is_multiplied_so_that_no_cast_is_timed(options, dtype, channels_last):
    setting = Setting(CPU, 32, channels_last=channels_last, **options)
    for form in create_forms(setting):
        assert {operand.dtype for operand in form.step.args} == {dtype}
        maps = [operand for operand in form.step.args if operand.ndim == 4]
        assert all(operand.is_contiguous(memory_format=setting.memory_format) for operand in maps)
        with setting.inference():
            assert form.step().dtype == dtype


def test_each_form_is_timed():
    found = measure_peak(Setting(CPU, 32), HostClock())
    assert len(found.by_form) == 4
    assert all(rate > 1e6 for rate in found.by_form.values())
    assert found.macs_per_s == max(found.by_form.values())
