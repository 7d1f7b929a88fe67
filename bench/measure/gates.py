"""The exact gates of a comparison: counts of both sides by the same code, equal to the last unit or not equal.

Operators that only move, view or allocate memory are no part of what a network computes; whether they cost time, the
timing tells. All others must be the same, in the same order.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMPLEXITY = Path(__file__).with_name("complexity.py")
"""The counting code that both sides are counted by, whatever they bring along."""
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


def find_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Difference, ...]:
    """Where two networks' counts differ: the totals, the first layers, the first operators. Empty if nowhere.

    Both are `bench.measure.complexity.Complexity` as a mapping.
    """
    totals = [Difference("", key, before[key], after[key]) for key in TOTALS if before[key] != after[key]]
    operators = list(_operator_differences(before["operators"], after["operators"]))
    if not totals and not operators:
        return ()  # a layer's new name changes nothing that is computed
    layers = list(_layer_differences(before["layers"], after["layers"]))
    shown = list(dict.fromkeys(difference.layer for difference in layers))[:SHOWN_LAYERS]
    return (*totals, *(each for each in layers if each.layer in shown), *operators[:SHOWN_OPERATORS])


def _layer_differences(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> Iterator[Difference]:
    """Layers that one side lacks or that differ, in the order of the forward pass."""
    old, new = ({row["name"]: row for row in rows} for rows in (before, after))
    names = [row["name"] for row in after]
    names += [row["name"] for row in before if row["name"] not in new]
    for name in names:
        if name not in old:
            yield Difference(name or "(top)", "layer", None, new[name]["kind"])
        elif name not in new:
            yield Difference(name or "(top)", "layer", old[name]["kind"], None)
        else:
            for key in OF_LAYER:
                if old[name][key] != new[name][key]:
                    yield Difference(name or "(top)", key, old[name][key], new[name][key])


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
