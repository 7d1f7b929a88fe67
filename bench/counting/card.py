"""The card of an architecture, and the rows of the zoo's list: what is known about a network without training it.

Networks are built and run on the meta device where they can be: that costs no memory of weights and no arithmetic.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from bench.counting.complexity import Complexity, Layer, count_complexity, count_macs, count_params
from bench.counting.receptive_field import LayerField, ReceptiveField, trace_receptive_field
from bench.counting.shapes import count_by_shapes
from zoo import ModelInfo, Published, ZooError, create_model, list_models, model_info
from zoo.registry import representative_models

LIST_SETTING = {"num_classes": 10, "input_size": 32, "in_chans": 3}
"""The setting of the counts in the list: CIFAR-10's."""
MOST_EXPENSIVE = 3


@dataclass(frozen=True)
class CardLayer(Layer):
    """One layer, or a stage into which layers are folded, as a part of its network.

    ``macs_share`` and ``params_share`` are fractions of the network's counts; ``receptive_field`` and
    ``receptive_field_stride`` are in input pixels, None where the layer sees no image or its field is not known.
    A stage has the output shape and the field of its last layer.
    """

    receptive_field: int | None
    receptive_field_stride: float | None
    whole_input: bool
    params_share: float
    macs_share: float


@dataclass(frozen=True)
class PublishedCounts:
    """What the literature states, and what the same setting counts here; None where it states nothing.

    ``gmacs`` are 10^9 multiply-accumulates as published, rounded there.
    """

    params: int | None
    gmacs: float | None
    source: str
    num_classes: int
    input_size: int
    in_chans: int
    counted_params: int
    counted_gmacs: float


@dataclass(frozen=True)
class Card:
    """Everything that `zoobench describe` shows about an architecture.

    Counts are for one image at ``num_classes``, ``input_size`` (pixels) and ``in_chans``; for their convention see
    `bench.counting.complexity`. ``uncounted`` names operators that are not in ``macs`` and may do such work.
    ``receptive_field`` is of the last map before global pooling, in input pixels, None where it is not known.
    """

    name: str
    family: str
    paper: str
    year: int | None
    task: str
    num_classes: int
    input_size: int
    in_chans: int
    params: int
    buffers: int
    macs: int
    macs_torch: int
    disagreements: tuple[str, ...]
    uncounted: tuple[str, ...]
    activations: int
    output_shape: tuple[int, ...]
    receptive_field: int | None
    receptive_field_stride: float | None
    receptive_field_whole_input: bool
    layers: tuple[CardLayer, ...]
    published: PublishedCounts | None
    small_image: str
    weights: str | None

    @property
    def flops(self) -> int:
        """Floating-point operations: two for each multiply-accumulate."""
        return 2 * self.macs

    def stages(self, depth: int = 1) -> tuple[CardLayer, ...]:
        """The layers folded by the first ``depth`` parts of their names, in order. ``depth`` is at least 1."""
        groups: dict[str, list[CardLayer]] = {}
        for layer in self.layers:
            groups.setdefault(".".join(layer.name.split(".")[:depth]), []).append(layer)
        return tuple(_fold(name, members) for name, members in groups.items())

    def most_expensive(self, count: int = MOST_EXPENSIVE) -> tuple[CardLayer, ...]:
        """The layers with most multiply-accumulates, most first."""
        return tuple(sorted(self.layers, key=lambda layer: -layer.macs)[:count])

    def to_dict(self, depth: int = 1) -> dict[str, Any]:
        """Plain values for JSON: every field, ``flops``, the ``stages`` at ``depth`` and the most expensive layers."""
        return asdict(self) | {
            "flops": self.flops,
            "stages": [asdict(stage) for stage in self.stages(depth)],
            "most_expensive": [layer.name for layer in self.most_expensive()],
        }


def describe(
    name: str, input_size: int | None = None, num_classes: int | None = None, in_chans: int = 3, **options: Any
) -> Card:
    """The card of ``name`` at the given input size (pixels) and number of classes, by default its canonical ones.

    ``options`` are the builder's, as in `zoo.create_model`. What is published holds for the architecture without any.

    Raises:
        UnknownModelError: nothing is registered under the name.
        ZooError: the architecture cannot be built for these arguments, or cannot take such images.
    """
    info = model_info(name)
    size = info.input_size if input_size is None else input_size
    classes = info.num_classes if num_classes is None else num_classes
    shape = (in_chans, size, size)

    def count(model: nn.Module) -> tuple[Complexity, ReceptiveField]:
        try:
            with trace_receptive_field(model) as trace:
                counts = count_complexity(model, shape, trace.tracer)
            return counts, trace.result()
        except ValueError as error:
            raise ZooError(f"{name!r} cannot take {in_chans}×{size}×{size} images: {error}") from error

    counts, field = count_by_shapes(lambda: create_model(name, classes, size, in_chans, **options), count)
    fields = {layer.name: layer for layer in field.layers}
    return Card(
        name=name,
        family=info.family,
        paper=info.paper,
        year=info.year,
        task=info.task,
        num_classes=classes,
        input_size=size,
        in_chans=in_chans,
        params=counts.params,
        buffers=counts.buffers,
        macs=counts.macs,
        macs_torch=counts.macs_torch,
        disagreements=counts.disagreements,
        uncounted=counts.uncounted,
        activations=counts.activations,
        output_shape=counts.output_shape,
        receptive_field=field.size,
        receptive_field_stride=field.stride,
        receptive_field_whole_input=field.whole_input,
        layers=tuple(_card_layer(layer, fields.get(layer.name), counts) for layer in counts.layers),
        published=_published_counts(info) if info.published else None,
        small_image=info.small_image,
        weights=info.weights,
    )


