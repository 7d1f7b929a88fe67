"""Cards and lists of architectures, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.cli.tables import Column, TerminalTable
from bench.counting.card import Card, PublishedCounts
from reports.data.metrics import MISSING, scaled_count, whole

EXACT = "--wide shows exact counts and all columns."


def render_rows(rows: Iterable[dict[str, Any]], exact: bool = False) -> RenderableType:
    """`list_rows` for a terminal, counts in full if ``exact``; columns that no row fills are left out."""
    rows = list(rows)
    cells = {
        Column("model", style="bold"): [f"{row['name']}{' *' * row['representative']}" for row in rows],
        Column("family", optional=2): [row["family"] for row in rows],
        Column("year", "count", optional=1): [row["year"] and str(row["year"]) for row in rows],
        Column("params\n32×32", "scaled"): [row["params"] for row in rows],
        Column("MACs\n32×32", "scaled"): [row["macs"] for row in rows],
        Column("params\npublished", "scaled"): [row["published_params"] for row in rows],
        Column("MACs\npublished", "scaled"): [published_gmacs(row["published_gmacs"]) for row in rows],
    }
    cells = {column: values for column, values in cells.items() if any(value is not None for value in values)}
    titles = " ".join(column.title for column in cells)
    notes = {
        "* in the plan quick.": any(row["representative"] for row in rows),
        "32×32: counted here, with 10 classes.": "32×32" in titles,
        "published: at the published setting.": "published" in titles,
        "zoobench describe NAME counts one of these.": "32×32" not in titles,
    }
    caption = " ".join(note for note, applies in notes.items() if applies)
    table = TerminalTable(list(cells), caption=caption, exact=exact, remedy=EXACT)
    for values in zip(*cells.values(), strict=True):
        table.add_row(*values)
    return table


def render_card(card: Card, depth: int = 1, exact: bool = False) -> RenderableType:
    """The card for a terminal: facts, then the layer table folded to ``depth``; counts in full if ``exact``."""
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for label, value in _facts(card):
        facts.add_row(label, Text(value))

    columns = [
        Column("layer"),
        Column("kind", optional=3),
        Column("params", "scaled"),
        Column("MACs", "scaled"),
        Column("% MACs", "number", optional=1),
        Column("output", "number"),
        Column("sees", "number", optional=2),
        Column("stride", "number", optional=4),
    ]
    caption = "sees: side of the receptive field in input pixels, + where it also depends on the whole image."
    table = TerminalTable(columns, f"{card.name}, layers at depth {depth}", caption=caption, exact=exact, remedy=EXACT)
    for stage in card.stages(depth):
        sees = None if stage.receptive_field is None else f"{stage.receptive_field:,}{'+' * stage.whole_input}"
        table.add_row(
            stage.name or "(the model itself)",
            stage.kind,
            stage.params,
            stage.macs,
            f"{100 * stage.macs_share:.1f}",
            "×".join(map(str, stage.output_shape)),
            sees,
            None if stage.receptive_field_stride is None else f"{stage.receptive_field_stride:g}",
        )
    return Group(facts, Text(), table)


def published_gmacs(gmacs: float | None) -> str | None:
    """10^9 multiply-accumulates as they were published: scaled, with no digit more than the source gives."""
    if gmacs is None:
        return None
    number, prefix = scaled_count(1e9 * gmacs).split()
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {prefix}"


def _facts(card: Card) -> list[tuple[str, str]]:
    size = f"{card.in_chans}×{card.input_size}×{card.input_size}"
    most_expensive = [f"{layer.name} ({layer.kind}, {layer.macs_share:.1%})" for layer in card.most_expensive()]
    whole_image = ", then the whole image" if card.receptive_field_whole_input else ""
    stride = "" if card.receptive_field_stride is None else f", stride {card.receptive_field_stride:g}"
    sees = "not known" if card.receptive_field is None else f"{card.receptive_field:,} pixels{stride}{whole_image}"
    facts = [
        ("model", f"{card.name} ({card.family}, {card.task})"),
        ("paper", card.paper or MISSING),
        ("year", str(card.year or MISSING)),
        ("input", f"{size}, {card.num_classes:,} {'class' if card.num_classes == 1 else 'classes'}"),
        ("parameters", f"{whole(card.params)}, and {whole(card.buffers)} in buffers"),
        ("MACs", f"{whole(card.macs)} ({scaled_count(card.macs)}; {scaled_count(card.flops)} FLOPs)"),
        ("activations", whole(card.activations)),
        ("receptive field", sees),
        ("most expensive", "; ".join(most_expensive)),
    ]
    if card.published:
        facts.append(("published", _compare(card.published)))
    facts.append(("small images", card.small_image or MISSING))
    facts.append(("weights", card.weights or "none published"))
    facts += [("counters disagree", each) for each in card.disagreements]
    facts += [("not in the MACs", f"the operator {each}") for each in card.uncounted]
    return facts


def _compare(published: PublishedCounts) -> str:
    parts = []
    if published.params is not None:
        same = published.params == published.counted_params
        verdict = "same as counted" if same else f"counted: {whole(published.counted_params)}"
        parts.append(f"{whole(published.params)} parameters ({verdict})")
    if published.gmacs is not None:
        parts.append(f"{published_gmacs(published.gmacs)}MACs (counted: {scaled_count(1e9 * published.counted_gmacs)})")
    size = f"{published.in_chans}×{published.input_size}×{published.input_size}"
    return f"{', '.join(parts)} at {size}, {published.num_classes:,} classes: {published.source}"
