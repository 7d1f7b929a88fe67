"""Steps as CUDA graphs, and what says that a step is bound by launching, on the scripted GPU."""

import dataclasses
import gc
import weakref

import pytest
import torch

import zoo
from bench.cli.compare import create_options
from bench.config import MeasureConfig, Recipe
from bench.cuda_graph import LAUNCH_BOUND, WARM_UP_STEPS, CaptureError, capture, launch_bound, why_impossible
from bench.errors import ConfigError, DeviceError, UserError
from bench.gate.result import CompareOptions, Comparison, ModelResult
from bench.gate.revisions import Side
from bench.gate.statistics.verdicts import Judgement, Verdict
from bench.gate.summary import comparison_to_dict, remarks, row
from bench.gate.timing.block import time_block
from bench.gate.timing.interference import Interference
from bench.gate.timing.pair import BlockWork, Built
from bench.gate.timing.sample import PairSample
from bench.gate.timing.subject import Setting, Subject
from bench.gate.timing.worker import Commands
from bench.runs.speed_check import look_at_speed
from bench.timing import setting as timing
from bench.timing.clock import CudaClock
from bench.training.step import create_timed_step

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 1)


def three_kernels(gpu):
    for _ in range(3):
        gpu.launch(0.001, 0.003)


def test_a_graph_is_the_step_without_its_launches(gpu):
    launched, replayed = CudaClock(CUDA), CudaClock(CUDA)
    assert launched.time_block(lambda: three_kernels(gpu), 10) / 10 == pytest.approx(0.009, rel=0.02)
    assert launched.launch_share > LAUNCH_BOUND
    replay = capture(lambda: three_kernels(gpu), CUDA)
    assert replayed.time_block(replay, 10) / 10 == pytest.approx(0.003, rel=0.02)
    assert replayed.launch_share < 0.01


def test_a_step_is_warmed_up_on_a_stream_of_its_own_and_captured_once(gpu):
    capture(lambda: gpu.launch(0.001), CUDA)
    calls = [call for call in gpu.calls if call != "device"]
    assert calls == ["streams in order", *["kernel aside"] * WARM_UP_STEPS, "streams in order", "kernel captured"]


def test_the_memory_of_a_step_lives_as_long_as_its_graph(gpu):
    class Images:
        pass

    images = Images()
    alive = weakref.ref(images)
    replay = capture(lambda images=images: gpu.launch(0.001), CUDA)
    del images
    gc.collect()
    assert alive() is not None
    del replay
    gc.collect()
    assert alive() is None


def test_a_step_that_waits_is_refused_with_its_own_reason(gpu):
    with pytest.raises(CaptureError, match=r"not permitted when stream is capturing.*measure without --cuda-graph"):
        capture(lambda: gpu.capturing and gpu.synchronize(CUDA), CUDA)


def test_memory_that_does_not_suffice_for_a_graph_is_the_same_as_without(gpu):
    def step():
        if gpu.capturing:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        capture(step, CUDA)


def test_a_graph_is_refused_on_a_processor_and_in_another_runtime():
    assert why_impossible("cuda:1") is None
    assert "runtime=compile" in why_impossible("cuda", "compile")
    with pytest.raises(CaptureError, match="needs a CUDA device, and this is cpu"):
        capture(lambda: None, CPU)
    setting = timing.Setting(CPU, 32, cuda_graph=True)
    assert setting.describe()["cuda_graph"] is True
    with pytest.raises(ConfigError, match="lenet5: --cuda-graph needs a CUDA device"):
        look_at_speed("lenet5", setting, MeasureConfig(), ("infer",), 10, lambda phase: None)
    with pytest.raises(UserError, match="--cuda-graph needs a CUDA device"):
        Setting(device="cpu", cuda_graph=True)
    with pytest.raises(UserError, match="captures eager mode only"):
        Subject("lenet5", runtime="compile").to_worker(Setting(device="cuda", cuda_graph=True))


