"""Escaping of untrusted text for each place where it is shown, without hiding what it says.

Names, errors and class names come from records, and records come from anywhere. HTML is escaped by Jinja2; what is
here is the rest: characters that no screen shows, and the other formats.
"""

from __future__ import annotations

import re
import unicodedata

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufffe\uffff\ud800-\udfff]"
)
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "−": "$-$", "±": r"$\pm$", "–": "--", "×": r"$\times$",
}  # fmt: skip


def visible(text: str) -> str:
    """Control characters and direction overrides made visible: ␀ for NUL, ⟨U+202E⟩ for an override."""
    return _UNSEEN.sub(lambda match: _picture(match.group()), text)


def _picture(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"


def shorten(text: str, length: int = 28) -> str:
    """Text of at most ``length`` characters, the middle left out, for where space is scarce: a figure's label."""
    text = " ".join(visible(text).split())
    keep = length - 1
    return text if len(text) <= length else f"{text[: keep - keep // 3]}…{text[-(keep // 3) :]}"


def label_text(text: str, length: int = 28) -> str:
    """A short text for a figure, whose dollars do not start mathematics."""
    return shorten(unicodedata.normalize("NFC", text), length).replace("$", r"\$")


def markdown_text(text: str) -> str:
    """Text for a cell of a Markdown table."""
    text = " ".join(visible(text).split())
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def latex_text(text: str) -> str:
    """Text for LaTeX."""
    return "".join(_LATEX.get(character, character) for character in " ".join(visible(text).split()))