def list_rows(pattern: str | Iterable[str] = "*", *, canonical: bool = True) -> list[dict[str, Any]]:
    """One row of plain values for each model that matches, sorted by name.

    ``params``, ``macs`` and ``gmacs`` are counted at 32×32 and 10 classes, None for a model that cannot take such
    images. The keys ``input_size``, ``num_classes`` and ``in_chans`` name the canonical setting, at which
    ``published_params`` and ``published_gmacs`` hold; if ``canonical``, ``canonical_params``, ``canonical_macs`` and
    ``canonical_gmacs`` are counted there. Models of timm and torchvision, which are many, are not counted: they have
    the published values alone.
    """
    return [_list_row(name, canonical) for name in list_models(pattern)]


def _card_layer(layer: Layer, seen: LayerField | None, network: Complexity) -> CardLayer:
    return CardLayer(
        **vars(layer),
        receptive_field=seen.size if seen else None,
        receptive_field_stride=seen.stride if seen else None,
        whole_input=seen.whole_input if seen else False,
        params_share=layer.params / max(network.params, 1),
        macs_share=layer.macs / max(network.macs, 1),
    )


def _fold(name: str, members: Sequence[CardLayer]) -> CardLayer:
    last = next((layer for layer in reversed(members) if layer.output_shape), members[-1])
    return CardLayer(
        name=name,
        kind=last.kind if len(members) == 1 else f"{len(members)} layers",
        params=sum(layer.params for layer in members),
        macs=sum(layer.macs for layer in members),
        activations=sum(layer.activations for layer in members),
        output_shape=last.output_shape,
        receptive_field=last.receptive_field,
        receptive_field_stride=last.receptive_field_stride,
        whole_input=last.whole_input,
        params_share=sum(layer.params_share for layer in members),
        macs_share=sum(layer.macs_share for layer in members),
    )


def _published_counts(info: ModelInfo) -> PublishedCounts:
    published = info.published
    assert published is not None
    setting = _setting(info, published)
    params, macs = _count(info.name, **setting)
    return PublishedCounts(
        params=published.params,
        gmacs=published.gmacs,
        source=published.source,
        counted_params=params,
        counted_gmacs=macs / 1e9,
        **setting,
    )


def _setting(info: ModelInfo, published: Published | None) -> dict[str, int]:
    """The setting at which the published values hold; the builder's defaults without any."""
    if published is None:
        return {"num_classes": info.num_classes, "input_size": info.input_size, "in_chans": 3}
    return {
        "num_classes": published.num_classes,
        "input_size": published.input_size or info.input_size,
        "in_chans": published.in_chans,
    }


@functools.cache
def _count(name: str, num_classes: int, input_size: int, in_chans: int) -> tuple[int, int]:
    """Parameters and multiply-accumulates; raises `ZooError` for images the network cannot take."""
    shape = (in_chans, input_size, input_size)

    def count(model: nn.Module) -> tuple[int, int]:
        try:
            return count_params(model), count_macs(model, shape)
        except ValueError as error:
            raise ZooError(str(error)) from error

    return count_by_shapes(lambda: create_model(name, num_classes, input_size, in_chans), count)


def _list_row(name: str, canonical: bool) -> dict[str, Any]:
    info = model_info(name)
    setting = _setting(info, info.published)
    return {
        "name": name,
        "family": info.family,
        "year": info.year,
        "task": info.task,
        **_counts(name, LIST_SETTING, ""),
        **setting,
        **(_counts(name, setting, "canonical_") if canonical else {}),
        "published_params": info.published.params if info.published else None,
        "published_gmacs": info.published.gmacs if info.published else None,
        "representative": info.name in representative_models(),
        "weights": info.weights,
    }


def _counts(name: str, setting: dict[str, int], prefix: str) -> dict[str, int | float | None]:
    """``params``, ``macs`` and ``gmacs``, under a prefix; None for what the list does not count, or cannot."""
    params, macs, gmacs = None, None, None
    if "/" not in name:
        with contextlib.suppress(ZooError):
            params, macs = _count(name, **setting)
            gmacs = macs / 1e9
    return {f"{prefix}params": params, f"{prefix}macs": macs, f"{prefix}gmacs": gmacs}
