"""Runtimes in which a network's inference can be timed: what a user deploys need not be PyTorch's eager mode.

- ``eager``: PyTorch, operator by operator;
- ``compile``: `torch.compile`;
- ``onnxruntime``, ``openvino``: the network exported to ONNX for one batch size, on the CPU, in float32.

A network in another runtime must compute what it computes in eager mode: `check_outputs`. Imports nothing of ours, and
only torch before a runtime is used: `bench.gate.timing.worker` loads this file by its path, in whatever environment.
"""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

RUNTIMES = ("eager", "compile", "onnxruntime", "openvino")
EXPORTED: Mapping[str, tuple[str, ...]] = {"onnxruntime": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}
"""The runtimes that run an exported network, and the packages that each needs."""
EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}
TOLERANCE, TOLERANCE_16_BIT = 1e-3, 5e-2
"""Outputs agree if they differ by no more than this share of the largest output: for float32, and for 16-bit formats.

Fusing and reordering sums changes the last digits: 1e-6 of the largest output for ResNet-18, in float32.
"""


class RuntimeUnavailableError(Exception):
    """A runtime that is not installed, or cannot run such a network."""


class OutputsDifferError(Exception):
    """A network that computes something else in another runtime."""


def why_impossible(runtime: str, mode: str, device: str, dtype: str, channels_last: bool) -> str | None:
    """What is asked of an exported network that it cannot do, as a sentence; None if there is nothing."""
    if runtime not in EXPORTED:
        return None
    if mode != "infer":
        return f"runtime={runtime} runs inference only: ask for mode infer, or time training with eager or compile."
    if device not in ("auto", "cpu"):
        return f"runtime={runtime} is timed on the CPU only, not on {device}: add --device cpu."
    if dtype != "float32":
        return f"runtime={runtime} is timed in float32 only, not in {dtype}: leave dtype out."
    if channels_last:
        return f"runtime={runtime} chooses the memory layout itself: leave channels_last out."
    return None


def check_installed(runtime: str) -> None:
    """Raise `RuntimeUnavailableError` if a package of the runtime is missing."""
    missing = [name for name in EXPORTED.get(runtime, ()) if importlib.util.find_spec(name) is None]
    if missing:
        raise RuntimeUnavailableError(
            f"runtime={runtime} needs {' and '.join(missing)}, which this environment lacks: "
            f"pip install 'zoobench[{EXTRAS[runtime]}]'"
        )


def export_onnx(network: Any, images: Any) -> bytes:
    """The network in evaluation mode as an ONNX model for images of exactly that shape.

    Raises `RuntimeUnavailableError` for a network that cannot be exported.
    """
    import torch

    stored = io.BytesIO()
    with warnings.catch_warnings():
        # A trace that misses something is found by its outputs. The newer exporter takes ten times as long.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(network, (images,), stored, dynamo=False)  # type: ignore[arg-type] # as documented
        except Exception as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise RuntimeUnavailableError(f"the network cannot be exported to ONNX: {reason}") from error
    return stored.getvalue()


def load_onnx(model: bytes, runtime: str, images: Any, threads: int) -> Callable[[], list[Any]]:
    """A step: the network's outputs as arrays, for the same images each time, by that many threads."""
    check_installed(runtime)
    array = images.contiguous().numpy()
    load = _load_onnxruntime if runtime == "onnxruntime" else _load_openvino
    return load(model, array, threads)


def _load_onnxruntime(model: bytes, images: Any, threads: int) -> Callable[[], list[Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors
    # After a step its threads must not spin on, which would take the processor from what is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (first, *_) = session.get_inputs()

    def step() -> list[Any]:
        return list(session.run(None, {first.name: images}))

    return step


def _load_openvino(model: bytes, images: Any, threads: int) -> Callable[[], list[Any]]:
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",  # on processors with matrix units it would be bfloat16
        "ENABLE_CPU_PINNING": False,  # PyTorch's threads are not pinned either
    }
    compiled = core.compile_model(core.read_model(model), "CPU", settings)
    request = compiled.create_infer_request()

    def step() -> list[Any]:
        found = request.infer({0: images}, share_inputs=True, share_outputs=True)
        return [found[output] for output in compiled.outputs]

    return step


def check_outputs(expected: Any, found: Any, runtime: str, dtype: str = "float32") -> float:
    """The largest difference of the outputs, as a share of the largest expected one.

    Args:
        expected: what the network returns in eager mode: tensors, also in lists, tuples and dicts.
        found: what the runtime returns, in the same order.
        runtime: its name.
        dtype: the number format of both.

    Raises:
        OutputsDifferError: it is larger than the tolerance, or an output is missing or has another shape.
    """
    import torch

    before, after = ([torch.as_tensor(each).detach().float() for each in _flatten(one)] for one in (expected, found))
    shapes = [[tuple(each.shape) for each in outputs] for outputs in (before, after)]
    if shapes[0] != shapes[1]:
        raise OutputsDifferError(f"outputs of {runtime} have the shapes {shapes[1]}, those of eager mode {shapes[0]}")
    tolerance = TOLERANCE if dtype == "float32" else TOLERANCE_16_BIT
    largest = 0.0
    for one, other in zip(before, after, strict=True):
        scale = float(one.abs().max())
        difference = float((one - other).abs().max()) / scale if scale else float(other.abs().max())
        if not difference <= tolerance:  # also where it is not a number
            raise OutputsDifferError(
                f"outputs of {runtime} differ from those of eager mode by {difference:.2g} of the largest output; "
                f"they agree within {tolerance:g}"
            )
        largest = max(largest, difference)
    return largest


def _flatten(outputs: Any) -> Iterator[Any]:
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    if isinstance(outputs, list | tuple):
        for each in outputs:
            yield from _flatten(each)
    else:
        yield outputs
