"""Exact counts of a network: parameters, multiply-accumulates (MACs) and activations, in total and per layer.

Convolutions, linear and recurrent layers and matrix products are counted; norm, activation, pooling, bias and
element-wise arithmetic are not. Two sets of formulas see one forward pass: fvcore's give ``macs``, torch's
(`torch.utils.flop_counter`) check them; what fvcore lacks, such as fused attention, recurrent and deformable layers,
has its formula here. An operator without one that is not known to be free is named in ``uncounted``.

Operators are recorded as torch dispatches them, by neither library's front end: fvcore's traces with TorchScript,
which torch deprecates and which cannot run on the meta device, where a network costs no memory and no arithmetic;
`FlopCounterMode` fails on views of parameters and loads torch's compiler.

Published counts are sometimes lower: counters built on fvcore's front end miss convolutions with ``padding="same"``
(ConvMixer) and recurrent layers (Sequencer2D, whose paper, arXiv:2205.01972, gives 8.4, 11.1 and 16.6 GMACs as here).

The gate loads this file by its path inside other revisions and environments: it imports nothing of this project.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # fvcore's losses, imported along, are TorchScript
    from fvcore.nn.jit_handles import addmm_flop_jit, bmm_flop_jit, conv_flop_jit, matmul_flop_jit

TOLERANCE = 0.001  # the two counters disagree where their totals differ by more than this share


@dataclass(frozen=True)
class Layer:
    """One layer, in the order of its first call; a layer that is called twice counts twice.

    ``params`` are the layer's own trainable parameters, ``activations`` the elements that its convolutions and matrix
    products put out, ``output_shape`` is without the batch. Counts are for one image.
    """

    name: str
    kind: str
    params: int
    macs: int
    activations: int
    output_shape: tuple[int, ...]


@dataclass(frozen=True)
class Complexity:
    """The counts for one image's forward pass in eval mode.

    ``params`` are the elements of trainable parameters, ``buffers`` those of buffers. ``macs_torch`` is the second
    counter's total, and ``disagreements`` says which operators it counts differently where the totals differ by more
    than 0.1%. ``uncounted`` names the operators that are neither counted nor known to be free: with any of them,
    ``macs`` is a lower bound. ``operators`` are all operators in the order of their execution, for gates that must be
    exact. ``output_shape`` is without the batch, of the first output where there are several.
    """

    params: int
    buffers: int
    macs: int
    activations: int
    output_shape: tuple[int, ...]
    macs_torch: int
    disagreements: tuple[str, ...] = ()
    uncounted: tuple[str, ...] = ()
    layers: tuple[Layer, ...] = field(default=(), repr=False)
    operators: tuple[str, ...] = field(default=(), repr=False)

    @property
    def flops(self) -> int:
        """Floating-point operations: two for each multiply-accumulate."""
        return 2 * self.macs


def count_params(model: nn.Module) -> int:
    """Elements of the trainable parameters; a shared one counts once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_macs(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Multiply-accumulates for one image: `count_complexity` without its check and its table, in half the time."""
    recorder, image = _Recorder(), create_image(model, input_shape)
    with recorder:
        run_forward(model, image)
    return sum(recorder.macs.values()) // image.shape[0]


def count_complexity(
    model: nn.Module, input_shape: tuple[int, ...], observer: AbstractContextManager[Any] | None = None
) -> Complexity:
    """Count what one forward pass of ``model`` takes.

    Args:
        model: on any device; on the meta device nothing is computed. Left as it was, training mode included.
        input_shape: ``C, H, W`` of one image, or with a leading batch size; counts are for one image either way.
        observer: entered around the forward pass, such as a dispatch mode that looks for something else.

    Raises:
        ValueError: the network cannot take input of this shape; the network's own error is the cause.
    """
    recorder, image = _Recorder(), create_image(model, input_shape)
    batch = image.shape[0]
    with _layer_hooks(model, recorder), recorder, observer or nullcontext():
        output = first_tensor(run_forward(model, image))

    return Complexity(
        params=count_params(model),
        buffers=sum(buffer.numel() for buffer in model.buffers()),
        macs=sum(recorder.macs.values()) // batch,
        activations=sum(recorder.activations.values()) // batch,
        output_shape=tuple(output.shape[1:]),
        macs_torch=recorder.macs_torch.total() // batch,
        disagreements=_disagreements(recorder, batch),
        uncounted=tuple(sorted(recorder.uncounted)),
        layers=tuple(recorder.layers(model, batch)),
        operators=tuple(recorder.operators),
    )


def create_image(model: nn.Module, input_shape: tuple[int, ...]) -> torch.Tensor:
    """Zeros where the model is and of its type; a shape without batch is of one image."""
    parameter = next(model.parameters(), None)
    shape = input_shape if len(input_shape) == 4 else (1, *input_shape)
    return torch.zeros(shape) if parameter is None else parameter.new_zeros(shape)


def run_forward(model: nn.Module, image: torch.Tensor) -> Any:
    """The output of a forward pass in eval mode without gradients; the model is left as it was.

    Raises:
        ValueError: the network cannot take the image; the network's own error is the cause.
    """
    modes = {module: module.training for module in model.modules()}
    fastpath = torch.backends.mha.get_fastpath_enabled()
    # The fast path of nn.MultiheadAttention is one operator for which neither set has a formula.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        model.eval()
        with torch.no_grad():
            return model(image)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{type(model).__name__} cannot take input of shape {'×'.join(map(str, image.shape[1:]))}: {reason}"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for module, training in modes.items():
            module.training = training


def first_tensor(output: Any) -> torch.Tensor:
    """The first tensor of a network's output, whatever holds it; an empty one where there is none."""
    leaves, _ = tree_flatten(output)
    return next((leaf for leaf in leaves if isinstance(leaf, torch.Tensor)), torch.empty(0, device="meta"))


def _value(value: Any) -> SimpleNamespace:
    """A recorded argument in the shape in which fvcore's formulas read a TorchScript value."""
    return SimpleNamespace(
        isCompleteTensor=lambda: isinstance(value, torch.Tensor),
        type=lambda: SimpleNamespace(sizes=lambda: list(value.shape)),
        toIValue=lambda: value,
    )


Formula = Callable[[Sequence[Any], torch.Tensor], int]
"""Multiply-accumulates from an operator's arguments and its first output."""


def _of_fvcore(formula: Callable[..., Any], first: int = 0, length: int | None = None) -> Formula:
    """fvcore's formula, given ``length`` arguments (all without) from ``first`` on; missing ones are None."""

    def count(args: Sequence[Any], output: torch.Tensor) -> int:
        given = list(args[first:])
        given = given if length is None else [*given, *[None] * length][:length]
        macs = formula([_value(argument) for argument in given], [_value(output)])
        # fvcore names what it counts where one operator holds several kinds: Counter({"conv": …}).
        return int(macs.total() if isinstance(macs, Counter) else macs)

    return count


def _attention(args: Sequence[Any], output: torch.Tensor) -> int:
    """Queries times keys and weights times values: L·S·(E + Ev) for each head, masked or not."""
    query, key, value = args[:3]
    return int(math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


def _trilinear(args: Sequence[Any], output: torch.Tensor) -> int:
    """A bilinear layer: one for each weight and image, of all dimensions that its three factors span."""
    factors = [
        functools.reduce(torch.unsqueeze, dims, tensor) for tensor, dims in zip(args[:3], args[3:6], strict=True)
    ]
    return int(torch.broadcast_tensors(*factors)[0].numel())  # type: ignore[no-untyped-call]


_ATTENTION_KERNELS = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
_FORMULAS: Mapping[str, Formula] = {
    # fvcore asks for the thirteen arguments that the operator has in TorchScript; it reads the first seven.
    "aten.convolution": _of_fvcore(conv_flop_jit, length=13),
    **dict.fromkeys(("aten.addmm", "aten._addmm_activation"), _of_fvcore(addmm_flop_jit)),
    **dict.fromkeys(("aten.mm", "aten._int_mm", "aten._scaled_mm"), _of_fvcore(matmul_flop_jit, length=2)),
    "aten.bmm": _of_fvcore(bmm_flop_jit, length=2),
    **dict.fromkeys(("aten.baddbmm", "aten.addbmm"), _of_fvcore(bmm_flop_jit, first=1, length=2)),
    **dict.fromkeys(("aten.mv", "aten.dot", "aten.vdot"), lambda args, output: int(args[0].numel())),
    "aten.addmv": lambda args, output: int(args[1].numel()),
    "aten.addr": lambda args, output: output.numel(),
    "aten._trilinear": _trilinear,
    **dict.fromkeys((f"aten._scaled_dot_product_{kernel}" for kernel in _ATTENTION_KERNELS), _attention),
    "aten._scaled_dot_product_fused_attention_overrideable": _attention,
    # As if it were not deformed: each weight at each position.
    "torchvision.deform_conv2d": lambda args, output: args[1].numel() * output.numel() // output.shape[1],
}

_RECURRENT: Mapping[str, slice] = {
    "aten.mkldnn_rnn_layer": slice(1, 3),
    "aten._cudnn_rnn": slice(1, 2),
    "aten.miopen_rnn": slice(1, 2),
    "aten._lstm_mps": slice(2, 3),
}
"""Where fused recurrent operators take their weights (matrices) and biases (vectors)."""
# Norm, softmax, activation, reduction, order, indexing, movement, creation, checks, gates of recurrent layers.
_FREE_NAMES = """
norm renorm cudnn_batch_norm miopen_batch_norm batch_norm_with_update weight_norm_interface fused_rms_norm
softmax log_softmax safe_softmax masked_softmax hardswish prelu_kernel rrelu_with_noise log_sigmoid_forward
sum nansum mean prod var var_mean std std_mean max min amax amin aminmax argmax argmin all any logsumexp median
nanmedian mode kthvalue count_nonzero cumsum cumprod cummax cummin logcumsumexp topk sort searchsorted bucketize
embedding embedding_bag gather take masked_select nonzero unique2 unique_dim bincount histc floor_divide
cat stack copy to_copy clone unsafe_view unsafe_index unsafe_split unsafe_split_with_sizes constant_pad_nd flip
roll repeat repeat_interleave im2col col2im pixel_shuffle pixel_unshuffle channel_shuffle tril triu rot90
as_strided resize set pack_padded_sequence nested_tensor_from_mask masked_scatter grid_sampler_2d grid_sampler_3d
empty empty_like empty_strided zeros zeros_like ones ones_like full full_like arange linspace logspace eye
scalar_tensor lift_fresh local_scalar_dense bernoulli normal uniform multinomial native_dropout efficientzerotensor
assert_async assert_scalar equal is_same_size thnn_fused_lstm_cell thnn_fused_gru_cell tril_indices triu_indices
torchvision.nms torchvision.roi_align torchvision.roi_pool torchvision.ps_roi_align
"""
_FREE = frozenset(_FREE_NAMES.split())
_FREE_PREFIXES = (
    *("native_batch_norm", "native_layer_norm", "native_group_norm", "linalg_vector_norm"),
    *("avg_pool", "max_pool", "adaptive_avg_pool", "adaptive_max_pool", "fractional_max_pool", "max_unpool"),
    *("upsample_", "reflection_pad", "replication_pad", "index", "scatter", "new_", "rand"),
)


def _is_free(func: Any, operator: str) -> bool:
    """Whether an operator does no products that count: it views or moves, or works element by element."""
    name = operator.removeprefix("aten.").strip("_")
    by_name = name in _FREE or (operator.startswith("aten.") and name.startswith(_FREE_PREFIXES))
    return by_name or func.is_view or bool({torch.Tag.pointwise, torch.Tag.inplace_view} & set(func.tags))


def _is_batch_norm_on_meta(image: torch.Tensor, *channels: torch.Tensor | None) -> bool:
    """Its meta kernel is Python and takes most of the time of a forward pass; the shape is the input's, if all fits."""
    return image.is_meta and all(each is None or each.shape == image.shape[1:2] for each in channels[:4])


@functools.cache
def is_composite(func: Any) -> bool:
    """Whether an operator is made of others; torch takes these apart before a mode sees them, but in inference mode."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), torch._C.DispatchKey.CompositeImplicitAutograd)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every operator, and its multiply-accumulates under the layer that runs it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: list[str] = []
        self.uncounted: set[str] = set()
        self.macs: Counter[tuple[str, str]] = Counter()  # (layer, operator)
        self.macs_torch: Counter[str] = Counter()
        self.activations: Counter[str] = Counter()
        self.stack: list[str] = [""]
        self.shapes: dict[str, tuple[int, ...]] = {}  # in the order of the layers' first calls

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to skip it torch loads its compiler, which takes longer than to count

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        operator = str(func.overloadpacket)
        if operator not in _FORMULAS and is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        if operator != "aten.empty":  # memory, not work: some kernels ask for it, on some devices
            self.operators.append(operator)
        if operator == "aten.native_batch_norm" and _is_batch_norm_on_meta(*args):
            return args[0].new_empty(args[0].shape), args[0].new_empty(0), args[0].new_empty(0)
        result = func(*args, **kwargs)
        if operator in _FORMULAS or operator in _RECURRENT:
            self._count(operator, args, first_tensor(result))
        elif not _is_free(func, operator):
            self.uncounted.add(operator)
        if func.overloadpacket in flop_registry:
            self.macs_torch[operator] += flop_registry[func.overloadpacket](*args, **kwargs, out_val=result) // 2
        return result

    def _count(self, operator: str, args: Sequence[Any], output: torch.Tensor) -> None:
        if operator in _RECURRENT:  # each weight at each step; all gates are put out, as by the operators it fuses
            weights = [leaf for leaf in tree_flatten(args[_RECURRENT[operator]])[0] if leaf.dim() == 2]
            steps = math.prod(args[0].shape[:-1])
            macs, elements = steps * sum(map(torch.numel, weights)), steps * sum(len(weight) for weight in weights)
        else:
            macs, elements = _FORMULAS[operator](args, output), output.numel()
        self.macs[self.stack[-1], operator] += macs
        self.activations[self.stack[-1]] += elements

    def layers(self, model: nn.Module, batch: int) -> Iterator[Layer]:
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
                yield Layer(
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
                    recorder.shapes[name] = tuple(first_tensor(output).shape)

            # First in, last out: no other hook's work is taken for the layer's own.
            for handle in (module.register_forward_pre_hook(enter), module.register_forward_hook(leave)):
                stack.callback(handle.remove)
        yield


def _disagreements(recorder: _Recorder, batch: int) -> tuple[str, ...]:
    counted: Counter[str] = Counter()
    for (_, operator), macs in recorder.macs.items():
        counted[operator] += macs
    checked = recorder.macs_torch
    if abs(counted.total() - checked.total()) <= TOLERANCE * max(counted.total(), checked.total()):
        return ()
    return tuple(
        f"{operator}: here {counted[operator] // batch:,}, torch {checked[operator] // batch:,} multiply-accumulates"
        for operator in sorted(counted.keys() | checked.keys())
        if counted[operator] != checked[operator]
    )
