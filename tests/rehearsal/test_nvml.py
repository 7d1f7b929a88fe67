"""What is said of a GPU's disturbances, on a driver of ours."""

import sys
import threading
from types import SimpleNamespace

import pynvml
import pytest
import torch
from scripted_nvml import ScriptedGpu, ScriptedNvml

from bench import nvml
from bench.gate.timing.pair import WorkerPair
from bench.gate.timing.subject import Setting
from bench.machine import describe_machine, incomparable
from bench.nvml import Board, GpuWatch, NvmlUnavailableError, watching

POWER_CAP, IDLE = pynvml.nvmlClocksEventReasonSwPowerCap, pynvml.nvmlClocksEventReasonGpuIdle
BRAKE, HEAT = pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown, pynvml.nvmlClocksEventReasonHwThermalSlowdown


def watch(driver, looks=1, own_processes=1, uuid="aaaa"):
    """The notices of a watch that ends after ``looks`` queries."""
    looked = threading.Semaphore(0)

    class Counting(Board):
        def look(self):
            try:
                return super().look()
            finally:
                looked.release()

    with driver.installed():
        watch = GpuWatch(lambda: Counting(uuid), own_processes)
        with watch:
            for _ in range(looks):
                assert looked.acquire(timeout=20)
        return watch.notices()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(nvml, "SECONDS_BETWEEN_LOOKS", 0.001)


def test_a_gpu_that_works_undisturbed_gives_no_notice():
    assert watch(ScriptedNvml(), looks=3) == []


def test_an_idle_gpu_has_a_low_clock_and_that_is_no_notice():
    answers = iter([(IDLE, 210), *[(0, 1980)] * 10**6])
    gpu = ScriptedGpu()

    def reasons():
        bits, gpu.clock_mhz = next(answers)
        return bits

    gpu.reasons = reasons
    assert watch(ScriptedNvml([gpu]), looks=5) == []


@pytest.mark.parametrize(
    ("bits", "words"), [(POWER_CAP, "its power cap"), (BRAKE, "the power brake"), (HEAT | POWER_CAP, "heat and its")]
)
def test_what_holds_the_gpu_back_is_named_with_clock_and_temperature(bits, words):
    ((kind, message),) = watch(ScriptedNvml([ScriptedGpu(reasons=bits, clock_mhz=1200, celsius=83)]))
    assert kind == "gpu_throttling"
    assert words in message
    assert "clock 1200 to 1200 MHz, at most 83 °C" in message
    assert "100%" in message


def test_a_clock_that_moves_while_the_gpu_works_is_named():
    clocks = iter([1980, *[1500] * 10**6])
    ((kind, message),) = watch(ScriptedNvml([ScriptedGpu(clock_mhz=lambda: next(clocks))]), looks=3)
    assert kind == "gpu_clock"
    assert "1500 to 1980 MHz" in message


def test_a_foreign_process_counts_on_this_gpu_alone():
    here, there = ScriptedGpu(), ScriptedGpu(uuid="GPU-bbbb", pids=(1, 2, 3))
    assert watch(ScriptedNvml([there, here])) == []
    here.pids = (4321, 99)
    assert watch(ScriptedNvml([there, here])) == [("gpu_load", "1 other process computed on this GPU")]
    assert watch(ScriptedNvml([there, here]), own_processes=2) == []


@pytest.mark.parametrize(
    ("driver", "words"),
    [
        (ScriptedNvml([ScriptedGpu(celsius=pynvml.NVMLError_NotSupported())]), "temperature: Not Supported"),
        (ScriptedNvml([ScriptedGpu(pids=pynvml.NVMLError_NoPermission())]), "processes: Insufficient Permissions"),
        (ScriptedNvml([ScriptedGpu(reasons=pynvml.NVMLError_GpuIsLost())]), "reasons of a lower clock: GPU is lost"),
        (ScriptedNvml(gone=("nvmlDeviceGetTemperature",)), "temperature: this NVML has no nvmlDeviceGetTemperature"),
    ],
)
def test_a_query_that_fails_is_said(driver, words):
    ((kind, message),) = watch(driver)
    assert kind == "gpu_unknown"
    assert words in message


def test_reasons_are_asked_under_the_name_that_is_there():
    gone = ("nvmlDeviceGetCurrentClocksEventReasons",)
    ((kind, _),) = watch(ScriptedNvml([ScriptedGpu(reasons=POWER_CAP)], gone))
    assert kind == "gpu_throttling"


def test_a_part_of_a_gpu_is_throttled_with_the_whole_and_has_processes_of_its_own():
    whole = ScriptedGpu(uuid="GPU-cccc", reasons=HEAT, pids=(1, 2, 3))
    part = ScriptedGpu(uuid="MIG-dddd", parent=whole)
    ((kind, _),) = watch(ScriptedNvml([whole, part]), uuid="dddd")
    assert kind == "gpu_throttling"


