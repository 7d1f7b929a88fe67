"""matplotlib figures as SVG: stand-alone files, and inline in a page that allows no inline style."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

from reports.style import figure_style


def figure_svg(figure: Figure) -> str:
    """The figure as a stand-alone SVG document; the same figure gives the same text."""
    buffer = io.StringIO()
    with figure_style():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "zoobench"})
    return buffer.getvalue()
