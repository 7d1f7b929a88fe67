"""Networks in other runtimes: the same outputs, or an error; the threads that were asked for."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.runtimes import (
    EXPORTED,
    RUNTIMES,
    OutputsDifferError,
    RuntimeUnavailableError,
    check_installed,
    check_outputs,
    export_onnx,
    load_onnx,
    why_impossible,
)
from zoo import create_model

MISSING = {name: [each for each in needs if importlib.util.find_spec(each) is None] for name, needs in EXPORTED.items()}


def installed(runtime):
    reason = f"{runtime} is an extra: pip install {' '.join(MISSING[runtime])}"
    return pytest.param(runtime, marks=pytest.mark.skipif(bool(MISSING[runtime]), reason=reason))


EVERY = [installed(runtime) for runtime in EXPORTED]


@pytest.mark.parametrize("runtime", EVERY)
@pytest.mark.parametrize("name", ["lenet5", "mobilenet_v2", "fcn_resnet18", "torchvision/squeezenet1_1"])
def test_outputs_are_those_of_eager_mode(runtime, name):
    torch.manual_seed(0)
    network = create_model(name, input_size=32).eval()
    images = torch.randn(2, 3, 32, 32)
    step = load_onnx(export_onnx(network, images), runtime, images, threads=1)
    with torch.inference_mode():
        expected = network(images)
    assert check_outputs(expected, step(), runtime) < 1e-4
    assert check_outputs(expected, step(), runtime) < 1e-4  # again, from the same buffers


@pytest.mark.parametrize("runtime", EVERY)
def test_it_runs_by_as_many_threads_as_asked_for(runtime):
    network, images = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3)).eval(), torch.randn(8, 3, 64, 64)
    model = export_onnx(network, images)
    counts = []
    for threads in (1, 3):
        before = len(list(Path("/proc/self/task").iterdir()))
        step = load_onnx(model, runtime, images, threads)
        step()
        counts.append(len(list(Path("/proc/self/task").iterdir())) - before)
        del step
    assert counts[1] - counts[0] in ((2,) if runtime == "onnxruntime" else (1, 2))


class Branching(nn.Module):
    """Takes another way where it is exported, as a trace may do without a word."""

    def forward(self, x):
        return x.mean((2, 3)) * (1.01 if torch.onnx.is_in_onnx_export() else 1.0)


@pytest.mark.parametrize("runtime", EVERY)
def test_an_export_that_computes_something_else_is_found(runtime):
    images = torch.randn(2, 3, 8, 8)
    step = load_onnx(export_onnx(Branching().eval(), images), runtime, images, threads=1)
    with pytest.raises(OutputsDifferError, match=r"differ from those of eager mode by 0\.01 .* within 0\.001"):
        check_outputs(Branching()(images), step(), runtime)


def test_a_network_that_cannot_be_exported_says_so():
    class Untraceable(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x[:, 0])

    with pytest.raises(RuntimeUnavailableError, match="cannot be exported to ONNX: "):
        export_onnx(Untraceable().eval(), torch.randn(1, 3, 4, 4))


def test_outputs_are_compared_one_by_one():
    one, other = torch.ones(2, 3), torch.zeros(2, 4)
    assert check_outputs({"out": one, "aux": [other]}, [one.numpy(), other.numpy()], "x") == 0
    assert check_outputs((one,), [1.0005 * one], "x") == pytest.approx(5e-4, rel=1e-3)
    for wrong, said in (([one], "shapes"), ([other, one], "shapes"), ([one, other + 2e-3], "differ")):
        with pytest.raises(OutputsDifferError, match=said):
            check_outputs([one, other], wrong, "x")
    with pytest.raises(OutputsDifferError, match="by nan"):
        check_outputs(one, one * float("nan"), "x")
    with pytest.raises(OutputsDifferError, match="differ"):
        check_outputs(one, 1.01 * one, "x")
    assert check_outputs(one, 1.01 * one, "x", "bfloat16") == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("train", "cpu", "float32", False), "inference only"),
        (("infer", "cuda:1", "float32", False), "CPU only, not on cuda:1"),
        (("infer", "cpu", "bfloat16", False), "float32 only, not in bfloat16"),
        (("infer", "cpu", "float32", True), "memory layout itself"),
    ],
)
def test_what_an_exported_network_cannot_do_is_said(asked, said):
    for runtime in EXPORTED:
        assert said in why_impossible(runtime, *asked)
        assert why_impossible(runtime, "infer", "cpu", "float32", False) is None
    for runtime in set(RUNTIMES) - set(EXPORTED):
        assert why_impossible(runtime, *asked) is None


def test_a_runtime_that_is_not_installed_names_its_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeUnavailableError, match=r"needs onnx and onnxruntime.*zoobench\[onnx\]"):
        check_installed("onnxruntime")
    check_installed("eager")