def test_the_gate_asks_for_a_gpu_before_it_starts_anything(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    given = dict.fromkeys(("threads", "mode", "input_size", "num_classes", "in_chans", "dtype"))
    options = {"budget": 1, "batch_size": None, "as_run": False, **given, "cuda_graph": True}
    with pytest.raises(UserError, match="--cuda-graph needs a CUDA device, and this is cpu"):
        create_options("lenet5", device="auto", **options)
    with pytest.raises(DeviceError, match="--device cuda is not possible"):
        create_options("lenet5", device="cuda", **options)


def test_with_and_without_a_graph_is_not_the_same_work():
    with_graph, without = Setting(device="cuda", cuda_graph=True), Setting(device="cuda")
    assert with_graph.task != without.task
    assert "CUDA graph" in str(with_graph.task)
    assert "CUDA graph" not in str(without.task)


def test_a_worker_captures_the_step_that_it_times_and_measures_the_memory_of_the_other(gpu, monkeypatch):
    def eager_step(worker, zoo, subject):
        return lambda: three_kernels(gpu)

    monkeypatch.setattr(Commands, "_eager_step", eager_step)
    worker = Commands()
    worker._device = CUDA
    for graph, seconds, share in ((False, 0.009, 1.0), (True, 0.003, 0.0)):
        setting = Setting(device="cuda:1", cuda_graph=graph)
        step = worker._create_step(None, Subject("lenet5").to_worker(setting))
        block = worker._time(step, 10)
        assert block["seconds"] / 10 == pytest.approx(seconds, rel=0.25)
        assert block["launch_seconds"] * 10 / block["seconds"] == pytest.approx(share, abs=0.1)


def test_on_a_processor_a_block_has_no_time_of_launching():
    assert time_block(lambda: None, 2, CPU).keys() == {"seconds", "cpu_seconds", "involuntary_switches"}


class Launching:
    """A worker whose blocks of ten steps take 0.1 s, of which launching a step of each subject takes so much."""

    def __init__(self, *launch_seconds):
        self.launch_seconds = launch_seconds

    def ask(self, command, subject, steps):
        assert (command, steps) == ("run", 10)
        launching = {"launch_seconds": self.launch_seconds[subject]} if self.launch_seconds else {}
        return {"seconds": 0.1, "cpu_seconds": 0.1, "involuntary_switches": 0} | launching


def pair(*launch_seconds):
    worker, interference = Launching(*launch_seconds), Interference()
    built = Built({0: (worker, 0), 1: (worker, 1)}, (0.01, 0.01), Setting(device="cuda"))
    four = built.measure_abba(BlockWork((10, 10)), (0, 1, 1, 0), interference)
    return PairSample((four,), (10, 10), (0.01, 0.01), 1.0, (), interference.launch_share)


@pytest.mark.parametrize(("launching", "bound"), [((0.001, 0.0095), True), ((0.0089, 0.001), False), ((), False)])
def test_a_comparison_says_which_models_are_bound_by_launching(launching, bound):
    judgement = Judgement(Verdict.UNCHANGED, 0.0, -0.01, 0.01, 0.95, 0.02, None, "equal")
    result = ModelResult("resnet20", Verdict.UNCHANGED, judgement=judgement, batch_size=8, pairs=(pair(*launching),))
    side = Side("here")
    comparison = Comparison(side, side, CompareOptions(), ({}, {}), (), (result,))
    assert row(result)[1] == ("unchanged, launch-bound" if bound else "unchanged")
    begins = "Launch-bound: resnet20: launching kernels took 95%"
    assert sum(line.startswith(begins) for line in remarks(comparison)) == bound
    assert comparison_to_dict(comparison)["results"][0]["launch_share"] == pytest.approx(
        100 * max(launching, default=0)
    )
    assert dataclasses.replace(result, pairs=()).launch_bound is None


def test_the_limit_is_nine_tenths_of_a_step():
    assert launch_bound(LAUNCH_BOUND, 8) is None
    assert "91% of a step at batch size 8" in launch_bound(0.91, 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("autocast", [False, True])
def test_a_real_graph_computes_what_the_step_computes(autocast):
    device, losses = torch.device("cuda"), []
    for graph in (False, True):
        torch.manual_seed(0)
        network = zoo.create_model("resnet20").to(device, memory_format=torch.channels_last)
        images = torch.randn(8, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
        step = create_timed_step(network, network, images, autocast, recipe=Recipe())
        if graph:
            step = capture(step, device)  # after as many steps that warm up
        else:
            for _ in range(WARM_UP_STEPS):
                step()
        for _ in range(5):
            step()
        torch.cuda.synchronize()
        losses.append([parameter.detach().float().clone() for parameter in network.parameters()])
    for one, other in zip(*losses, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
