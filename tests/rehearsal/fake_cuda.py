"""CUDA without CUDA: tensors that have no values, and a list of what makes a GPU wait.

PyTorch's fake tensors follow an operator's rules of device, type and shape without running it. So an operator that is
given tensors of two devices raises here as on a GPU. `Watch` sees each operator and notes two more things that no test
on a CPU shows: copies between host and device, and reads of a value by the host, for which it must wait for the device.

Tensors of `fake_cuda` say that they are on a GPU; but automatic differentiation wants that device's own threads, and so
``backward`` only gives each parameter a gradient. `meta_device` has the real one, on tensors of the meta device.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).parents[2]
OURS = tuple(str(ROOT / package) for package in ("bench", "zoo"))
DEVICE, META = torch.device("cuda", 0), torch.device("meta")

READ, UPLOAD, DOWNLOAD, WAIT = "read by the host", "copy to the device", "copy to the host", "synchronise"
aten = torch.ops.aten
READS = (aten._local_scalar_dense.default, aten.equal.default)
SIZED = (aten.bincount.default, aten.nonzero.default, aten.masked_select.default)
"""Operators whose output has a size that depends on values."""
FUSED = (aten._fused_sgd_.default, aten._fused_adam_.default, aten._fused_adamw_.default)


class Watch(TorchDispatchMode):
    """Counts, by kind and by the function of ours in which it happens, what makes a GPU wait.

    ``launches`` counts the operators on the device of that type.
    """

    def __init__(self, device: str = "cuda") -> None:
        super().__init__()
        self.device = device
        self.seen: Counter[tuple[str, str]] = Counter()
        self.launches = 0

    def note(self, kind: str) -> None:
        """One more, in the innermost function of ours."""
        self.seen[kind, _place()] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {tensor.device.type for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        here = self.device in given
        self.launches += here
        if self.device == "meta" and not here and "cpu" in given and func in (*READS, *SIZED, aten.index.Tensor):
            return func(*args, **kwargs)  # the host's own tensors have values
        if func is aten._local_scalar_dense.default:
            if here:
                self.note(READ)
            return _some_value(args[0])
        if func is aten.equal.default:
            if here:
                self.note(READ)
            return True
        if func in FUSED:  # they change in place what they are given, and have no form without values
            assert given == {self.device}, f"a fused optimizer is given tensors on {given}"
            return None
        if here and self.device == "meta" and func is aten._to_copy.default and _goes_to_cpu(kwargs):
            self.note(DOWNLOAD)  # which the meta device refuses
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if _has_size_that_depends_on_values(func, args):
            if here:
                self.note(READ)
            return _of_full_size(func, args, kwargs)
        result = func(*args, **kwargs)
        made = {tensor.device.type for tensor in tree_leaves(result) if isinstance(tensor, Tensor)}
        if "cpu" in given and self.device in made and not here and not _is_empty(args):
            self.note(UPLOAD)
        if func is aten.copy_.default and args[0].device.type != args[1].device.type:
            self.note(UPLOAD if args[0].device.type == self.device else DOWNLOAD)
        if here and "cpu" in made and "cpu" not in given:
            self.note(DOWNLOAD)
        return result


def _place() -> str:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(OURS):
            return f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_code.co_qualname}"
        frame = frame.f_back
    return "not in a function of ours"


def _goes_to_cpu(options: Any) -> bool:
    return options.get("device") is not None and torch.device(options["device"]).type == "cpu"


def _is_empty(args: Any) -> bool:
    return all(tensor.numel() == 0 for tensor in tree_leaves(args) if isinstance(tensor, Tensor))


def _some_value(tensor: Tensor) -> bool | int | float:
    return True if tensor.dtype is torch.bool else 1.0 if tensor.is_floating_point() else 0


def _has_size_that_depends_on_values(func: Any, args: Any) -> bool:
    if func is aten.index.Tensor:
        return any(each is not None and each.dtype is torch.bool for each in args[1])
    return func in SIZED


def _of_full_size(func: Any, args: Any, kwargs: Any) -> Tensor:
    """As if every value were chosen, and no number above the least count of bins."""
    if func is aten.bincount.default:
        weights = kwargs.get("weights", args[1] if len(args) > 1 else None)
        bins = kwargs.get("minlength", args[2] if len(args) > 2 else 0)
        return args[0].new_zeros(bins, dtype=torch.int64 if weights is None else torch.float64)
    if func is aten.nonzero.default:
        return args[0].new_zeros((args[0].numel(), args[0].ndim), dtype=torch.int64)
    return args[0].clone()


def _as_array(tensor: Tensor) -> NDArray[np.generic]:
    """Of the right shape and type; as from CUDA, an error for a tensor that is still on the device."""
    if tensor.device.type != "cpu":
        raise TypeError(f"can't convert {tensor.device} device type tensor to numpy")
    return np.zeros(tensor.shape, dtype=str(tensor.dtype).removeprefix("torch."))


_trained: list[nn.Module] = []


def train(model: nn.Module) -> nn.Module:
    """Have ``backward`` give gradients to the parameters of ``model``, until the rehearsal ends."""
    _trained.append(model)
    return model


def _give_gradients(loss: Tensor) -> None:
    for model in _trained:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)


def _zero_gradients(outputs: Tensor, inputs: Tensor | Sequence[Tensor], **options: Any) -> tuple[Tensor, ...]:
    return tuple(torch.zeros_like(each) for each in ([inputs] if isinstance(inputs, Tensor) else inputs))


def _replace(module: nn.Module, convert: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """As ``Module.to`` has it, which would rather exchange a parameter's content; fake tensors cannot do that."""
    for each in module.modules() if recurse else [module]:
        for name, parameter in each._parameters.items():
            if parameter is not None:
                each._parameters[name] = nn.Parameter(convert(parameter.detach()), parameter.requires_grad)
        for name, buffer in each._buffers.items():
            each._buffers[name] = None if buffer is None else convert(buffer)
    return module


@contextlib.contextmanager
def fake_cuda() -> Iterator[Watch]:
    """A machine with one GPU, and the notes of what makes it wait."""
    watch = Watch()
    state = torch.zeros(16, dtype=torch.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "synchronize", lambda device=None: watch.note(WAIT))
        patch.setattr(torch.cuda, "mem_get_info", lambda device=None: (80 * 2**30, 80 * 2**30))
        patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "get_rng_state", lambda device=None: state)
        patch.setattr(torch.cuda, "set_rng_state", lambda state, device=None: None)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(nn.Module, "_apply", _replace)
        patch.setattr(torch.autograd, "grad", _zero_gradients)
        patch.setattr(Tensor, "numpy", _as_array)
        patch.setattr(Tensor, "backward", _give_gradients)
        patch.setattr(Tensor, "pin_memory", lambda tensor, device=None: tensor)
        try:
            with FakeTensorMode(allow_non_fake_inputs=True), watch:
                yield watch
        finally:
            _trained.clear()


@contextlib.contextmanager
def meta_device() -> Iterator[Watch]:
    """The meta device as if it were a GPU, without autocast, which it does not know; real gradients, without values."""
    watch = Watch("meta")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "autocast", lambda *args, **options: contextlib.nullcontext())
        patch.setattr(sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices", lambda: ["meta"])
        with watch:
            yield watch
