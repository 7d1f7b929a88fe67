"""Tables for a terminal of any width: text folds, lesser columns are left out, a number is never cut or broken."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from reports.data.metrics import MISSING, format_number, scaled_count, whole
from reports.data.safety import visible

Kind = Literal["text", "count", "scaled", "number"]

LEAST_TEXT = 8
"""A column of text gets no fewer characters than this."""
FOLDED_TEXT = 20
"""Columns are left out before text is folded to fewer characters than this."""
GAP = 2
_PARTS = re.compile(r"(?<=[_/,=.])(?=[^\W\d_])")
"""Where a word that is too long for its column is folded: within a name such as ``timm/vit_tiny``, not in a number."""


@dataclass(frozen=True)
class Column:
    """One column: its heading and what its cells hold.

    ``kind`` is ``text`` (left-aligned, folded), ``count`` (an integer in full), ``scaled`` (an integer with an SI
    prefix, in full where the table is ``exact``) or ``number`` (a float to three significant digits). A string in a
    column of numbers is taken as formatted already; None is a dash. Where a terminal is too narrow for all columns,
    those with the highest ``optional`` are left out first; 0 always stays. ``style`` is rich's.
    """

    title: str
    kind: Kind = "text"
    optional: int = 0
    style: str = ""

    def cell(self, value: Any, exact: bool = False) -> Text:
        """The value as it is shown."""
        if isinstance(value, Text):
            return value
        if value is None:
            return Text(MISSING, self.style)
        if self.kind == "text" or isinstance(value, str):
            return Text(visible(str(value)), self.style)
        if self.kind == "number":
            return Text(format_number(value), self.style)
        return Text(whole(value) if exact or self.kind == "count" else scaled_count(value), self.style)


@dataclass
class TerminalTable:
    """A table that is laid out for the width at which it is printed: print it with a rich console.

    ``exact`` shows scaled counts in full. ``caption`` stands below it; where columns are left out, a line says so and
    ``remedy`` how to see them.
    """

    columns: Sequence[Column]
    title: str = ""
    caption: str = ""
    exact: bool = False
    remedy: str = ""
    _rows: list[list[Text] | Text] = field(default_factory=list, init=False, repr=False)

    def add_row(self, *values: Any) -> None:
        """Add a row of as many values as there are columns."""
        self._rows.append([c.cell(value, self.exact) for c, value in zip(self.columns, values, strict=True)])

    def add_heading(self, text: str) -> None:
        """Add a line of its own across the table, above the rows that follow."""
        self._rows.append(Text(visible(text), "italic"))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay the table out for the console's width."""
        del console
        shown, widths = self._layout(options.max_width)
        total = sum(widths) + GAP * (len(widths) - 1)
        if self.title:
            yield Text(self.title, "bold")
        if total > options.max_width:
            yield from self._one_by_one(options.max_width)
            return
        headings = [Text(column.title, "bold") for column in self.columns]
        yield from self._lines(headings, shown, widths)
        yield Text(("-" if options.ascii_only else "─") * total, "dim")
        for row in self._rows:
            if isinstance(row, Text):
                yield row
            else:
                yield from self._lines(row, shown, widths)
        if self.caption:
            yield Text(self.caption, "dim")
        left_out = [" ".join(column.title.split()) for at, column in enumerate(self.columns) if at not in shown]
        if left_out:
            yield Text(" ".join(filter(None, [f"Too narrow to show: {', '.join(left_out)}.", self.remedy])), "dim")

    def _layout(self, width: int) -> tuple[list[int], list[int]]:
        """The columns that are shown, and how wide each is."""
        cells = [[row[at].plain for row in self._rows if isinstance(row, list)] for at in range(len(self.columns))]
        limits = [self._limits(column, own) for column, own in zip(self.columns, cells, strict=True)]
        shown = list(range(len(self.columns)))

        def needed(least: Sequence[int]) -> int:
            return sum(least) + GAP * (len(least) - 1)

        def comfortable(at: int) -> int:
            least, most = limits[at]
            return min(most, max(least, FOLDED_TEXT)) if self.columns[at].kind == "text" else least

        while needed(list(map(comfortable, shown))) > width:
            optional = [at for at in shown if self.columns[at].optional]
            if not optional:
                break
            shown.remove(max(optional, key=lambda at: (self.columns[at].optional, at)))
        widths = list(map(comfortable, shown))
        if needed(widths) > width:
            widths = [limits[at][0] for at in shown]
        spare = width - needed(widths)
        for kinds in (("text",), ("count", "scaled", "number")):  # a heading folds before a name does
            wanting = {i: limits[at][1] - widths[i] for i, at in enumerate(shown) if self.columns[at].kind in kinds}
            while spare > 0 and any(wanting.values()):
                most = max(wanting, key=wanting.__getitem__)
                widths[most] += 1
                wanting[most] -= 1
                spare -= 1
        return shown, widths

    def _one_by_one(self, width: int) -> Iterator[Text]:
        """The values of each row beneath one another, where not even the numbers fit beside one another."""
        for row in self._rows:
            if isinstance(row, Text):
                yield row
                continue
            for column, cell in zip(self.columns, row, strict=True):
                title = " ".join(column.title.split()) + ": "
                fits = column.kind == "text" or cell_len(title + cell.plain) <= width
                yield Text.assemble((title, "bold"), "" if fits else "\n", cell)
            yield Text()

    def _limits(self, column: Column, cells: Sequence[str]) -> tuple[int, int]:
        """The least and the most that a column can use."""
        heading = max(map(cell_len, column.title.split()), default=0)
        most = max(map(cell_len, [*column.title.splitlines(), *cells]), default=0)
        if column.kind == "text":
            parts = (part for cell in cells for word in cell.split() for part in _PARTS.split(word))
            longest = max(map(cell_len, parts), default=0)
            return max(heading, min(longest, FOLDED_TEXT), min(most, LEAST_TEXT)), most
        return max(heading, *map(cell_len, cells)) if cells else heading, most

    def _lines(self, cells: Sequence[Text], shown: Sequence[int], widths: Sequence[int]) -> Iterator[Text]:
        """One row, of as many lines as its longest cell needs."""
        folded = [fold(cells[at].plain, width) for at, width in zip(shown, widths, strict=True)]
        for number in range(max(map(len, folded))):
            line = Text(no_wrap=True, overflow="ignore", end="\n")
            for at, width, lines in zip(shown, widths, folded, strict=True):
                text = lines[number] if number < len(lines) else ""
                room = " " * (width - cell_len(text))
                left = self.columns[at].kind == "text"
                line.append(f"{text}{room}" if left else f"{room}{text}", cells[at].style)
                line.append(" " * GAP)
            line.rstrip()
            yield line


def fold(text: str, width: int) -> list[str]:
    """The lines of a text, none wider than ``width``: folded at spaces, a word that is too long within."""
    lines = []
    for paragraph in text.splitlines() or [""]:
        line = ""
        for word in re.split(r"(?<=\s)(?=\S)", paragraph):
            for part in [word] if cell_len(word.rstrip()) <= width else _PARTS.split(word):
                if line and cell_len((line + part).rstrip()) > width:
                    lines.append(line.rstrip())
                    line = ""
                line += part
                if cell_len(line.rstrip()) > width:
                    *full, line = chop_cells(line.rstrip(), width)
                    lines += full
        lines.append(line.rstrip())
    return lines
