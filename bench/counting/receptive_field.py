"""Receptive fields: which pixels a layer's output can see, by composition over the traced graph, and by gradient.

The forward pass is run once, on the device of the model (the meta device does), and each operator is traced: along
either axis of the image, output position ``i`` of a map sees the input pixels ``low + i·stride … high + i·stride``. A
convolution or pooling of kernel k, dilation d, stride s and padding p turns that into ``low − p·stride``,
``high + (d(k−1) − p)·stride``, ``stride·s``. Branches that meet see what either sees, for nested fields the maximum.

What mixes all positions (global pooling, flattening, attention, squeeze-and-excitation) makes the output see the whole
input; it is flagged, and along the branch that stays local the field goes on. Statistics of normalisations that are
taken over the map do not count. Attention within windows is reported as the whole input: an upper bound. After an
operator that cannot be traced (deformable convolution, sampling at computed places) a field is not known, and None.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from bench.counting.complexity import create_image, run_forward
from bench.counting.field import Field
from bench.counting.field_tracer import FieldTracer


@dataclass(frozen=True)
class LayerField:
    """What one layer's output sees: ``size`` and ``stride`` in input pixels, of the larger axis.

    ``size`` is not cut off at the image's border. With ``whole_input`` the output depends on every pixel; then
    ``size`` is of the branch that stays local, or the image's side where no position is left.
    """

    name: str
    kind: str
    size: int | None
    stride: float | None
    whole_input: bool


@dataclass(frozen=True)
class ReceptiveField:
    """A network's receptive field: ``size`` and ``stride`` of its last map, before global pooling or flattening.

    Where there is no map, as in a network that flattens the image, ``size`` is of the output. None is not known.

    ``whole_input`` says that the network's output depends on all pixels; ``layers`` are in the order of their calls.
    """

    size: int | None
    stride: float | None
    whole_input: bool
    layers: tuple[LayerField, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class ProbedField:
    """What the gradient probe found: ``size`` is the side in pixels of the box of non-zero gradients.

    ``clipped`` says that the box touches the image's border, so that the true field may be larger.
    """

    size: int | None
    clipped: bool


def count_receptive_field(model: nn.Module, input_shape: tuple[int, ...]) -> ReceptiveField:
    """Compose the receptive field of every layer.

    Args:
        model: on any device; on the meta device nothing is computed. Left as it was, training mode included.
        input_shape: ``C, H, W`` of one image, in pixels.

    Raises:
        ValueError: the network cannot take input of this shape.
    """
    with trace_receptive_field(model) as trace, trace.tracer:
        run_forward(model, create_image(model, input_shape))
    return trace.result()


class FieldTrace:
    """What a forward pass has shown of the receptive fields."""

    def __init__(self) -> None:
        self.tracer = FieldTracer()
        self.layers: dict[str, tuple[str, Field]] = {}
        self.output: Field | None = None

    def result(self) -> ReceptiveField:
        """The receptive fields, once the forward pass is done."""
        last, last_map = self.output, self.tracer.last_map
        local = last if last is not None and last.known else None
        # An image that is flattened at once is no map of the network's.
        if local and not local.is_map and last_map and last_map.size != 1:
            local = last_map
        return ReceptiveField(
            size=local.size if local else None,
            stride=local.stride if local else None,
            whole_input=last is not None and last.whole,
            layers=tuple(
                LayerField(name, kind, seen.size, seen.stride, seen.whole) for name, (kind, seen) in self.layers.items()
            ),
        )


@contextmanager
def trace_receptive_field(model: nn.Module) -> Iterator[FieldTrace]:
    """While inside, one forward pass of the model is traced where its ``tracer``, a dispatch mode, is entered."""
    trace = FieldTrace()
    tracer = trace.tracer

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        tracer.start(args[0])

    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(enter).remove)
        for name, module in model.named_modules():

            def leave(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
                seen = tracer.of(output)
                if seen is not None:
                    trace.layers.setdefault(name, (type(module).__name__, seen))
                if not name:
                    trace.output = seen

            stack.callback(module.register_forward_hook(leave).remove)
        yield trace


def probe_receptive_field(model: nn.Module, input_shape: tuple[int, ...], layer: str | None = None) -> ProbedField:
    """Measure the receptive field of the middle position of ``layer``'s output (the model's without one).

    A copy of the model runs in float64 with positive weights, norms as the identity and average instead of maximum
    pooling, so that no path is cut by a ReLU, by chance or by saturation; every pixel with a gradient is seen.

    Args:
        model: on a device that computes (not meta); left as it was.
        input_shape: ``C, H, W`` of one image, in pixels; larger than the field, or the answer is ``clipped``.
        layer: a module's name; its output must be a map ``N×C×H×W``.

    Raises:
        ValueError: no module has the name, or its output is no map.
    """
    if layer is not None and layer not in dict(model.named_modules()):
        raise ValueError(f"{type(model).__name__} has no layer {layer!r}.")
    positive = copy.deepcopy(model).to(device="cpu", dtype=torch.float64).eval()
    with torch.no_grad():
        for name, parameter in positive.named_parameters():
            if parameter.dim() > 1:
                parameter.fill_(1 / parameter[0].numel())
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        for name, buffer in positive.named_buffers():
            if name.endswith("running_mean"):
                buffer.zero_()
            elif name.endswith("running_var"):
                buffer.fill_(1.0)
    # Small values stay in the linear part of ReLU6, tanh and the like.
    image = torch.full((1, *input_shape[-3:]), 1e-6, dtype=torch.float64, requires_grad=True)
    found: list[Any] = []
    handle = positive.get_submodule(layer or "").register_forward_hook(
        lambda module, args, output: found.append(output)
    )
    with _AveragePooling(), handle:
        positive(image)
    output = found[0]
    if not isinstance(output, torch.Tensor) or output.dim() != 4:
        raise ValueError(
            f"the output of {layer or type(model).__name__!r} is no map N×C×H×W: name a layer that has one."
        )
    output[0, :, output.shape[2] // 2, output.shape[3] // 2].sum().backward()  # type: ignore[no-untyped-call]
    assert image.grad is not None
    seen = image.grad[0].abs().sum(0) > 0
    sizes, clipped = [], False
    for axis in (0, 1):
        positions = seen.any(1 - axis).nonzero().flatten()
        sizes.append(int(positions[-1] - positions[0]) + 1)
        clipped |= bool(positions[0] == 0) or bool(positions[-1] == seen.shape[axis] - 1)
    return ProbedField(max(sizes), clipped)


class _AveragePooling(TorchFunctionMode):
    """While inside, maximum pooling averages: its gradient reaches the whole window."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        arguments = dict(kwargs or {})
        if func.__name__ == "max_pool2d":
            names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
            given = dict(zip(names, args, strict=False)) | arguments
            if given.get("dilation", 1) in (1, (1, 1)):
                given = {key: value for key, value in given.items() if key not in ("dilation", "return_indices")}
                return F.avg_pool2d(**given)
        return func(*args, **arguments)
