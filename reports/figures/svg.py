"""matplotlib figures as SVG: stand-alone files, and inline in a page whose policy forbids inline style."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.figure import Figure

from reports.data.safety import visible
from reports.figures.style import GRID, INK, LABEL, MUTED, PALETTE, SURFACE, figure_style

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", SURFACE: "surface"} | {
    colour: f"c{k}" for k, colour in enumerate(PALETTE)
}
"""The page's CSS variables for our colours, so that a figure follows the light or dark theme."""
_FONT = re.compile(r"(?:(?P<style>italic|oblique) )?(?:(?P<weight>bold|\d+) )?(?P<size>[\d.]+)px .+")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def figure_svg(figure: Figure) -> str:
    """The figure as a stand-alone SVG document; the same figure gives the same text."""
    buffer = io.StringIO()
    with figure_style():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "zoobench"})
    return buffer.getvalue()


def inline_svg(svg: str, name: str, title: str, described_by: str, points: Sequence[str] = ()) -> Markup:
    """A stand-alone SVG made fit for inlining: no style, unique ids, colours as the page's CSS variables.

    ``name`` makes the ids unique; ``title`` is the text alternative, ``described_by`` the id of a longer one;
    ``points`` are the tooltips of the marks of the artist with the gid ``points``, in their order.
    """
    root = ET.fromstring(svg)  # noqa: S314 - our own output
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    for group in root.iter(f"{{{_SVG}}}g"):
        if group.get("id") == LABEL:  # a halo keeps a name readable where a line passes under it
            del group.attrib["id"]
            group.attrib |= {"paint-order": "stroke", "stroke": SURFACE, "stroke-width": "2.5"}
        if group.get("id") == "points":
            for mark, words in zip(group.iter(f"{{{_SVG}}}use"), points, strict=False):
                ET.SubElement(mark, f"{{{_SVG}}}title").text = visible(words)
    for element in root.iter():
        _restyle(element)
        _rename(element, name)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.attrib |= {
        "role": "img", "aria-labelledby": f"{name}-title", "aria-describedby": described_by, "class": "plot",
        "stroke-linejoin": "round", "stroke-linecap": "butt",
    }  # fmt: skip
    heading = ET.Element(f"{{{_SVG}}}title", {"id": f"{name}-title"})
    heading.text = visible(title)
    root.insert(0, heading)
    ET.register_namespace("", _SVG)
    return Markup(re.sub(r"\n\s*", "\n", ET.tostring(root, encoding="unicode")))  # noqa: S704 - serialised, escaped


def _restyle(element: ET.Element) -> None:
    """Turn the style attribute into presentation attributes, and our colours into CSS variables."""
    for declaration in element.attrib.pop("style", "").split(";"):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if key == "font" and (font := _FONT.fullmatch(value)):
            element.set("font-size", font["size"])
            for part in ("style", "weight"):
                if font[part] and font[part] != "400":
                    element.set(f"font-{part}", font[part])
        elif key:
            element.set(key, value)
    for key in ("fill", "stroke"):
        if named := _VARIABLES.get(element.get(key, "")):
            element.set(key, f"var(--{named})")


def _rename(element: ET.Element, name: str) -> None:
    """Prefix ids, and the references to them, with the figure's name."""
    if "id" in element.attrib:
        element.set("id", f"{name}-{element.attrib['id']}")
    reference = element.attrib.pop(f"{{{_XLINK}}}href", None)
    if reference:
        element.set("href", f"#{name}-{reference[1:]}" if reference.startswith("#") else reference)
    for key, value in element.attrib.items():
        if "url(#" in value:
            element.set(key, _REFERENCE.sub(rf"url(#{name}-\1)", value))
