"""The card of an architecture, and the rows of the zoo's list: what is known of a network without training it.

Networks are built on the meta device: nothing here costs the memory of weights or the arithmetic of a forward pass.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.measure.complexity import count_complexity, count_macs, count_params
from bench.measure.receptive_field import count_receptive_field
from zoo import ModelInfo, Published, ZooError, create_model, list_models, model_info
from zoo.registry import representative_models

LIST_SETTING = {"num_classes": 10, "input_size": 32, "in_chans": 3}
"""The setting of the counts in the list: CIFAR-10's."""
MOST_EXPENSIVE = 3


@dataclass(frozen=True)
class CardLayer:
    """One layer, or a stage into which layers are folded.

    ``params`` and ``macs`` are counts of one image, ``macs_share`` and ``params_share`` fractions of the network's;
    ``receptive_field`` and ``receptive_field_stride`` are in input pixels, None where the layer sees no image.
    A stage has the output shape and the field of its last layer.
    """

    name: str
    kind: str
    params: int
    macs: int
    activations: int
    output_shape: tuple[int, ...]
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
    """Everything that `zoobench describe` tells of an architecture.

    Counts are of one image at ``num_classes``, ``input_size`` (pixels) and ``in_chans``; see `bench.measure.complexity`
    for their convention. ``receptive_field`` is of the last map before global pooling, in input pixels.
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
    activations: int
    output_shape: tuple[int, ...]
    receptive_field: int
    receptive_field_stride: float
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
        """Plain values for JSON: every field, ``flops``, the ``stages`` at ``depth`` and the dearest layers."""
        return asdict(self) | {
            "flops": self.flops,
            "stages": [asdict(stage) for stage in self.stages(depth)],
            "most_expensive": [layer.name for layer in self.most_expensive()],
        }


def describe(
    name: str, input_size: int | None = None, num_classes: int | None = None, in_chans: int = 3, **options: Any
) -> Card:
    """The card of ``name`` at the given input size (pixels) and number of classes, by default its canonical ones.

    Raises:
        UnknownModelError: nothing is registered under the name.
        ZooError: the architecture cannot be built for these arguments, or cannot take such images.
    """
    info = model_info(name)
    size = info.input_size if input_size is None else input_size
    classes = info.num_classes if num_classes is None else num_classes
    with torch.device("meta"):
        model = create_model(name, classes, size, in_chans, **options)
    shape = (in_chans, size, size)
    try:
        counts = count_complexity(model, shape)
        field = count_receptive_field(model, shape)
    except ValueError as error:
        raise ZooError(f"{name!r} cannot take {in_chans}×{size}×{size} images: {error}") from error

    fields = {layer.name: layer for layer in field.layers}
    layers = []
    for row in counts.layers:
        seen = fields.get(row.name)
        layers.append(
            CardLayer(
                **asdict(row),
                receptive_field=seen.size if seen else None,
                receptive_field_stride=seen.stride if seen else None,
                whole_input=seen.whole_input if seen else False,
                params_share=row.params / max(counts.params, 1),
                macs_share=row.macs / max(counts.macs, 1),
            )
        )
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
        activations=counts.activations,
        output_shape=counts.output_shape,
        receptive_field=field.size,
        receptive_field_stride=field.stride,
        receptive_field_whole_input=field.whole_input,
        layers=tuple(layers),
        published=_published_counts(info) if info.published else None,
        small_image=info.small_image,
        weights=info.weights,
    )


def list_rows(pattern: str | Iterable[str] = "*") -> list[dict[str, Any]]:
    """One row of plain values for each model that matches, sorted by name.

    ``params`` and ``gmacs`` are counted at 32×32 and 10 classes, None for a model that cannot take such images;
    ``canonical_params`` and ``canonical_gmacs`` are counted at the canonical setting, which the keys ``input_size``,
    ``num_classes`` and ``in_chans`` name, beside ``published_params`` and ``published_gmacs``. Of timm's and
    torchvision's models, which are many, nothing is counted: they have the published values alone.
    """
    return [_list_row(name) for name in list_models(pattern)]


def render_rows(rows: Iterable[dict[str, Any]]) -> RenderableType:
    """`list_rows` for a terminal; a star marks the models that the plan ``quick`` takes."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("model", style="bold", overflow="fold")
    table.add_column("family")
    table.add_column("year", justify="right")
    for column in ("params", "GMACs"):
        table.add_column(f"{column}\n10 classes, 32×32", justify="right")
    for column in ("params", "GMACs"):
        table.add_column(f"{column}\npublished", justify="right")
    for row in rows:
        values = [row[key] for key in ("params", "gmacs", "published_params", "published_gmacs")]
        cells = [
            "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}" for value in values
        ]
        star = " *" if row["representative"] else ""
        table.add_row(Text(row["name"] + star), row["family"], str(row["year"] or "–"), *cells)
    return table


