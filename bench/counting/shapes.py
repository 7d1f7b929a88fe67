"""Networks on the meta device, cheaply: built without initialisation, and followed by the shapes of their maps alone.

torch's own meta kernels are written in Python. They take up to a millisecond for each operator, and on first use import
sympy and ``torch._dynamo``, which takes longer than counting the whole zoo. A rule here gives the shape of an
operator's output, for the commonest ones; what has no rule, or arguments that a rule does not expect, goes to torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.meta import follow_on_meta

Rule = Callable[..., Any]
T = TypeVar("T")


def count_by_shapes(build: Callable[[], nn.Module], count: Callable[[nn.Module], T]) -> T:
    """What ``count`` finds in the network that ``build`` returns, on the meta device and by shapes where that can be.

    Networks that read the values of tensors are counted on the CPU: see `zoo.meta.follow_on_meta`.
    """

    def build_unfilled() -> nn.Module:
        with WithoutFilling():
            return build()

    def count_shapes(model: nn.Module) -> T:
        with ShapesOnly():
            return count(model)

    return follow_on_meta(build_unfilled, count_shapes)


class WithoutFilling(TorchFunctionMode):
    """While inside, what fills meta tensors is left out: they have no values."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Skip the functions of `torch.nn.init` and their like on meta tensors."""
        kwargs = kwargs or {}
        if func.__name__ in _FILLING:
            tensor = args[0] if args else kwargs.get("tensor")
            if isinstance(tensor, Tensor) and tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


_FILLING = frozenset(
    ("kaiming_uniform_", "kaiming_normal_", "constant_", "uniform_", "normal_", "trunc_normal_", "fill_", "zero_")
)