def test_a_driver_that_hangs_is_said_and_keeps_nobody(monkeypatch):
    monkeypatch.setattr(nvml, "PATIENCE_SECONDS", 0.01)
    asked, release = threading.Event(), threading.Event()

    def hang():
        asked.set()
        release.wait(60)
        return 50

    with ScriptedNvml([ScriptedGpu(celsius=hang)]).installed():
        with GpuWatch(lambda: Board("aaaa"), 1) as watch:
            assert asked.wait(20)
        notices = watch.notices()
        release.set()
        watch._thread.join(20)
    assert notices == [("gpu_unknown", "NVML had not answered after 0.01 s")]


@pytest.mark.parametrize(
    ("driver", "words"),
    [
        (ScriptedNvml([]), "does not answer for GPU aaaa: Not Found"),
        (ScriptedNvml(init_error=pynvml.NVMLError_DriverNotLoaded()), "Driver Not Loaded"),
    ],
)
def test_a_gpu_that_is_not_found_is_said(driver, words):
    with driver.installed():
        with pytest.raises(NvmlUnavailableError, match=words):
            Board("aaaa")
        with GpuWatch(lambda: Board("aaaa"), 1) as watch:
            watch._thread.join(20)
        ((kind, message),) = watch.notices()
    assert kind == "gpu_unknown"
    assert words in message


def describe(driver, monkeypatch, uuid="aaaa"):
    properties = SimpleNamespace(name="NVIDIA H100", total_memory=80 * 2**30, uuid=uuid)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    with driver.installed():
        return {"machine": describe_machine("cuda:0")}


def test_the_driver_the_power_limit_and_the_parts_of_a_gpu_decide_on_comparability(monkeypatch):
    here = describe(ScriptedNvml(), monkeypatch)
    facts = here["machine"]
    assert (facts["driver"], facts["power_limit_watts"], facts["max_clock_mhz"], facts["mig"]) == (
        "575.1", 700.0, 1980, False,
    )  # fmt: skip
    capped = describe(ScriptedNvml([ScriptedGpu(power_limit_milliwatts=500_000)]), monkeypatch)
    assert incomparable(here, capped) == ("power_limit_watts 700.0 → 500.0",)
    newer = describe(ScriptedNvml(driver="580.2"), monkeypatch)
    assert incomparable(here, newer) == ("driver 575.1 → 580.2",)
    whole = ScriptedGpu(uuid="GPU-cccc")
    part = describe(ScriptedNvml([whole, ScriptedGpu(uuid="MIG-dddd", parent=whole)]), monkeypatch, "dddd")
    assert incomparable(here, part) == ("mig False → True",)
    assert part["machine"]["power_limit_watts"] == 700.0


def test_a_fact_that_the_driver_does_not_say_leaves_the_others(monkeypatch):
    silent = ScriptedGpu(power_limit_milliwatts=pynvml.NVMLError_NotSupported())
    facts = describe(ScriptedNvml([silent]), monkeypatch)["machine"]
    assert "power_limit_watts" not in facts
    assert (facts["driver"], facts["max_clock_mhz"]) == ("575.1", 1980)
    lost = describe(ScriptedNvml([]), monkeypatch)["machine"]
    assert lost["driver"] == "NVML: Not Found"


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NvmlUnavailableError, match=r"pip install 'zoobench\[nvml\]'"):
        Board("aaaa")


def test_a_record_gets_the_notices_as_flags_and_a_processor_has_none(monkeypatch):
    monkeypatch.setattr(Board, "of", classmethod(lambda cls, device: cls("aaaa")))
    flags = []
    with ScriptedNvml([ScriptedGpu(pids=(1, 2, 3))]).installed(), watching("cuda", "train", flags):
        pass
    ((phase, kind),) = [(flag.phase, flag.kind) for flag in flags]
    assert (phase, kind) == ("train", "gpu_load")
    with watching("cpu", "train", flags):
        pass
    assert len(flags) == 1


def test_the_gate_watches_the_gpu_of_its_workers():
    class Worker:
        environment = {"machine": {"gpu_uuid": "aaaa"}}  # noqa: RUF012

    with ScriptedNvml([ScriptedGpu(uuid="GPU-bbbb"), ScriptedGpu(pids=(1, 2, 3))]).installed():
        watch = WorkerPair({"a": Worker(), "b": Worker()}, Setting(device="cuda")).watch_gpu()
        with watch:
            pass
        with watch:  # in the other order of building
            pass
        assert watch.notices() == [("gpu_load", "1 other process computed on this GPU")]
    assert WorkerPair({"a": Worker()}, Setting(device="cpu")).watch_gpu() is None
