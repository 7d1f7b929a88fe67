"""A step as a CUDA graph: a GPU is given all of its kernels at once, where Python launches one after another.

What is left is the time of the kernels: the limit of a network that is bound by launching. Imports nothing of ours, and
torch only when it is used: `bench.gate.timing.worker` loads this file by its path, in whatever environment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

LAUNCH_BOUND = 0.9
"""From this share of a step on, launching its kernels is what takes the time."""
WARM_UP_STEPS = 3
"""On a stream of their own before the capture: libraries then have their handles and have chosen their kernels."""


def launch_bound(share: float, batch_size: int | None) -> str | None:
    """What a time says where launching took this share of a step; None where the kernels took most of it."""
    if share <= LAUNCH_BOUND:
        return None
    return (
        f"launching kernels took {share:.0%} of a step at batch size {batch_size}: this is the processor's speed more "
        "than the GPU's. Measure a larger batch, or --cuda-graph"
    )


class CaptureError(RuntimeError):
    """A step that cannot be a CUDA graph; the message says why, and what to do."""


def why_impossible(device: str, runtime: str = "eager") -> str | None:
    """Why no step on this device, or in this runtime, can be captured, as a sentence; None if one can."""
    if not device.startswith("cuda"):
        return f"--cuda-graph needs a CUDA device, and this is {device}. Leave it out, or name a GPU: --device cuda."
    if runtime != "eager":
        return f"--cuda-graph captures eager mode only, not runtime={runtime}: leave one of the two out."
    return None


def capture(step: Callable[[], object], device: Any) -> Callable[[], None]:
    """Do the step a few times, capture it, and return what replays it: the same kernels on the same memory.

    ``device`` is a `torch.device`. The step takes no input but tensors that stay where they are, and asks for no value.
    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#whole-network-capture

    Raises `CaptureError` where it asks for one all the same, or does something else that no graph can hold, and torch's
    error where memory does not suffice.
    """
    import torch

    if (problem := why_impossible(device.type)) is not None:
        raise CaptureError(problem)
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph, failed = torch.cuda.CUDAGraph(), list[Exception]()
        try:
            with torch.cuda.graph(graph):
                try:
                    step()
                except Exception as error:
                    failed.append(error)  # the end of the capture raises another one, which says nothing of the step
                    raise
        except RuntimeError as error:
            first = failed[0] if failed else error
            if isinstance(first, torch.OutOfMemoryError):
                raise first from error
            reason = next(iter(str(first).splitlines()), type(first).__name__)
            raise CaptureError(
                f"the step cannot be captured as a CUDA graph: {reason}. A graph holds no wait for the GPU and no read "
                "of a value; measure without --cuda-graph."
            ) from error

    def replay(kept: object = step) -> None:  # the graph works on the step's memory
        graph.replay()

    return replay
