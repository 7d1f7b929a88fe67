"""Receptive fields: which pixels a layer's output can see, by composition over the traced graph, and by gradient.

The forward pass is run once, on the device of the model (the meta device does), and each operator is traced: along
either axis of the image, output position ``i`` of a map sees the input pixels ``low + i·stride … high + i·stride``. A
convolution or pooling of kernel k, dilation d, stride s and padding p turns that into ``low − p·stride``,
``high + (d(k−1) − p)·stride``, ``stride·s``. Branches that meet see what either sees, for nested fields the maximum.

What mixes all positions (global pooling, flattening, attention, squeeze-and-excitation) makes the output see the whole
input; it is flagged, and along the branch that stays local the field goes on. Statistics of normalisations that are
taken over the map do not count. Where maps are cut into pieces and put together again (windows of transformers), the
whole input is reported: an upper bound.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

Number = int | Fraction


@dataclass(frozen=True)
class LayerField:
    """What one layer's output sees: ``size`` and ``stride`` in input pixels, of the larger axis.

    ``size`` is not cut off at the image's border. With ``whole_input`` the output depends on every pixel; then
    ``size`` is of the branch that stays local, or the image's side where no position is left.
    """

    name: str
    kind: str
    size: int
    stride: float
    whole_input: bool


@dataclass(frozen=True)
class ReceptiveField:
    """A network's receptive field: ``size`` and ``stride`` of its last map, before global pooling or flattening.

    ``whole_input`` says that the network's output depends on all pixels; ``layers`` are in the order of their calls.
    """

    size: int
    stride: float
    whole_input: bool
    layers: tuple[LayerField, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class ProbedField:
    """What the gradient probe found: ``size`` is the side in pixels of the box of non-zero gradients.

    ``clipped`` says that the box touches the image's border, so that the true field may be larger.
    """

    size: int
    clipped: bool


def count_receptive_field(model: nn.Module, input_shape: tuple[int, ...]) -> ReceptiveField:
    """Compose the receptive field of every layer.

    Args:
        model: on any device; on the meta device nothing is computed. Left as it was, training mode included.
        input_shape: ``C, H, W`` of one image, in pixels.

    Raises:
        ValueError: the network cannot take input of this shape.
    """
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    image = torch.zeros(1, *input_shape[-3:], device=device, dtype=None if parameter is None else parameter.dtype)
    tracer = _Tracer(image)
    layers: dict[str, tuple[str, _Field]] = {}
    handles = []
    for name, module in model.named_modules():

        def leave(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
            traced = tracer.of(output)
            if traced is not None and name not in layers:
                layers[name] = type(module).__name__, traced

        handles.append(module.register_forward_hook(leave))
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), tracer:
            output = model(image)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        shape = "×".join(map(str, input_shape))
        raise ValueError(f"{type(model).__name__} cannot take input of shape {shape}: {reason}") from error
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training

    last = tracer.of(output)
    if last is None:
        raise ValueError(f"the output of {type(model).__name__} cannot be traced back to its input.")
    local = last if last.is_map else tracer.last_map
    return ReceptiveField(
        size=local.size,
        stride=local.stride,
        whole_input=last.whole,
        layers=tuple(
            LayerField(name, kind, traced.size, traced.stride, traced.whole) for name, (kind, traced) in layers.items()
        ),
    )


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
            kernel, stride, padding, dilation = _pool_arguments(args, arguments)
            if set(dilation) == {1}:
                ceil = bool(arguments.get("ceil_mode", args[5] if len(args) > 5 else False))
                return F.avg_pool2d(args[0], kernel, stride, padding, ceil_mode=ceil)
        return func(*args, **arguments)


@dataclass(frozen=True)
class _Axis:
    """One axis of the image, as a tensor sees it.

    ``dim`` is the tensor's dimension (negative) along which positions are laid out, None once there are none left.
    """

    dim: int | None
    low: Number
    high: Number
    stride: Number
    extent: int
    whole: bool = False

    def window(self, low: Number, high: Number, stride: Number) -> _Axis:
        """Each new position ``i`` sees the old positions ``low + i·stride … high + i·stride``."""
        return replace(
            self,
            low=self.low + low * self.stride,
            high=self.high + high * self.stride,
            stride=self.stride * stride,
        )

    def absorb(self, positions: int) -> _Axis:
        """All positions become one."""
        if self.dim is None:
            return self
        high = self.high + (positions - 1) * self.stride
        whole = self.whole or (self.low <= 0 and high >= self.extent - 1)
        return replace(self, dim=None, high=high, whole=whole)

    def merge(self, other: _Axis) -> _Axis:
        """Two branches meet."""
        if (self.dim is None) != (other.dim is None):
            # A pooled branch is spread over a map: the map stays, and sees all that was pooled.
            return replace(other if self.dim is None else self, whole=True)
        return replace(
            self,
            low=min(self.low, other.low),
            high=max(self.high, other.high),
            stride=max(self.stride, other.stride),
            whole=self.whole or other.whole,
        )


@dataclass(frozen=True)
class _Field:
    """What a tensor sees of the image: along its height and along its width."""

    height: _Axis
    width: _Axis

    @property
    def axes(self) -> tuple[_Axis, _Axis]:
        return self.height, self.width

    @property
    def is_map(self) -> bool:
        return self.height.dim is not None and self.width.dim is not None

    @property
    def whole(self) -> bool:
        return any(axis.whole for axis in self.axes)

    @property
    def size(self) -> int:
        return max(
            axis.extent if axis.dim is None and axis.whole else math.floor(axis.high - axis.low) + 1
            for axis in self.axes
        )

    @property
    def stride(self) -> float:
        stride = max(axis.stride for axis in self.axes)
        return int(stride) if stride == int(stride) else float(stride)

    def map(self, rule: Callable[[int, _Axis], _Axis]) -> _Field:
        return _Field(rule(0, self.height), rule(1, self.width))

    def merge(self, other: _Field) -> _Field:
        return _Field(self.height.merge(other.height), self.width.merge(other.width))


MIXING = frozenset(
    (
        "matmul",
        "__matmul__",
        "__rmatmul__",
        "bmm",
        "baddbmm",
        "einsum",
        "scaled_dot_product_attention",
        "multi_head_attention_forward",
    )
)
REORDERING = frozenset(("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t"))


class _Tracer(TorchFunctionMode):
    """Follows the fields of all tensors through the functions that are called."""

    def __init__(self, image: torch.Tensor) -> None:
        super().__init__()
        height, width = image.shape[-2:]
        start = _Field(_Axis(-2, 0, 0, 1, height), _Axis(-1, 0, 0, 1, width))
        # Tensors are kept alive: their identity is the key.
        self.fields: dict[int, tuple[torch.Tensor, _Field]] = {id(image): (image, start)}
        self.last_map = start

    def of(self, output: Any) -> _Field | None:
        """The field of a layer's output: of its first tensor that sees the image."""
        return next((self.fields[id(tensor)][1] for tensor in _tensors(output) if id(tensor) in self.fields), None)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        arguments = dict(kwargs or {})
        sources = [self.fields[id(tensor)] for tensor in _tensors((args, arguments)) if id(tensor) in self.fields]
        shapes = [tuple(tensor.shape) for tensor, _ in sources]  # before an operation in place
        if func.__name__ == "batch_norm" and args[0].is_meta:
            result = torch.empty_like(args[0])  # the meta kernel is slow, and the shape is the input's
        else:
            result = func(*args, **arguments)
        if sources:
            for output in _tensors(result):
                traced = self._trace(func, args, arguments, sources, shapes, output)
                self.fields[id(output)] = output, traced
                if traced.is_map:
                    self.last_map = traced
        return result

    def _trace(
        self,
        func: Any,
        args: tuple[Any, ...],
        arguments: dict[str, Any],
        sources: list[tuple[torch.Tensor, _Field]],
        shapes: list[tuple[int, ...]],
        output: torch.Tensor,
    ) -> _Field:
        name, source, shape = func.__name__, sources[0][1], shapes[0]
        if name in _WINDOWS and source.is_map:
            windows = _WINDOWS[name](args, arguments, shape, tuple(output.shape))
            return source.map(lambda index, axis: windows[index](axis))
        if name in MIXING:
            return self._merge(
                [_absorb_all(traced, shape_) for (_, traced), shape_ in zip(sources, shapes, strict=True)]
            )
        if name in REORDERING:
            return _reorder(func, args, arguments, source, shape)
        if name in ("cat", "concat", "concatenate"):
            dim = arguments.get("dim", args[1] if len(args) > 1 else 0)
            dim = dim if dim < 0 else dim - output.dim()
            merged = self._merge([traced for _, traced in sources])
            return merged.map(lambda _, axis: axis.absorb(output.shape[dim]) if axis.dim == dim else axis)
        if name == "linear":
            return source.map(lambda _, axis: axis.absorb(shape[-1]) if axis.dim == -1 else axis)
        if name in ("softmax", "log_softmax"):
            dim = arguments.get("dim", args[1] if len(args) > 1 else -1)
            dim = dim if dim < 0 else dim - output.dim()
            return source.map(lambda _, axis: replace(axis, whole=True) if axis.dim == dim else axis)
        fitted = [
            _fit(traced, shape_, tuple(output.shape)) for (_, traced), shape_ in zip(sources, shapes, strict=True)
        ]
        return self._merge(fitted)

    @staticmethod
    def _merge(fields: list[_Field]) -> _Field:
        merged = fields[0]
        for other in fields[1:]:
            merged = merged.merge(other)
        return merged


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
        return
    for leaf in tree_flatten(value)[0]:
        if isinstance(leaf, torch.Tensor):
            yield leaf


