"""The tracer of receptive fields: follows what each tensor sees of the image through the operators that run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.counting.complexity import is_composite
from bench.counting.field import Field
from bench.counting.field_rules import RULES, Call, keep

Key = tuple[int, int, tuple[int, ...], tuple[int, ...]]
_NEW = ("new_", "zeros_like", "ones_like", "full_like", "empty_like", "rand")


class FieldTracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the fields of all tensors from the image on, which `start` names."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Torch wraps one tensor in several objects: elements of memory are the key, and are kept alive.
        self.fields: dict[Key, tuple[torch.Tensor, Field]] = {}
        self.last_map: Field | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to skip it torch loads its compiler

    def start(self, image: torch.Tensor) -> None:
        """Trace from this tensor on."""
        self.fields[_key(image)] = image, Field.of_image(image.shape)

    def of(self, output: Any) -> Field | None:
        """The field of a layer's output: of its first tensor that sees the image."""
        traced = (self.fields.get(_key(tensor)) for tensor in _tensors(output))
        return next((each[1] for each in traced if each), None)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        sources = tuple(
            (index, traced[1], tuple(tensor.shape))  # the shape before an operator that changes it in place
            for index, argument in enumerate((*args, *kwargs.values()))
            for tensor in _tensors(argument)
            if (traced := self.fields.get(_key(tensor)))
        )
        result = func(*args, **kwargs)
        if sources:
            for index, output in enumerate(_tensors(result)):
                self._trace(func, Call(args, sources, output, index))
        return result

    def _trace(self, func: Any, call: Call) -> None:
        name = str(func.overloadpacket).removeprefix("aten.")
        if name.startswith(_NEW) or not call.output.numel():
            return  # of the image it has no more than the shape
        if name == "copy_":  # what was there before is gone
            call = replace(call, fields=call.fields[-1:])
        rule = RULES.get(name) or RULES.get(name.rstrip("_"))
        if rule is None and torch.Tag.pointwise in func.tags:
            rule = keep
        field = rule(call) if rule else call.source.unknown()
        self.fields[_key(call.output)] = call.output, field
        if field.is_map:
            self.last_map = field


def _key(tensor: torch.Tensor) -> Key:
    return tensor.untyped_storage()._cdata, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride()


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor))
