"""The exact gates of a comparison: the counts of both sides, by the same code, are equal to the last unit or not.

Operators that only move, view or allocate memory are no part of what a network computes; whether they cost time is for
the timing to say. All others must be the same, in the same order.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

COMPLEXITY = Path(__file__).parents[1] / "counting" / "complexity.py"
"""The code that counts both sides, whatever they bring along."""
TOTALS = ("params", "macs", "activations", "output_shape")
OF_LAYER = ("kind", "params", "macs", "activations", "output_shape")
MEMORY_OPERATORS = frozenset(
    f"aten.{name}"
    for name in (
        *("_reshape_alias", "_to_copy", "_unsafe_view", "alias", "as_strided", "clone", "contiguous", "copy", "copy_"),
        *("detach", "detach_", "diagonal", "empty", "empty_like", "empty_strided", "expand", "lift_fresh", "new_empty"),
        *("permute", "repeat", "reshape", "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose"),
        *("unbind", "unfold", "unsqueeze", "view"),
    )
)
SHOWN_LAYERS = 3
SHOWN_OPERATORS = 3


class Counts(BaseModel):
    """What the exact gates compare, of a `bench.counting.complexity.Complexity`; layers are its rows as mappings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    params: int
    macs: int
    activations: int
    output_shape: tuple[int, ...]
    layers: tuple[dict[str, str | int | tuple[int, ...]], ...]
    operators: tuple[str, ...]

    @classmethod
    def of(cls, counted: Mapping[str, Any]) -> Self:
        """From a `Complexity` as a mapping."""
        layers = [{key: row[key] for key in ("name", *OF_LAYER)} for row in counted["layers"]]
        return cls.model_validate({key: counted[key] for key in cls.model_fields} | {"layers": layers})


def counter_digest() -> str:
    """A digest of the code that counts; where it differs, a difference of counts may be due to the counting."""
    return hashlib.sha256(COMPLEXITY.read_bytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Difference:
    """What differs: a total (``layer`` is empty) or something of a layer; None where one side has no such thing."""

    layer: str
    what: str
    before: Any
    after: Any

    def __str__(self) -> str:
        where = f"{self.layer}: " if self.layer else ""
        return f"{where}{self.what} {_shown(self.before)} → {_shown(self.after)}"


def find_differences(before: Counts | None, after: Counts | None) -> tuple[Difference, ...]:
    """Where two networks' counts differ: the totals, the first layers, the first operators.

    Empty where they do not, and where either has no counts.
    """
    if before is None or after is None:
        return ()
    old, new = before.model_dump(), after.model_dump()
    totals = [Difference("", key, old[key], new[key]) for key in TOTALS if old[key] != new[key]]
    operators = list(_operator_differences(before.operators, after.operators))
    if not totals and not operators:
        return ()  # a layer's new name changes nothing that is computed
    layers = list(_layer_differences(before.layers, after.layers))
    shown = list(dict.fromkeys(difference.layer for difference in layers))[:SHOWN_LAYERS]
    return (*totals, *(each for each in layers if each.layer in shown), *operators[:SHOWN_OPERATORS])


def _layer_differences(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> Iterator[Difference]:
    """Layers that one side lacks or that differ, in the order of the forward pass."""
    old, new = ({row["name"]: row for row in rows} for rows in (before, after))
    for name in new | old:
        if name in old and name in new:
            differing = [(key, old[name][key], new[name][key]) for key in OF_LAYER if old[name][key] != new[name][key]]
        else:
            kinds = [rows[name]["kind"] if name in rows else None for rows in (old, new)]
            differing = [("layer", kinds[0], kinds[1])]
        for difference in differing:
            yield Difference(name or "(top)", *difference)


def _operator_differences(before: Sequence[str], after: Sequence[str]) -> Iterator[Difference]:
    old, new = ([name for name in names if name not in MEMORY_OPERATORS] for names in (before, after))
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for kind, old_from, old_to, new_from, new_to in matcher.get_opcodes():
        if kind != "equal":
            removed, added = (", ".join(names) or None for names in (old[old_from:old_to], new[new_from:new_to]))
            yield Difference("", f"operator {old_from + 1} of {len(old)}", removed, added)


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, list | tuple):
        return "×".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