def _absorb_all(source: _Field, shape: tuple[int, ...]) -> _Field:
    return source.map(lambda _, axis: axis if axis.dim is None else axis.absorb(shape[axis.dim]))


def _fit(source: _Field, before: tuple[int, ...], after: tuple[int, ...]) -> _Field:
    """Where the axes are after an operation that keeps positions or reshapes; absorbed where they cannot be found."""

    def rule(_: int, axis: _Axis) -> _Axis:
        if axis.dim is None:
            return axis
        positions = before[axis.dim]
        if len(before) <= len(after) and after[axis.dim] == positions and math.prod(before) != math.prod(after):
            return axis  # broadcast, padded or cut along other dimensions
        if len(before) == len(after) and after[axis.dim] == positions:
            return axis
        if math.prod(before) == math.prod(after) and positions > 1:
            preceding = math.prod(before[: len(before) + axis.dim])
            for dim, size in enumerate(after):
                if size == positions and math.prod(after[:dim]) == preceding:
                    return replace(axis, dim=dim - len(after))
        return axis.absorb(positions)

    return source.map(rule)


def _reorder(
    func: Any, args: tuple[Any, ...], arguments: dict[str, Any], source: _Field, shape: tuple[int, ...]
) -> _Field:
    """Follow a permutation by applying it to a tensor whose sizes are all different."""
    marked = torch.empty(tuple(range(2, 2 + len(shape))), device="meta")
    moved = list(func(marked, *args[1:], **arguments).shape)
    return source.map(
        lambda _, axis: (
            axis if axis.dim is None else replace(axis, dim=moved.index(marked.shape[axis.dim]) - len(moved))
        )
    )