def render_card(card: Card, depth: int = 1) -> RenderableType:
    """The card for a terminal: facts, the layer table folded to ``depth``, the dearest layers."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    facts.add_column()
    for label, value in _facts(card):
        facts.add_row(label, Text(value))

    table = Table(title=f"{card.name}, layers at depth {depth}", title_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("kind")
    for column in ("params", "MACs", "share", "output", "sees", "stride"):
        table.add_column(column, justify="right")
    for stage in card.stages(depth):
        sees = "–" if stage.receptive_field is None else str(stage.receptive_field)
        table.add_row(
            Text(stage.name or "(the model itself)"),
            Text(stage.kind),
            f"{stage.params:,}",
            f"{stage.macs:,}",
            f"{stage.macs_share:.1%}",
            "×".join(map(str, stage.output_shape)),
            f"{sees}, all" if stage.whole_input else sees,
            "–" if stage.receptive_field_stride is None else f"{stage.receptive_field_stride:g}",
        )
    return Group(facts, Text(), table)


def _facts(card: Card) -> list[tuple[str, str]]:
    size = f"{card.in_chans}×{card.input_size}×{card.input_size}"
    dearest = [f"{layer.name} ({layer.kind}, {layer.macs_share:.1%})" for layer in card.most_expensive()]
    whole = ", then the whole input" if card.receptive_field_whole_input else ""
    facts = [
        ("model", f"{card.name} ({card.family}, {card.task})"),
        ("paper", card.paper or "–"),
        ("year", str(card.year or "–")),
        ("input", f"{size}, {card.num_classes:,} classes"),
        ("parameters", f"{card.params:,} (and {card.buffers:,} in buffers)"),
        ("MACs", f"{card.macs:,} ({card.macs / 1e9:.4g} G; {card.flops / 1e9:.4g} GFLOPs)"),
        ("activations", f"{card.activations:,}"),
        ("receptive field", f"{card.receptive_field} pixels, stride {card.receptive_field_stride:g}{whole}"),
        ("most expensive", "; ".join(dearest)),
    ]
    if card.published:
        facts.append(("published", _compare(card.published)))
    facts.append(("small images", card.small_image or "–"))
    facts.append(("weights", card.weights or "none published"))
    facts += [("counters disagree", each) for each in card.disagreements]
    return facts


def _compare(published: PublishedCounts) -> str:
    parts = []
    if published.params is not None:
        verdict = "equal" if published.params == published.counted_params else f"here {published.counted_params:,}"
        parts.append(f"{published.params:,} parameters ({verdict})")
    if published.gmacs is not None:
        parts.append(f"{published.gmacs:g} GMACs (here {published.counted_gmacs:.4g})")
    size = f"{published.in_chans}×{published.input_size}×{published.input_size}"
    return f"{', '.join(parts)} at {size}, {published.num_classes:,} classes: {published.source}"


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
    with torch.device("meta"):
        model = create_model(name, num_classes, input_size, in_chans)
    try:
        return count_params(model), count_macs(model, (in_chans, input_size, input_size))
    except ValueError as error:
        raise ZooError(str(error)) from error


def _list_row(name: str) -> dict[str, Any]:
    info = model_info(name)
    setting = _setting(info, info.published)
    small: tuple[int | None, float | None] = (None, None)
    canonical = small
    if "/" not in name:
        small, canonical = _count_or_none(name, LIST_SETTING), _count_or_none(name, setting)
    return {
        "name": name,
        "family": info.family,
        "year": info.year,
        "task": info.task,
        "params": small[0],
        "gmacs": small[1],
        **setting,
        "canonical_params": canonical[0],
        "canonical_gmacs": canonical[1],
        "published_params": info.published.params if info.published else None,
        "published_gmacs": info.published.gmacs if info.published else None,
        "representative": info.name in representative_models(),
        "weights": info.weights,
    }


def _count_or_none(name: str, setting: dict[str, int]) -> tuple[int | None, float | None]:
    try:
        params, macs = _count(name, **setting)
    except ZooError:
        return None, None
    return params, macs / 1e9
