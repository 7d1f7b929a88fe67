"""`zoobench figures`: the figures of a report as pictures, for a slide or a paper."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from bench.collector import without_collector
from bench.errors import RecordError
from bench.records import Folders, unwritable
from reports.data.report_data import load_report_data
from reports.data.safety import markdown_text

if TYPE_CHECKING:
    from reports.figures.themes import Theme
    from reports.pages.gallery import Picture

Format = Literal["png", "svg"]
FORMATS: tuple[Format, ...] = get_args(Format)
THEMES: tuple[Theme, ...] = ("light", "dark")
DOTS_PER_INCH = 300
"""Of a PNG: 1,440 pixels for the usual width of 4.8 inches."""


@without_collector()
def export_figures(
    results: Folders,
    out: str | Path,
    *,
    model: str | None = None,
    formats: Sequence[Format] = FORMATS,
    themes: Sequence[Theme] = THEMES,
) -> list[Path]:
    """Write every figure of a plan's page, or of one model's, as ``out/NAME-THEME.FORMAT``, and return the files.

    The last is ``captions.md``, with the titles and what is to be seen. Raises `RecordError` where the records give no
    figure, where none is of ``model``, and where ``out`` cannot be written.
    """
    folder = Path(out)
    pictures = list(_pictures(results, model))
    if not pictures:
        raise RecordError(f"the records in {results!r} give no figure: no run has completed there. Run the plan first.")
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for theme in sorted(themes, key=THEMES.index):  # a figure that was made dark is light no more
            for picture in pictures:
                for kind, content in _render(picture, theme, formats):
                    written.append(folder / f"{picture.name}-{theme}.{kind}")
                    written[-1].write_bytes(content)
        captions = folder / "captions.md"
        parts = [f"## {markdown_text(each.title)}\n\n{markdown_text(each.caption)}\n" for each in pictures]
        captions.write_text("\n".join(parts), encoding="utf-8")
    except OSError as error:
        raise unwritable(folder, error) from error
    return [*written, captions]


def _pictures(results: Folders, model: str | None) -> Iterator[Picture]:
    from reports.pages.architecture import architecture_pictures, take_architecture_snapshot
    from reports.pages.gallery import pictures
    from reports.pages.snapshot import take_snapshot
    from reports.pages.study import study_pictures, take_study_snapshot

    data = load_report_data(results)
    if model is not None:
        groups = architecture_pictures(take_architecture_snapshot(data, model))
    elif data.study is not None:
        groups = {"": study_pictures(take_study_snapshot(data))}
    else:
        table = data.table[data.table.setting == data.setting]
        groups = pictures(take_snapshot(data), table) if len(table) else {}
    for group in groups.values():
        yield from group


def _render(picture: Picture, theme: Theme, formats: Sequence[Format]) -> Iterator[tuple[Format, bytes]]:
    from reports.figures.style import figure_style
    from reports.figures.svg import figure_svg
    from reports.figures.themes import darken

    if theme == "dark":
        darken(picture.figure)
    for kind in formats:
        if kind == "svg":
            yield kind, (picture.file if theme == "light" else figure_svg(picture.figure)).encode()
        else:
            buffer = io.BytesIO()
            with figure_style():
                picture.figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": "zoobench"})
            yield kind, buffer.getvalue()
