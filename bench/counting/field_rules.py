"""How each operator of torch widens, shifts or mixes what a map sees of the image.

A rule gets the operator's `Call` and returns the field of its output. Where positions cannot be followed, they are
absorbed, which is an upper bound. An operator that has no rule makes the field unknown.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch

from bench.counting.field import Axis, Digit, Field, Number, Shape


@dataclass(frozen=True)
class Call:
    """One call of an operator: ``fields`` of its tensor arguments by position (also in lists), ``shapes`` likewise."""

    args: tuple[Any, ...]
    fields: tuple[tuple[int, Field, tuple[int, ...]], ...]
    output: torch.Tensor
    index: int
    """Which of the operator's outputs it is."""

    def arg(self, index: int, default: Any) -> Any:
        """An argument, or the default where it was not given or is empty."""
        given = self.args[index] if len(self.args) > index else None
        return default if given is None or given == [] else given

    @property
    def source(self) -> Field:
        """The first argument's field that sees the image."""
        return self.fields[0][1]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of `source`."""
        return self.fields[0][2]


Rule = Callable[[Call], Field]


def _merged(fields: Sequence[Field]) -> Field:
    return functools.reduce(Field.merge, fields)


def keep(call: Call) -> Field:
    """Element by element: arguments are broadcast, which leaves dimensions where they are, counted from the last."""
    return _merged([field for _, field, _ in call.fields])


def _absorbed(field: Field, shape: Shape) -> Field:
    return field.map(lambda axis: axis.absorb(*range(-len(shape), 0)))


def _pair(value: Any, rank: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return [int(each) for each in (values * rank if len(values) == 1 else values)]


def _windows(call: Call, windows: Sequence[tuple[Number, Number, Number]]) -> Field:
    """Low, high and stride of the window along each of the last dimensions."""

    def rule(axis: Axis) -> Axis:
        for dim, (low, high, stride) in zip(range(-len(windows), 0), windows, strict=True):
            axis = axis.window(dim, call.shape, low, high, stride, call.output.shape[dim])
        return axis

    return call.source.map(rule)


def _convolution(call: Call) -> Field:
    weight, transposed, groups = call.args[1], call.args[6], call.args[8]
    if call.fields[0][0] != 0:  # the image makes the weights alone
        return _absorb_all(call)
    rank = weight.dim() - 2
    kernel = weight.shape[2:]
    stride, padding, dilation = (_pair(call.args[index], rank) for index in (3, 4, 5))
    windows: list[tuple[Number, Number, Number]] = []
    for k, s, p, d in zip(kernel, stride, padding, dilation, strict=True):
        if transposed:  # output i receives from the inputs (i + p − d·(k−1)) / s … (i + p) / s
            windows.append((Fraction(p - d * (k - 1), s), Fraction(p, s), Fraction(1, s)))
        else:
            windows.append((-p, d * (k - 1) - p, s))
    field = _windows(call, windows)
    depthwise = groups == weight.shape[0] == call.shape[-rank - 1]
    field = field if depthwise else field.map(lambda axis: axis.absorb(-rank - 1))
    return _merged([field, *(_absorbed(other, shape) for _, other, shape in call.fields[1:])])


def _pool(dilation_at: int | None) -> Rule:
    def rule(call: Call) -> Field:
        kernel = call.arg(1, 1)
        rank = len(kernel)
        dilation = [1] * rank if dilation_at is None else _pair(call.arg(dilation_at, 1), rank)
        sizes = (_pair(each, rank) for each in (kernel, call.arg(2, kernel), call.arg(3, 0)))
        return _windows(call, [(-p, d * (k - 1) - p, s) for k, s, p, d in zip(*sizes, dilation, strict=True)])

    return rule


def _adaptive_pool(call: Call) -> Field:
    windows: list[tuple[Number, Number, Number]] = []
    for dim in range(-len(_pair(call.args[1], 1)), 0):
        old, new = call.shape[dim], call.output.shape[dim]
        if old % new == 0:
            windows.append((0, old // new - 1, old // new))
        else:  # windows overlap: an upper bound
            windows.append((-1, math.ceil(old / new), Fraction(old, new)))
    pooled = [dim for dim in range(-len(windows), 0) if call.output.shape[dim] == 1]
    return _windows(call, windows).map(lambda axis: axis.absorb(*pooled))


def _upsample(neighbours: int) -> Rule:
    def rule(call: Call) -> Field:
        windows: list[tuple[Number, Number, Number]] = []
        for dim in range(2 - call.output.dim(), 0):
            old, new = call.shape[dim], call.output.shape[dim]
            windows.append((0, 0, 1) if old == new else (-neighbours, neighbours, Fraction(old, new)))
        return _windows(call, windows)

    return rule


def _pad(call: Call) -> Field:
    before = list(call.args[1])[0::2]  # from the last dimension to the first
    return _windows(call, [(-left, -left, 1) for left in reversed(before)])


def _dims(call: Call, index: int) -> list[int]:
    """The dimensions that an argument names, counted from the last; all of them without any."""
    rank = len(call.shape)
    named = call.arg(index, range(rank))
    named = [named] if isinstance(named, int) else named
    return [dim - rank if dim >= 0 else dim for dim in named]


def _without(dims: Sequence[int]) -> Callable[[int], int]:
    """Where a dimension is once others are gone."""
    return lambda dim: dim + sum(each > dim for each in dims)


def _reduce(dims_at: int) -> Rule:
    def rule(call: Call) -> Field:
        dims = _dims(call, dims_at)
        field = call.source.map(lambda axis: axis.absorb(*dims))
        return field if call.output.dim() == len(call.shape) else field.map(lambda axis: axis.move(_without(dims)))

    return rule


def _mix(dim_at: int) -> Rule:
    """All positions along a dimension act on each: softmax, cumulated sums. The map stays, and sees all of it."""

    def rule(call: Call) -> Field:
        dims = _dims(call, dim_at)
        return call.source.map(
            lambda axis: axis.merge(axis.absorb(*dims)) if any(d.dim in dims for d in axis.digits) else axis
        )

    return rule


def _absorb_at(dim_at: int) -> Rule:
    """Positions along a dimension change their order."""
    return lambda call: keep(call).map(lambda axis: axis.absorb(*_dims(call, dim_at)))


def _product(left: int, right: int) -> Rule:
    """A matrix product of two arguments (by position); a third one before them is added."""

    def rule(call: Call) -> Field:
        absorbed = {left: -1, right: -2}
        fields = [
            field.map(lambda axis, at=at: axis.absorb(absorbed[at]) if at in absorbed else axis)  # type: ignore[misc]
            for at, field, _ in call.fields
        ]
        return _merged(fields)

    return rule


def _attention(call: Call) -> Field:
    absorbed = {0: (-1,), 1: (-1, -2), 2: (-2,)}
    return _merged(
        [
            field.map(lambda axis, at=at: axis.absorb(*absorbed.get(at, ())))  # type: ignore[misc]
            for at, field, _ in call.fields
        ]
    )


def _absorb_all(call: Call) -> Field:
    return _merged([_absorbed(field, shape) for _, field, shape in call.fields])


def _reshape(call: Call) -> Field:
    return call.source.map(lambda axis: axis.reshape(call.shape, call.output.shape))


def _permute(call: Call) -> Field:
    order = [dim % len(call.shape) for dim in call.args[1]]
    rank = len(order)
    return call.source.map(lambda axis: axis.move(lambda dim: order.index(dim + rank) - rank))


def _transpose(call: Call) -> Field:
    rank = len(call.shape)
    first, second = (dim % rank - rank for dim in (call.args[1:3] if len(call.args) > 2 else (-1, -2)))
    places = {first: second, second: first}
    return call.source.map(lambda axis: axis.move(lambda dim: places.get(dim, dim)))


def _take_one(call: Call) -> Field:
    """`select`, and each output of `unbind`."""
    (dim,) = _dims(call, 1) if len(call.args) > 1 else (-len(call.shape),)
    index = (call.args[2] if len(call.args) > 2 else call.index) % call.shape[dim]
    return call.source.map(lambda axis: axis.fix(dim, index).move(_without([dim])))


def _cut(call: Call, dim: int, start: int, step: int) -> Field:
    return call.source.map(lambda axis: axis.window(dim, call.shape, start, start, step, call.output.shape[dim]))


def _slice(call: Call) -> Field:
    dim = call.arg(1, 0)
    dim = dim - len(call.shape) if dim >= 0 else dim
    start = call.arg(2, 0)
    return _cut(call, dim, start + call.shape[dim] if start < 0 else start, call.arg(4, 1))


def _split(call: Call) -> Field:
    dim = call.arg(2, 0)
    dim = dim - len(call.shape) if dim >= 0 else dim
    sizes = call.args[1]
    start = call.index * sizes if isinstance(sizes, int) else sum(sizes[: call.index])
    return _cut(call, dim, start, 1)


def _cat(call: Call) -> Field:
    dim = call.arg(1, 0)
    dim = dim - call.output.dim() if dim >= 0 else dim
    return keep(call).map(lambda axis: axis.absorb(dim))


def _stack(call: Call) -> Field:
    dim = call.arg(1, 0)
    dim = dim - call.output.dim() if dim >= 0 else dim
    return keep(call).map(lambda axis: axis.move(lambda each: each - 1 if each <= dim else each))


def _repeat(call: Call) -> Field:
    repeats = list(call.args[1])
    return call.source.map(lambda axis: axis.absorb(*(dim for dim in range(-len(call.shape), 0) if repeats[dim] != 1)))


def _flip(call: Call) -> Field:
    field = call.source
    for dim in _dims(call, 1):
        last = call.shape[dim] - 1
        field = field.map(lambda axis, dim=dim, last=last: axis.window(dim, call.shape, last, last, -1, last + 1))  # type: ignore[misc]
    return field


def _roll(call: Call) -> Field:
    """Positions move; those that come in at the other end see as much as all others."""
    field = call.source
    for shift, dim in zip(_pair(call.args[1], 1), _dims(call, 2), strict=False):
        size = call.shape[dim]
        field = field.map(
            lambda axis, dim=dim, shift=shift, size=size: axis.window(dim, call.shape, -shift, -shift, 1, size)  # type: ignore[misc]
        )
    return field if call.arg(2, None) is not None else _absorb_all(call)


def _shuffle(factor_of: Callable[[int], Number]) -> Rule:
    """Pixels to channels and back: ``factor`` old positions become one, or one becomes several."""

    def rule(call: Call) -> Field:
        factor = factor_of(call.args[1])
        return _windows(call, [(0, max(factor - 1, 0), factor)] * 2).map(lambda axis: axis.absorb(-3))

    return rule


def _im2col(call: Call) -> Field:
    """Blocks of a map become columns, in the order of their positions."""
    kernel, dilation, padding, stride = (_pair(call.args[index], 2) for index in (1, 2, 3, 4))
    sizes = [
        (call.shape[dim] + 2 * padding[dim] - dilation[dim] * (kernel[dim] - 1) - 1) // stride[dim] + 1
        for dim in (-2, -1)
    ]

    def rule(axis: Axis) -> Axis:
        for dim in (-2, -1):
            reach = dilation[dim] * (kernel[dim] - 1)
            axis = axis.window(dim, call.shape, -padding[dim], reach - padding[dim], stride[dim], sizes[dim])
        return axis.absorb(-3).reshape((call.shape[0], 1, *sizes), (call.shape[0], 1, math.prod(sizes)))

    return call.source.map(rule)


def _unfold(call: Call) -> Field:
    """`Tensor.unfold`: windows along one dimension, their elements along a new last one."""
    dim, size, step = call.args[1:4]
    dim = dim - len(call.shape) if dim >= 0 else dim

    def rule(axis: Axis) -> Axis:
        digit = axis.digit(dim, call.shape)
        moved = axis.window(dim, call.shape, 0, 0, step, call.output.shape[dim - 1]).move(lambda each: each - 1)
        if digit is None:
            return moved
        inside = Digit(-1, 1, size, digit.stride)
        return Axis((*moved.digits, inside), moved.low, moved.high, moved.extent, moved.whole, moved.known)

    return call.source.map(rule)


def _index(call: Call) -> Field:
    """Positions that indices choose; along the other dimensions they stay, where those keep their places."""
    indices = list(call.args[1])
    rank = len(call.shape)
    chosen = [place - rank for place, index in enumerate(indices) if index is not None]
    field = _merged([field.map(lambda axis: axis.absorb(*chosen)) for at, field, _ in call.fields if at == 0])
    if call.output.dim() != rank or any(at != 0 for at, _, _ in call.fields):
        return _absorbed(field, call.shape)
    return field


_KEEP = """
clone alias detach lift_fresh contiguous _to_copy _conj expand native_dropout bernoulli tril triu channel_shuffle
native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm
native_layer_norm native_group_norm _fused_rms_norm hardswish hardswish_ log_sigmoid_forward
rrelu_with_noise _prelu_kernel floor_divide copy_ as_strided_
"""
_RESHAPE = "view _unsafe_view reshape _reshape_alias unsqueeze squeeze"
_REDUCE = "mean sum nansum prod amax amin max min argmax argmin var std var_mean std_mean logsumexp any all median"

RULES: Mapping[str, Rule] = {  # by the name of an operator of aten
    **dict.fromkeys(_KEEP.split(), keep),
    **dict.fromkeys(_RESHAPE.split(), _reshape),
    **dict.fromkeys(_REDUCE.split(), _reduce(1)),
    "linalg_vector_norm": _reduce(2),
    "convolution": _convolution,
    **dict.fromkeys(("max_pool2d_with_indices", "max_pool3d_with_indices"), _pool(4)),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _pool(None)),
    **dict.fromkeys(
        ("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d"), _adaptive_pool
    ),
    **{
        f"{name}{rank}d": _upsample(0) for name in ("upsample_nearest", "_upsample_nearest_exact") for rank in (1, 2, 3)
    },
    **dict.fromkeys(
        ("upsample_linear1d", "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_trilinear3d"), _upsample(1)
    ),
    **dict.fromkeys(("upsample_bicubic2d", "_upsample_bicubic2d_aa"), _upsample(2)),
    **dict.fromkeys(
        ("constant_pad_nd", *(f"{kind}_pad{rank}d" for kind in ("reflection", "replication") for rank in (1, 2, 3))),
        _pad,
    ),
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumprod", "logcumsumexp"), _mix(1)),
    **dict.fromkeys(("sort", "gather", "index_select", "repeat_interleave"), _absorb_at(1)),
    "topk": _absorb_at(2),
    **dict.fromkeys(("mm", "bmm"), _product(0, 1)),
    **dict.fromkeys(("addmm", "baddbmm"), _product(1, 2)),
    **dict.fromkeys(
        (
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_cudnn_attention",
        ),
        _attention,
    ),
    **dict.fromkeys(
        ("mv", "addmv", "dot", "mkldnn_rnn_layer", "_cudnn_rnn", "_fft_r2c", "_fft_c2c", "_fft_c2r"), _absorb_all
    ),
    "permute": _permute,
    **dict.fromkeys(("transpose", "t"), _transpose),
    **dict.fromkeys(("select", "unbind"), _take_one),
    "slice": _slice,
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes"), _split),
    "cat": _cat,
    "stack": _stack,
    "repeat": _repeat,
    "flip": _flip,
    "roll": _roll,
    "pixel_unshuffle": _shuffle(lambda factor: factor),
    "pixel_shuffle": _shuffle(lambda factor: Fraction(1, factor)),
    "im2col": _im2col,
    "unfold": _unfold,
    **dict.fromkeys(("index", "_unsafe_index"), _index),
}
