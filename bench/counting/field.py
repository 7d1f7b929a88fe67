"""What a tensor sees of the image: the algebra of receptive fields, which knows shapes and no operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

Number = int | Fraction
Shape = Sequence[int]


@dataclass(frozen=True)
class Digit:
    """A part of a position, laid out along one dimension of a tensor.

    Of index ``i`` along ``dim`` (negative) the digit is ``i // weight % size``, and one step of it is ``stride`` input
    pixels. A map has one digit along its height and one along its width; where both are flattened into tokens, they
    are two digits of one dimension; where a map is cut into windows, each axis has two digits.
    """

    dim: int
    weight: int
    size: int
    stride: Number


@dataclass(frozen=True)
class Axis:
    """One axis of the image, as a tensor sees it: from each position, the input pixels ``low`` to ``high``.

    ``digits`` lay the positions out; there are none where nothing is left of the axis. ``extent`` is the image's side.
    """

    digits: tuple[Digit, ...]
    low: Number
    high: Number
    extent: int
    whole: bool = False
    known: bool = True

    def digit(self, dim: int, shape: Shape) -> Digit | None:
        """The one digit that lies along all of ``dim``; None if there is no such."""
        along = [digit for digit in self.digits if digit.dim == dim]
        return along[0] if len(along) == 1 and along[0].size == shape[dim] else None

    def window(self, dim: int, shape: Shape, low: Number, high: Number, stride: Number, size: int) -> Axis:
        """``size`` new positions along ``dim``, of which each sees the old ``low + i·stride … high + i·stride``."""
        if ((low, high, stride) == (0, 0, 1) and size == shape[dim]) or not any(
            each.dim == dim for each in self.digits
        ):
            return self
        digit = self.digit(dim, shape)
        if digit is None:
            return self.absorb(dim)
        ends = low * digit.stride, high * digit.stride
        rest = tuple(each for each in self.digits if each.dim != dim)
        moved = Digit(dim, 1, size, digit.stride * stride)
        return replace(self, digits=(*rest, moved), low=self.low + min(ends), high=self.high + max(ends))

    def absorb(self, *dims: int) -> Axis:
        """All positions along ``dims`` become one; the whole image, where none are left and all were seen."""
        gone = [digit for digit in self.digits if digit.dim in dims]
        if not gone:
            return self
        spans = [(digit.size - 1) * digit.stride for digit in gone]
        low, high = self.low + sum(min(span, 0) for span in spans), self.high + sum(max(span, 0) for span in spans)
        left = tuple(digit for digit in self.digits if digit.dim not in dims)
        whole = self.whole or (not left and low <= 0 and high >= self.extent - 1)
        return replace(self, digits=left, low=low, high=high, whole=whole)

    def fix(self, dim: int, index: int) -> Axis:
        """One position along ``dim`` is taken out."""
        offset = sum(index // digit.weight % digit.size * digit.stride for digit in self.digits if digit.dim == dim)
        left = tuple(digit for digit in self.digits if digit.dim != dim)
        return replace(self, digits=left, low=self.low + offset, high=self.high + offset)

    def move(self, where: Callable[[int], int]) -> Axis:
        """Dimensions get new places."""
        return replace(self, digits=tuple(replace(digit, dim=where(digit.dim)) for digit in self.digits))

    def reshape(self, before: Shape, after: Shape) -> Axis:
        """The elements stay in their order, in another shape; a digit that this tears apart is absorbed."""
        inner_before, inner_after = _inner_sizes(before), _inner_sizes(after)
        digits: list[Digit] = []
        lost = []
        for digit in self.digits:
            weight = digit.weight * inner_before[digit.dim]
            parts = _split(digit, weight, inner_after, after)
            if parts is None:
                lost.append(digit.dim)
            else:
                digits += parts
        return replace(self.absorb(*lost), digits=_joined(digit for digit in digits))

    def merge(self, other: Axis) -> Axis:
        """Two branches meet."""
        whole, known = self.whole or other.whole, self.known and other.known
        if _layout(self) != _layout(other):
            # A pooled branch is spread over a map, or positions meet that have no common order: an upper bound.
            return replace(self if self.digits else other, whole=True, known=known)
        digits = tuple(
            replace(mine, stride=max(mine.stride, theirs.stride, key=_size))
            for mine, theirs in zip(_sorted(self), _sorted(other), strict=True)
        )
        opposed = any(
            mine.stride * theirs.stride < 0 for mine, theirs in zip(_sorted(self), _sorted(other), strict=True)
        )
        low, high = min(self.low, other.low), max(self.high, other.high)
        return replace(self, digits=digits, low=low, high=high, whole=whole or opposed, known=known)


@dataclass(frozen=True)
class Field:
    """What a tensor sees of the image: along its height and along its width."""

    height: Axis
    width: Axis

    @classmethod
    def of_image(cls, shape: Shape) -> Field:
        """Each pixel sees itself."""
        height, width = shape[-2:]
        return cls(
            Axis((Digit(-2, 1, height, 1),), 0, 0, height),
            Axis((Digit(-1, 1, width, 1),), 0, 0, width),
        )

    @property
    def is_map(self) -> bool:
        """Whether positions are left along both axes."""
        return all(axis.digits for axis in (self.height, self.width))

    @property
    def whole(self) -> bool:
        """Whether every pixel along an axis is seen."""
        return self.known and (self.height.whole or self.width.whole)

    @property
    def known(self) -> bool:
        """Whether every operator on the way could be traced."""
        return self.height.known and self.width.known

    @property
    def size(self) -> int | None:
        """Side of the field in input pixels, of the larger axis; None where it is not known."""
        if not self.known:
            return None
        axes = [self._without_channels(axis) for axis in (self.height, self.width)]
        return max(
            axis.extent if axis.whole and not axis.digits else math.floor(axis.high - axis.low) + 1 for axis in axes
        )

    @property
    def stride(self) -> float | None:
        """Input pixels from one position to the next, of the larger axis; None where there are none or not known."""
        # An axis's finest digits are its positions; a coarser one counts windows.
        axes = [self._without_channels(axis).digits for axis in (self.height, self.width)]
        strides = [min(_size(digit.stride) for digit in digits) for digits in axes if digits]
        if not (strides and self.known):
            return None
        return int(max(strides)) if max(strides).denominator == 1 else float(max(strides))

    def map(self, rule: Callable[[Axis], Axis]) -> Field:
        """Apply a rule to both axes."""
        return Field(rule(self.height), rule(self.width))

    def merge(self, other: Field) -> Field:
        """Two branches meet."""
        return Field(self.height.merge(other.height), self.width.merge(other.width))

    def unknown(self) -> Field:
        """After an operator that cannot be traced."""
        return self.map(lambda axis: replace(axis, known=False))

    def _without_channels(self, axis: Axis) -> Axis:
        """A position sees what its channels see: pixels that space-to-depth has put there."""
        is_nchw = all(any(d.dim == dim for d in a.digits) for a, dim in ((self.height, -2), (self.width, -1)))
        channels = -3 if is_nchw else -1
        if all(digit.dim == channels for digit in axis.digits):
            return axis
        return axis.absorb(channels)


def _size(stride: Number) -> Fraction:
    return abs(Fraction(stride))


def _inner_sizes(shape: Shape) -> dict[int, int]:
    """For each dimension (negative), the number of elements in one step along it."""
    return {dim: math.prod(shape[dim + 1 :]) if dim < -1 else 1 for dim in range(-len(shape), 0)}


def _split(digit: Digit, weight: int, inner: dict[int, int], shape: Shape) -> list[Digit] | None:
    """The digits of a new shape that make up one of an old; None if they do not fit."""
    parts: list[Digit] = []
    step, left, stride = weight, digit.size, digit.stride
    for dim in range(-1, -len(shape) - 1, -1):  # from the innermost
        room = inner[dim] * shape[dim]
        if left == 1 or step >= room or shape[dim] == 1:
            continue
        if step % inner[dim]:
            return None
        size = min(left, room // step)
        if left % size or room % step:
            return None
        parts.append(Digit(dim, step // inner[dim], size, stride))
        step, left, stride = step * size, left // size, stride * size
    return parts if left == 1 else None


def _joined(digits: Iterable[Digit]) -> tuple[Digit, ...]:
    """Digits that follow one another along a dimension and along the image are one."""
    joined: list[Digit] = []
    for digit in sorted(digits, key=lambda digit: (digit.dim, digit.weight)):
        last = joined[-1] if joined else None
        if last and (last.dim, last.weight * last.size, last.stride * last.size) == (
            digit.dim,
            digit.weight,
            digit.stride,
        ):
            joined[-1] = replace(last, size=last.size * digit.size)
        else:
            joined.append(digit)
    return tuple(joined)


def _sorted(axis: Axis) -> list[Digit]:
    return sorted(axis.digits, key=lambda digit: (digit.dim, digit.weight))


def _layout(axis: Axis) -> list[tuple[int, int, int]]:
    return [(digit.dim, digit.weight, digit.size) for digit in _sorted(axis)]
