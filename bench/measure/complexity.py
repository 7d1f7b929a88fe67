"""Exact counts of a network: parameters, multiply-accumulates and activations, in total and per layer.

Counted are convolutions, linear layers and matrix products; norm, activation, pooling and bias are not. Two counters
look at one forward pass: fvcore's rules, which give ``macs``, and ``torch.utils.flop_counter``, which checks them.

fvcore's own front end traces with TorchScript, which torch deprecates and which cannot run on the meta device, where
a network costs no memory and no arithmetic. So the operators are recorded here as torch dispatches them, and fvcore's
rule is applied to each. For fused attention, which fvcore skips, the rule is ours.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # fvcore's losses, imported along, are TorchScript
    from fvcore.nn.jit_handles import addmm_flop_jit, bmm_flop_jit, conv_flop_jit, matmul_flop_jit

TOLERANCE = 0.001
"""The two counters disagree where their totals differ by more than this share."""


@dataclass(frozen=True)
class LayerRow:
    """One layer, in the order of its first call; a layer that is called twice counts twice.

    ``params`` are the layer's own trainable parameters, ``activations`` the elements that its convolutions and matrix
    products put out, ``output_shape`` without the batch.
    """

    name: str
    kind: str
    params: int
    macs: int
    activations: int
    output_shape: tuple[int, ...]


@dataclass(frozen=True)
class Complexity:
    """The counts of one image's forward pass in eval mode.

    ``params`` are the elements of trainable parameters, ``buffers`` those of buffers. ``macs_torch`` is the second
    counter's total, and ``disagreements`` says which operators it counts differently where the totals differ by more
    than 0.1%. ``operators`` are all operators in the order of their execution, for gates that must be exact.
    ``output_shape`` is without the batch, of the first output where there are several.
    """

    params: int
    buffers: int
    macs: int
    activations: int
    output_shape: tuple[int, ...]
    macs_torch: int
    disagreements: tuple[str, ...] = ()
    layers: tuple[LayerRow, ...] = field(default=(), repr=False)
    operators: tuple[str, ...] = field(default=(), repr=False)

    @property
    def flops(self) -> int:
        """Floating-point operations: two for each multiply-accumulate."""
        return 2 * self.macs


def count_params(model: nn.Module) -> int:
    """Elements of the trainable parameters; a shared one counts once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_macs(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Multiply-accumulates alone: `count_complexity` without its check and its table, in half the time."""
    recorder, image = _Recorder(), _image(model, input_shape)
    with recorder:
        _forward(model, image)
    return sum(recorder.macs.values())


def count_complexity(model: nn.Module, input_shape: tuple[int, ...]) -> Complexity:
    """Count what one forward pass of ``model`` takes.

    Args:
        model: on any device; on the meta device nothing is computed. Left as it was, training mode included.
        input_shape: ``C, H, W`` of one image, or with a leading batch size; counts are of one image either way.

    Raises:
        ValueError: the network cannot take input of this shape.
    """
    recorder, image = _Recorder(), _image(model, input_shape)
    checker, batch = FlopCounterMode(display=False), image.shape[0]
    with _layer_hooks(model, recorder), checker, recorder:
        output = _forward(model, image)

    counted: Counter[str] = Counter()
    for (_, operator), macs in recorder.macs.items():
        counted[operator] += macs // batch
    checked: Counter[str] = Counter()
    for packet, flops in checker.get_flop_counts().get("Global", {}).items():
        checked[str(packet)] += flops // (2 * batch)
    return Complexity(
        params=count_params(model),
        buffers=sum(buffer.numel() for buffer in model.buffers()),
        macs=counted.total(),
        activations=sum(recorder.activations.values()) // batch,
        output_shape=tuple(output.shape[1:]),
        macs_torch=checked.total(),
        disagreements=_disagreements(counted, checked),
        layers=tuple(recorder.rows(model, batch)),
        operators=tuple(recorder.operators),
    )


class _Value:
    """A recorded argument in the shape in which fvcore's rules read a TorchScript value."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def isCompleteTensor(self) -> bool:  # noqa: N802 - fvcore's name
        return isinstance(self.value, torch.Tensor)

    def type(self) -> _Value:
        return self

    def sizes(self) -> list[int]:
        return list(self.value.shape)

    def toIValue(self) -> Any:  # noqa: N802 - fvcore's name
        return self.value


def _attention_macs(inputs: Sequence[_Value], outputs: Sequence[_Value]) -> int:
    """Queries times keys and weights times values: L·S·(E + Ev) for each head, masked or not."""
    del outputs
    query, key, value = (tensor.sizes() for tensor in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _convolution_macs(inputs: Sequence[_Value], outputs: Sequence[_Value]) -> Any:
    """fvcore's rule asks for the thirteen arguments that the operator has in TorchScript; it reads the first seven."""
    return conv_flop_jit([*inputs, *[_Value(None)] * (13 - len(inputs))], outputs)


def _without_bias(rule: Callable[..., Any]) -> Callable[[Sequence[_Value], Sequence[_Value]], Any]:
    return lambda inputs, outputs: rule(inputs[1:], outputs)


_RULES: Mapping[str, Callable[[Sequence[_Value], Sequence[_Value]], Any]] = {
    "aten.convolution": _convolution_macs,
    "aten.addmm": addmm_flop_jit,
    "aten.mm": matmul_flop_jit,
    "aten.bmm": bmm_flop_jit,
    "aten.baddbmm": _without_bias(bmm_flop_jit),
    "aten._scaled_dot_product_flash_attention_for_cpu": _attention_macs,
    "aten._scaled_dot_product_flash_attention": _attention_macs,
    "aten._scaled_dot_product_efficient_attention": _attention_macs,
    "aten._scaled_dot_product_cudnn_attention": _attention_macs,
    "aten._scaled_dot_product_fused_attention_overrideable": _attention_macs,
}


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every operator, and its multiply-accumulates under the layer that runs it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: list[str] = []
        self.macs: Counter[tuple[str, str]] = Counter()  # (layer, operator)
        self.activations: Counter[str] = Counter()
        self.stack: list[str] = [""]
        self.shapes: dict[str, tuple[int, ...]] = {}  # in the order of the layers' first calls

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        operator = str(func.overloadpacket)
        if operator != "aten.empty":  # memory, not work: some kernels ask for it, on some devices
            self.operators.append(operator)
        if operator == "aten.native_batch_norm" and args[0].is_meta:
            # Its meta kernel is Python and takes most of the time of a forward pass; the shape is the input's.
            return torch.empty_like(args[0]), args[0].new_empty(0), args[0].new_empty(0)
        result = func(*args, **(kwargs or {}))
        if operator in _RULES:
            output = result[0] if isinstance(result, tuple) else result
            macs = _RULES[operator]([_Value(argument) for argument in args], [_Value(output)])
            # fvcore names what it counts where one operator holds several kinds: Counter({"conv": …}).
            self.macs[self.stack[-1], operator] += int(macs.total() if isinstance(macs, Counter) else macs)
            self.activations[self.stack[-1]] += output.numel()
        return result

    def rows(self, model: nn.Module, batch: int) -> Iterator[LayerRow]:
        """The layer table: every layer without children, and those with children that own parameters or work."""
        macs: Counter[str] = Counter()
        for (layer, _), count in self.macs.items():
            macs[layer] += count
        modules = dict(model.named_modules())
        params: Counter[str] = Counter()
        for key, parameter in model.named_parameters():
            # Of a module that is never called, such as attention's projection, the one that uses it has the weights.
            owner = key.rpartition(".")[0]
            while owner and owner not in self.shapes:
                owner = owner.rpartition(".")[0]
            params[owner] += parameter.numel() if parameter.requires_grad else 0
        for name, shape in self.shapes.items():
            module = modules[name]
            leaf = next(module.children(), None) is None
            if leaf or params[name] or macs[name]:
                yield LayerRow(
                    name=name,
                    kind=type(module).__name__,
                    params=params[name],
                    macs=macs[name] // batch,
                    activations=self.activations[name] // batch,
                    output_shape=shape[1:],
                )


@contextmanager
def _layer_hooks(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """While inside, the recorder knows which layer is running."""
    with ExitStack() as stack:
        for name, module in model.named_modules():

            def enter(module: nn.Module, args: Any, name: str = name) -> None:
                recorder.stack.append(name)
                recorder.shapes.setdefault(name, ())

            def leave(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
                recorder.stack.pop()
                if not recorder.shapes[name]:
                    recorder.shapes[name] = tuple(_first_tensor(output).shape)

            # First in, last out: no other hook's work is taken for the layer's own.
            for handle in (module.register_forward_pre_hook(enter), module.register_forward_hook(leave)):
                stack.callback(handle.remove)
        yield


def _image(model: nn.Module, input_shape: tuple[int, ...]) -> torch.Tensor:
    """Zeros where the model is; a shape without batch is of one image."""
    parameter = next(model.parameters(), None)
    shape = input_shape if len(input_shape) == 4 else (1, *input_shape)
    return torch.zeros(shape) if parameter is None else parameter.new_zeros(shape)


def _forward(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """The first output of a forward pass in eval mode without gradients."""
    modes = {module: module.training for module in model.modules()}
    fastpath = torch.backends.mha.get_fastpath_enabled()
    # The fast path of nn.MultiheadAttention is one operator that neither counter looks into.
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    try:
        with torch.no_grad():
            output = model(image)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{type(model).__name__} cannot take input of shape {'×'.join(map(str, image.shape[1:]))}: {reason}"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for module, training in modes.items():
            module.training = training
    return _first_tensor(output)


def _first_tensor(output: Any) -> torch.Tensor:
    leaves, _ = tree_flatten(output)
    return next((leaf for leaf in leaves if isinstance(leaf, torch.Tensor)), torch.empty(0, device="meta"))


def _disagreements(counted: Mapping[str, int], checked: Mapping[str, int]) -> tuple[str, ...]:
    ours, theirs = sum(counted.values()), sum(checked.values())
    if abs(ours - theirs) <= TOLERANCE * max(ours, theirs):
        return ()
    return tuple(
        f"{operator}: fvcore {counted.get(operator, 0):,}, torch {checked.get(operator, 0):,} multiply-accumulates"
        for operator in sorted(counted.keys() | checked.keys())
        if counted.get(operator, 0) != checked.get(operator, 0)
    )
