"""The tracer of receptive fields: how each operator of torch widens, shifts or mixes what a map sees of the image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

Number = int | Fraction


@dataclass(frozen=True)
class Axis:
    """One axis of the image, as a tensor sees it.

    ``dim`` is the tensor's dimension (negative) along which positions are laid out, None once there are none left.
    """

    dim: int | None
    low: Number
    high: Number
    stride: Number
    extent: int
    whole: bool = False

    def window(self, low: Number, high: Number, stride: Number) -> Axis:
        """Each new position ``i`` sees the old positions ``low + i·stride … high + i·stride``."""
        return replace(
            self,
            low=self.low + low * self.stride,
            high=self.high + high * self.stride,
            stride=self.stride * stride,
        )

    def absorb(self, positions: int) -> Axis:
        """All positions become one."""
        if self.dim is None:
            return self
        high = self.high + (positions - 1) * self.stride
        whole = self.whole or (self.low <= 0 and high >= self.extent - 1)
        return replace(self, dim=None, high=high, whole=whole)

    def merge(self, other: Axis) -> Axis:
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
class Field:
    """What a tensor sees of the image: along its height and along its width."""

    height: Axis
    width: Axis

    @property
    def axes(self) -> tuple[Axis, Axis]:
        """Height and width."""
        return self.height, self.width

    @property
    def is_map(self) -> bool:
        """Whether positions are left along both axes."""
        return self.height.dim is not None and self.width.dim is not None

    @property
    def whole(self) -> bool:
        """Whether every pixel along an axis is seen."""
        return any(axis.whole for axis in self.axes)

    @property
    def size(self) -> int:
        """Side of the field in input pixels, of the larger axis."""
        return max(
            axis.extent if axis.dim is None and axis.whole else math.floor(axis.high - axis.low) + 1
            for axis in self.axes
        )

    @property
    def stride(self) -> float:
        """Input pixels from one position to the next, of the larger axis."""
        stride = max(axis.stride for axis in self.axes)
        return int(stride) if stride == int(stride) else float(stride)

    def map(self, rule: Callable[[int, Axis], Axis]) -> Field:
        """Apply a rule to both axes; it is told which (0 for height)."""
        return Field(rule(0, self.height), rule(1, self.width))

    def merge(self, other: Field) -> Field:
        """Two branches meet."""
        return Field(self.height.merge(other.height), self.width.merge(other.width))


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


class FieldTracer(TorchFunctionMode):
    """Follows the fields of all tensors through the functions that are called."""

    def __init__(self, image: torch.Tensor) -> None:
        super().__init__()
        height, width = image.shape[-2:]
        start = Field(Axis(-2, 0, 0, 1, height), Axis(-1, 0, 0, 1, width))
        # Tensors are kept alive: their identity is the key.
        self.fields: dict[int, tuple[torch.Tensor, Field]] = {id(image): (image, start)}
        self.last_map = start

    def of(self, output: Any) -> Field | None:
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
        sources: list[tuple[torch.Tensor, Field]],
        shapes: list[tuple[int, ...]],
        output: torch.Tensor,
    ) -> Field:
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
    def _merge(fields: list[Field]) -> Field:
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


def _absorb_all(source: Field, shape: tuple[int, ...]) -> Field:
    return source.map(lambda _, axis: axis if axis.dim is None else axis.absorb(shape[axis.dim]))


def _fit(source: Field, before: tuple[int, ...], after: tuple[int, ...]) -> Field:
    """Where the axes are after an operation that keeps positions or reshapes; absorbed where they cannot be found."""

    def rule(_: int, axis: Axis) -> Axis:
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
    func: Any, args: tuple[Any, ...], arguments: dict[str, Any], source: Field, shape: tuple[int, ...]
) -> Field:
    """Follow a permutation by applying it to a tensor whose sizes are all different."""
    marked = torch.empty(tuple(range(2, 2 + len(shape))), device="meta")
    moved = list(func(marked, *args[1:], **arguments).shape)
    return source.map(
        lambda _, axis: (
            axis if axis.dim is None else replace(axis, dim=moved.index(marked.shape[axis.dim]) - len(moved))
        )
    )


AxisRule = Callable[[Axis], Axis]


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


def pool_arguments(
    args: tuple[Any, ...], arguments: Mapping[str, Any]
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Kernel, stride, padding and dilation of a call of a pooling function."""
    kernel = _pair(_argument(args, arguments, 1, "kernel_size", 1))
    stride = _argument(args, arguments, 2, "stride", None) or kernel
    padding = _pair(_argument(args, arguments, 3, "padding", 0))
    return kernel, _pair(stride), padding, _pair(_argument(args, arguments, 4, "dilation", 1))


def _max_pool(
    args: tuple[Any, ...], arguments: dict[str, Any], before: tuple[int, ...], after: tuple[int, ...]
) -> list[AxisRule]:
    kernel, stride, padding, dilation = pool_arguments(args, arguments)
    return [
        lambda axis, i=i: axis.window(-padding[i], dilation[i] * (kernel[i] - 1) - padding[i], stride[i])  # type: ignore[misc]
        for i in (0, 1)
    ]


def _avg_pool(
    args: tuple[Any, ...], arguments: dict[str, Any], before: tuple[int, ...], after: tuple[int, ...]
) -> list[AxisRule]:
    kernel, stride, padding, _ = pool_arguments(args[:4], {k: v for k, v in arguments.items() if k != "dilation"})
    return [
        lambda axis, i=i: axis.window(-padding[i], kernel[i] - 1 - padding[i], stride[i])  # type: ignore[misc]
        for i in (0, 1)
    ]


def _adaptive_pool(
    args: tuple[Any, ...], arguments: dict[str, Any], before: tuple[int, ...], after: tuple[int, ...]
) -> list[AxisRule]:
    def rule(axis: Axis, i: int) -> Axis:
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

    def rule(axis: Axis, i: int) -> Axis:
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