AxisRule = Callable[[_Axis], _Axis]


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, *rest = value
    return int(first), int(rest[0] if rest else first)


def _argument(args: tuple[Any, ...], arguments: Mapping[str, Any], index: int, name: str, default: Any) -> Any:
    return arguments.get(name, args[index] if len(args) > index else default)


def _conv(
    args: tuple[Any, ...], arguments: dict[str, Any], before: tuple[int, ...], after: tuple[int, ...]
) -> list[AxisRule]:
    kernel = _argument(args, arguments, 1, "weight", None).shape[2:]
    stride = _pair(_argument(args, arguments, 3, "stride", 1))
    dilation = _pair(_argument(args, arguments, 5, "dilation", 1))
    padding = _argument(args, arguments, 4, "padding", 0)
    reach = [dilation[i] * (kernel[i] - 1) for i in (0, 1)]
    pads = [each // 2 for each in reach] if padding == "same" else [0, 0] if padding == "valid" else _pair(padding)
    return [
        lambda axis, i=i: axis.window(-pads[i], reach[i] - pads[i], stride[i])  # type: ignore[misc]
        for i in (0, 1)
    ]


def _conv_transpose(
    args: tuple[Any, ...], arguments: dict[str, Any], before: tuple[int, ...], after: tuple[int, ...]
) -> list[AxisRule]:
    kernel = _argument(args, arguments, 1, "weight", None).shape[2:]
    stride = _pair(_argument(args, arguments, 3, "stride", 1))
    padding = _pair(_argument(args, arguments, 4, "padding", 0))
    dilation = _pair(_argument(args, arguments, 7, "dilation", 1))
    # Output i receives from the inputs (i + p − d·(k−1)) / s … (i + p) / s.
    return [
        lambda axis, i=i: axis.window(  # type: ignore[misc]
            Fraction(padding[i] - dilation[i] * (kernel[i] - 1), stride[i]),
            Fraction(padding[i], stride[i]),
            Fraction(1, stride[i]),
        )
        for i in (0, 1)
    ]


def _pool_arguments(
    args: tuple[Any, ...], arguments: Mapping[str, Any]
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]:
    kernel = _pair(_argument(args, arguments, 1, "kernel_size", 1))
    stride = _argument(args, arguments, 2, "stride", None) or kernel
    padding = _pair(_argument(args, arguments, 3, "padding", 0))
    return kernel, _pair(stride), padding, _pair(_argument(args, arguments, 4, "dilation", 1))


def _max_pool(
    args: tuple[Any, ...], arguments: dict[str, Any], before: tuple[int, ...], after: tuple[int, ...]
) -> list[AxisRule]:
    kernel, stride, padding, dilation = _pool_arguments(args, arguments)
    return [
        lambda axis, i=i: axis.window(-padding[i], dilation[i] * (kernel[i] - 1) - padding[i], stride[i])  # type: ignore[misc]
        for i in (0, 1)
    ]


def _avg_pool(
    args: tuple[Any, ...], arguments: dict[str, Any], before: tuple[int, ...], after: tuple[int, ...]
) -> list[AxisRule]:
    kernel, stride, padding, _ = _pool_arguments(args[:4], {k: v for k, v in arguments.items() if k != "dilation"})
    return [
        lambda axis, i=i: axis.window(-padding[i], kernel[i] - 1 - padding[i], stride[i])  # type: ignore[misc]
        for i in (0, 1)
    ]


def _adaptive_pool(
    args: tuple[Any, ...], arguments: dict[str, Any], before: tuple[int, ...], after: tuple[int, ...]
) -> list[AxisRule]:
    def rule(axis: _Axis, i: int) -> _Axis:
        old, new = before[i - 2], after[i - 2]
        if new == old:
            return axis
        if new == 1:
            return axis.absorb(old)
        if old % new == 0:
            return axis.window(0, old // new - 1, old // new)
        return axis.window(-1, math.ceil(old / new), Fraction(old, new))  # windows overlap: an upper bound

    return [lambda axis, i=i: rule(axis, i) for i in (0, 1)]  # type: ignore[misc]


def _interpolate(
    args: tuple[Any, ...], arguments: dict[str, Any], before: tuple[int, ...], after: tuple[int, ...]
) -> list[AxisRule]:
    mode = _argument(args, arguments, 3, "mode", "nearest")
    neighbours = {"nearest": 0, "nearest-exact": 0, "area": 1, "bicubic": 2}.get(mode, 1)

    def rule(axis: _Axis, i: int) -> _Axis:
        old, new = before[i - 2], after[i - 2]
        if old == new:
            return axis
        if old == 1:
            return axis.window(0, 0, 0)
        return axis.window(-neighbours, neighbours, Fraction(old, new))

    return [lambda axis, i=i: rule(axis, i) for i in (0, 1)]  # type: ignore[misc]


def _pad(
    args: tuple[Any, ...], arguments: dict[str, Any], before: tuple[int, ...], after: tuple[int, ...]
) -> list[AxisRule]:
    pads = list(_argument(args, arguments, 1, "pad", ()))
    left, top = (pads[0] if pads else 0), (pads[2] if len(pads) > 2 else 0)
    return [lambda axis: axis.window(-top, -top, 1), lambda axis: axis.window(-left, -left, 1)]


_WINDOWS: Mapping[str, Callable[..., list[AxisRule]]] = {
    "conv2d": _conv,
    "conv_transpose2d": _conv_transpose,
    "max_pool2d": _max_pool,
    "max_pool2d_with_indices": _max_pool,
    "avg_pool2d": _avg_pool,
    "adaptive_avg_pool2d": _adaptive_pool,
    "adaptive_max_pool2d": _adaptive_pool,
    "interpolate": _interpolate,
    "pad": _pad,
}
