"""Records the operators of a network's step, and replays them without the network: see `bench.gate.timing.reference`.

It imports nothing of ours: `bench.gate.timing.worker` loads it by its path, in whatever environment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

SPREAD = 0.9
"""Of a product's values, relative to its inputs': less than one, so that hundreds of layers do not overflow."""


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operators that are called inside, up to the first of a backward pass."""

    def __init__(self, operators: AbstractSet[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[dict[str, Any]] = []
        self._operators = operators
        self._maker: dict[int, int] = {}  # by storage, the call that wrote it last
        self._forward = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to skip it torch loads its compiler, which takes longer than to record

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, overload = func.__name__.split(".")
        self._forward &= "backward" not in name
        if not self._forward:
            return func(*args, **kwargs)
        name = f"{name.removesuffix('_')}.{overload}"  # in place or not is the same work
        listed = name in self._operators and not kwargs
        if not listed:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        before = {_storage(each) for each in _tensors(args)}
        if listed:
            self.calls.append({"name": name, "arguments": [self._describe(each) for each in args]})
        result = func(*args, **kwargs)
        for tensor in _tensors([result]):
            if listed:
                self._maker[_storage(tensor)] = len(self.calls) - 1
            elif _storage(tensor) not in before:  # no view, and perhaps at the place of one that is gone
                self._maker.pop(_storage(tensor), None)
        return result

    def _describe(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [self._describe(each) for each in value]
        if not isinstance(value, torch.Tensor):
            return value
        described = {
            "shape": list(value.shape),
            "stride": list(value.stride()),
            "dtype": str(value.dtype).removeprefix("torch."),
        }
        maker = self._maker.get(_storage(value))
        if maker is not None:
            return described | {"back": len(self.calls) - maker, "offset": value.storage_offset()}
        return described | {"trained": value.requires_grad}


def record(step: Callable[[], None], names: AbstractSet[str]) -> dict[str, Any]:
    """The workload of a step of inference, or of the forward pass of a step of training: its operators of ``names``."""
    with _Recorder(names) as recorder:
        step()
    operators: list[dict[str, Any]] = []
    order = []
    for call in recorder.calls:
        if call not in operators:
            operators.append(call)
        order.append(operators.index(call))
    return {"operators": operators, "order": order}


class _Replay:
    """The calls of a workload, each with weights of its own, on what earlier calls have made."""

    def __init__(self, workload: dict[str, Any], device: torch.device, train: bool) -> None:
        self.weights: list[torch.Tensor] = []
        self._device, self._train = device, train
        self._generator = torch.Generator().manual_seed(0)
        self._made: list[torch.Tensor | None] = []
        self._last_use: dict[int, int] = {}
        self._calls = []
        for number, index in enumerate(workload["order"]):
            operator = workload["operators"][index]
            name, overload = operator["name"].split(".")
            function = getattr(getattr(torch.ops.aten, name), overload)
            self._calls.append((function, [self._bind(each, number) for each in operator["arguments"]]))
        self._unused = [[made for made, last in self._last_use.items() if last == n] for n in range(len(self._calls))]

    def run(self) -> list[torch.Tensor]:
        """Call all of them; the answer is what none of them has used."""
        self._made = []
        for (function, arguments), unused in zip(self._calls, self._unused, strict=True):
            result = function(*[argument() for argument in arguments])
            self._made.append(result[0] if isinstance(result, tuple) else result)
            for number in unused:
                self._made[number] = None
        return [each for each in self._made if each is not None]

    def _bind(self, value: Any, number: int) -> Callable[[], Any]:
        """Gives an argument of a call."""
        if isinstance(value, list):
            bound = [self._bind(each, number) for each in value]
            return lambda: [each() for each in bound]
        if not isinstance(value, dict):
            return lambda: value
        shape, stride = tuple(value["shape"]), tuple(value["stride"])
        if "back" in value:
            maker, offset = number - value["back"], value["offset"]
            self._last_use[maker] = number

            def made() -> torch.Tensor:
                tensor = self._made[maker]
                assert tensor is not None
                as_it_is = tensor.shape == shape and tensor.stride() == stride
                return tensor if as_it_is else torch.as_strided(tensor, shape, stride, offset)

            return made
        tensor = self._draw(shape, stride, getattr(torch, value["dtype"])).to(self._device)
        if self._train and value["trained"]:
            self.weights.append(tensor.requires_grad_())
        return lambda: tensor

    def _draw(self, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Vectors are about one, as those of norms; the rest keeps the size of what it is multiplied with."""
        tensor = torch.empty_strided(shape, stride, dtype=dtype)
        if not dtype.is_floating_point:
            return tensor.zero_()
        if len(shape) < 2:
            return tensor.uniform_(0.5, 1.5, generator=self._generator)
        terms = shape[0] if len(shape) == 2 else math.prod(shape[1:])
        return tensor.normal_(0.0, SPREAD / math.sqrt(max(1, terms)), generator=self._generator)


def create_step(device: torch.device, mode: str, workload: dict[str, Any]) -> Callable[[], None]:
    """One step of the workload on a device; in mode ``train`` with gradients, and an update of what is trained."""
    replay = _Replay(workload, device, train=mode == "train")

    def infer() -> None:
        with torch.inference_mode():
            replay.run()

    if not replay.weights:
        return infer
    momenta = [torch.zeros_like(weight) for weight in replay.weights]

    def train() -> None:
        outputs = [each.float().mean() for each in replay.run() if each.requires_grad]
        gradients = torch.autograd.grad(torch.stack(outputs).sum(), replay.weights, allow_unused=True)
        with torch.no_grad():
            for weight, momentum, gradient in zip(replay.weights, momenta, gradients, strict=True):
                if gradient is not None:
                    momentum.mul_(0.9).add_(gradient)
                    weight.add_(momentum, alpha=-1e-9)

    return train


def _tensors(values: Sequence[Any]) -> list[torch.Tensor]:
    nested = [each if isinstance(each, list | tuple) else [each] for each in values]
    return [each for inner in nested for each in inner if isinstance(each, torch.Tensor)]


def _storage(tensor: torch.Tensor) -> int:
    """What tells storages apart, also on the meta device; a number is not given twice while its storage lives."""
    return int(tensor.untyped_storage()._cdata)
