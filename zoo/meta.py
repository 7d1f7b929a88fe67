"""Networks without memory: built and followed on the meta device, or with values where they need some.

Most networks can be built on the meta device, whose tensors have shapes and no values. Some read a value meanwhile, as
torchvision's RegNet does from ``torch.linspace``; of those the parameters alone go without memory, and where that is
not enough either, the network is built on the CPU.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

R = TypeVar("R")

META = torch.device("meta")


class _ParametersOnMeta(TorchFunctionMode):
    """``torch.empty``, by which layers allocate their parameters, yields meta tensors; all else has values."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func is torch.empty and named.get("device") is None:
            named["device"] = META
        return func(*args, **named)


def build_on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """The network that ``build`` returns, on the meta device; on the CPU where it cannot be built there.

    Raises what ``build`` raises. It may be called up to three times.
    """
    return follow_on_meta(build, lambda model: model)


def follow_on_meta(build: Callable[[], nn.Module], follow: Callable[[nn.Module], R]) -> R:
    """What ``follow`` returns of the network, on the meta device; on the CPU where either needs values.

    ``follow`` makes its inputs on `device_of` the network. Raises what ``build`` or ``follow`` raises. They may be
    called up to three times.
    """
    for mode in (META, _ParametersOnMeta()):
        try:
            with mode:
                model = build().to(META)  # a buffer made of a NumPy array has values even so
            return follow(model)
        except Exception as error:
            if not _lacks_values(error):
                raise
    return follow(build())


def _lacks_values(error: BaseException) -> bool:
    """Whether an error comes of tensors that have no values: PyTorch's messages of that kind name the device."""
    if isinstance(error, NotImplementedError) or re.search(r"\bmeta\b", str(error), re.IGNORECASE):
        return True
    return error.__cause__ is not None and _lacks_values(error.__cause__)


def device_of(model: nn.Module) -> torch.device:
    """Where the parameters of a network are; the CPU if it has none."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))