class ShapesOnly(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While inside, an operator on meta tensors that has a rule here gives an output of the right shape and type."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled in here, and telling dynamo so would import it."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Apply the rule, or call the operator."""
        rule = _RULES.get(str(func))
        if rule is not None and not kwargs and _first(args).is_meta:
            output = rule(*args)
            if output is not NotImplemented:
                return output
        return func(*args, **(kwargs or {}))


def _empty(like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """`Tensor.new_empty`, whose meta kernel is one of the slow ones."""
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)


def _first(args: Sequence[Any]) -> Tensor:
    first = args[0][0] if isinstance(args[0], (list, tuple)) else args[0]
    assert isinstance(first, Tensor)
    return first


def _same(tensor: Tensor, *rest: Any) -> Any:
    return _empty(tensor, tensor.shape)


def _in_place(tensor: Tensor, *rest: Any) -> Any:
    return tensor


def _binary(left: Tensor, right: Any, *rest: Any) -> Any:
    if not isinstance(right, Tensor):
        return _empty(left, left.shape) if left.is_floating_point() else NotImplemented
    if left.dtype != right.dtype or not left.is_floating_point():
        return NotImplemented
    if left.shape == right.shape:
        return _empty(left, left.shape)
    shape = _broadcast(left.shape, right.shape)
    return NotImplemented if shape is None else _empty(left, shape)


def _broadcast(left: Sequence[int], right: Sequence[int]) -> list[int] | None:
    """The common shape; None where there is none."""
    dims = max(len(left), len(right))
    pairs = zip([1] * (dims - len(left)) + [*left], [1] * (dims - len(right)) + [*right], strict=True)
    shape = [b if a == 1 else a if b in (1, a) else -1 for a, b in pairs]
    return None if -1 in shape else shape


def _windows(sides: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
             dilation: Sequence[int]) -> list[int]:  # fmt: skip
    """Positions of a sliding window along each side; an argument with one value holds for all sides."""
    arguments = ([*each] * (len(sides) // len(each)) for each in (kernel, stride, padding, dilation))
    return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(sides, *arguments, strict=True)]


def _map(image: Tensor, channels: int, sides: Sequence[int]) -> Any:
    # A map without positions is an error, whose words are torch's.
    return _empty(image, (image.shape[0], channels, *sides)) if min(sides) > 0 else NotImplemented


def _convolution(image: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
                 output_padding: Any, groups: int) -> Any:  # fmt: skip
    fits = image.dim() == weight.dim() and image.shape[1] == groups * weight.shape[1] and image.dtype == weight.dtype
    if transposed or not fits or weight.shape[0] % groups:
        return NotImplemented
    return _map(image, weight.shape[0], _windows(image.shape[2:], weight.shape[2:], stride, padding, dilation))


def _batch_norm(image: Tensor, weight: Any, bias: Any, mean: Any, *rest: Any) -> Any:
    if image.dim() < 2 or (mean is not None and mean.numel() != image.shape[1]):
        return NotImplemented
    return _empty(image, image.shape), _empty(image, (0,)), _empty(image, (0,))


def _average_pooling(image: Tensor, kernel: Any, stride: Any = (), padding: Any = (0,), ceil_mode: bool = False,
                     *rest: Any) -> Any:  # fmt: skip
    spatial = 3 if image.dim() == 5 else 2
    if ceil_mode or image.dim() != spatial + 2:
        return NotImplemented
    sides = _windows(image.shape[-spatial:], kernel, stride or kernel, padding, (1,))
    return _map(image, image.shape[1], sides)


def _max_pooling(image: Tensor, kernel: Any, stride: Any = (), padding: Any = (0,), dilation: Any = (1,),
                 ceil_mode: bool = False) -> Any:  # fmt: skip
    if ceil_mode or image.dim() != 4:
        return NotImplemented
    pooled = _map(image, image.shape[1], _windows(image.shape[2:], kernel, stride or kernel, padding, dilation))
    return pooled if pooled is NotImplemented else (pooled, _empty(pooled, pooled.shape, dtype=torch.int64))


def _to_sides(image: Tensor, sides: Sequence[int], *rest: Any) -> Any:
    return _map(image, image.shape[1], sides) if image.dim() == 4 else NotImplemented


def _reduce(tensor: Tensor, dims: Sequence[int] | None, keepdim: bool = False) -> Any:
    if not dims or not tensor.is_floating_point():
        return NotImplemented
    reduced = {dim % tensor.dim() for dim in dims}
    return _empty(tensor, [1 if d in reduced else n for d, n in enumerate(tensor.shape) if keepdim or d not in reduced])


def _mm(left: Tensor, right: Tensor) -> Any:
    if left.dim() != 2 or right.dim() != 2 or left.shape[1] != right.shape[0] or left.dtype != right.dtype:
        return NotImplemented
    return _empty(left, [left.shape[0], right.shape[1]])


def _addmm(bias: Tensor, left: Tensor, right: Tensor) -> Any:
    product = _mm(left, right)
    if product is NotImplemented:
        return NotImplemented
    return product if _broadcast(bias.shape, product.shape) == list(product.shape) else NotImplemented


def _concatenate(tensors: Sequence[Tensor], dim: int = 0) -> Any:
    first = tensors[0]
    dim = dim % first.dim()
    others = [[n for d, n in enumerate(tensor.shape) if d != dim] for tensor in tensors]
    if any(shape != others[0] for shape in others) or any(tensor.dtype != first.dtype for tensor in tensors):
        return NotImplemented
    return _empty(first, [sum(t.shape[dim] for t in tensors) if d == dim else n for d, n in enumerate(first.shape)])


def _pad(tensor: Tensor, padding: Sequence[int], *rest: Any) -> Any:
    shape = list(tensor.shape)
    for at in range(len(padding) // 2):  # from the last dimension on
        shape[-1 - at] += padding[2 * at] + padding[2 * at + 1]
    return _empty(tensor, shape) if min(shape) > 0 else NotImplemented


def _index(tensor: Tensor, indices: Sequence[Tensor | None]) -> Any:
    """One list of positions, along one dimension."""
    given = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    if len(given) != 1 or given[0][1].dtype != torch.int64:
        return NotImplemented
    ((dim, index),) = given
    return _empty(tensor, (*tensor.shape[:dim], *index.shape, *tensor.shape[dim + 1 :]))


_RULES: Mapping[str, Rule] = {
    "aten.convolution.default": _convolution,
    "aten.native_batch_norm.default": _batch_norm,
    "aten.max_pool2d_with_indices.default": _max_pooling,
    "aten.avg_pool2d.default": _average_pooling,
    "aten.avg_pool3d.default": _average_pooling,
    "aten._adaptive_avg_pool2d.default": _to_sides,
    "aten.upsample_bilinear2d.default": _to_sides,
    "aten.amax.default": _reduce,
    "aten.mean.dim": _reduce,
    "aten.mm.default": _mm,
    "aten.sum.dim_IntList": _reduce,
    "aten.addmm.default": _addmm,
    "aten.cat.default": _concatenate,
    "aten.constant_pad_nd.default": _pad,
    "aten.index.Tensor": _index,
    **{f"aten.{name}.Tensor": _binary for name in ("add", "sub", "mul", "div")},
    **{
        f"aten.{name}.default": _same
        for name in ("relu", "hardtanh", "tanh", "sigmoid", "silu", "gelu", "hardswish", "neg")
    },
    **{f"aten.{name}_.default": _in_place for name in ("relu", "hardtanh", "tanh", "sigmoid", "silu", "hardswish")},
    "aten.pow.Tensor_Scalar": _same,
}
