"""Tensors of somebody's state dict to those of our network: by name, or by position where only names differ.

By name: wrappers' components and a common prefix are removed, a head under another name is found by its shape, and
auxiliary heads that our network lacks are dropped. By position: layer by layer, if the kinds and shapes of all layers
agree in order. Whatever is uncertain is refused, never guessed: `Misfit` says why.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from zoo.checkpoints import BOOKKEEPING, LISTED, WRAPPER_COMPONENTS
from zoo.info import ZooError
from zoo.structure import Structure

State = Mapping[str, torch.Tensor]

COUNTER = "num_batches_tracked"
"""Batch norm's counter: missing in old files, and of no effect where the norm has a momentum."""
AUXILIARY = re.compile(r"aux", re.IGNORECASE)
"""How the names of auxiliary heads begin: ``aux_classifier``, ``aux1``, ``AuxLogits``."""
DIGITS = "0123456789"
SHORTCUT = re.compile(r"downsample|shortcut|skip|identity|residual")


@dataclass(frozen=True)
class Match:
    """Their ``tensors`` under our names, our names left ``fresh`` and their names ``dropped``."""

    tensors: dict[str, torch.Tensor]
    fresh: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    by_position: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Misfit:
    """Why weights do not fit: our names that are ``missing``, theirs that are ``extra``, and shapes that differ."""

    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    shapes: Mapping[str, str] | None = None
    reason: str = ""

    def __str__(self) -> str:
        kinds = {"missing": self.missing, "extra": self.extra, "wrongly shaped": tuple((self.shapes or {}).values())}
        parts = [f"{len(names)} {kind}: {listed(names)}." for kind, names in kinds.items() if names]
        return " ".join([*parts, *([self.reason] if self.reason else [])])


def listed(names: Sequence[str]) -> str:
    """The first few of the names, comma-separated."""
    return ", ".join(names[:LISTED]) + (", …" if len(names) > LISTED else "")


def shape_text(tensor: torch.Tensor) -> str:
    """``64×3×7×7``."""
    return "×".join(map(str, tensor.shape)) or "scalar"


def without_wrappers(state: State, own: State) -> dict[str, torch.Tensor]:
    """The state dict without the components that wrappers put into names, wherever they stand, and bookkeeping."""
    components = WRAPPER_COMPONENTS - {component for name in own for component in name.split(".")}
    bare: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        parts = [part for part in name.split(".") if part not in components]
        if not parts or (parts[-1] in BOOKKEEPING and name not in own):
            continue
        short = ".".join(parts)
        if short in bare:
            raise ZooError(f"the weights hold {short!r} twice, with and without a wrapper's name before it.")
        bare[short] = tensor
    return bare


def match_by_name(own: State, state: State, heads: Sequence[str], names: Mapping[str, str]) -> Match | Misfit:
    """Match by names; ``names`` translates the reference's to ours, and ``state`` has no wrappers' components.

    Raises `ZooError` where the file holds two networks that fit equally well.
    """
    prefix = _common_prefix(own, state, names)
    theirs = {_translate(name.removeprefix(prefix), own, names): name for name in state if name.startswith(prefix)}
    outside = [name for name in state if not name.startswith(prefix)]
    found = {name: state[original] for name, original in theirs.items()}
    notes: list[str] = []
    fresh: list[str] = []
    dropped = list(outside)

    def drop(name: str) -> None:
        dropped.append(theirs[name])
        del found[name]

    for name in [name for name in found if _is_auxiliary(name) and not _has_part(own, name)]:
        drop(name)
    spare = {name: found[name] for name in found if name not in own} | {name: state[name] for name in outside}
    for head in heads:
        ours = {name: tensor for name, tensor in own.items() if _within(name, head)}
        if not ours:
            continue
        replaced = [name for name in found if _within(name, head)]
        if not replaced:
            parts = _heads_like(ours, head, spare)
            if len(parts) > 1:
                return Misfit(tuple(ours), reason=f"Any of {listed(parts)} could be the head {head!r}.")
            if parts:
                for name in ours:
                    source = f"{parts[0]}{name.removeprefix(head)}"
                    found[name] = spare[source]
                    found.pop(source, None)
                    theirs.setdefault(name, theirs.get(source, source))
                    if source in dropped:
                        dropped.remove(source)
                if parts[0] != head:
                    notes.append(f"the head {head!r} was found under the name {parts[0]!r}")
                continue
            # A part that our network lacks and that is no convolution is a head of another make, or of none.
            replaced = [
                name for name in found if name not in own and not _has_part(own, name) and _is_headlike(found[name])
            ]
        elif not _is_other_head(ours, {name: found[name] for name in replaced}):
            continue
        fresh.extend(ours)
        for name in replaced:
            drop(name)
    lacking = {name for name in own if _is_auxiliary(name) and not _has_part(found, name)}
    fresh.extend(name for name in own if name in lacking and name not in fresh)

    missing = [name for name in own if name not in found and name not in fresh and not name.endswith(COUNTER)]
    extra = [theirs[name] for name in found if name not in own]
    shapes = {
        name: f"{name} is {shape_text(found[name])} in the file, {shape_text(own[name])} in the model"
        for name in own
        if name in found and found[name].shape != own[name].shape
    }
    if missing or extra or shapes:
        return Misfit(tuple(missing), tuple(extra), shapes)
    return Match(found, tuple(fresh), tuple(dropped), notes=tuple(notes))


def match_by_position(
    own: State, state: State, heads: Sequence[str], structure: Structure, ordered: bool
) -> Match | Misfit:
    """Match layer by layer, as both define or call them, where kinds and shapes of all layers agree in order.

    A head for another number of classes stays fresh. ``ordered`` says whether ``state`` is in its author's order.
    """
    ours = _layers(own)
    own_parts = {name.partition(".")[0] for name in own}
    kept = {name: t for name, t in state.items() if not _is_auxiliary(name) or name.partition(".")[0] in own_parts}
    theirs = _layers(kept)
    orders = [list(ours)]
    if set(structure.called) == set(ours):
        orders.append(list(structure.called))
    pairings = [dict(zip(order, theirs, strict=True)) for order in orders if _aligned(order, ours, theirs, heads)]
    if not pairings:
        return Misfit(reason=_first_difference(orders, ours, theirs))
    if not ordered:
        return Misfit(reason="The file is sorted by name, so its order says nothing; save it by torch.save instead.")
    if any(pairing != pairings[0] for pairing in pairings):
        return Misfit(reason="By position they fit in more than one way.")
    doubt = _out_of_order(theirs) or _doubt(pairings[0], ours, theirs, structure)
    if doubt:
        return Misfit(reason=doubt)
    tensors, fresh = {}, []
    for layer, source in pairings[0].items():
        for leaf, tensor in theirs[source].items():
            name = _join(layer, leaf)
            if name in own and own[name].shape == tensor.shape:
                tensors[name] = tensor
        fresh += [_join(layer, leaf) for leaf in ours[layer] if _join(layer, leaf) not in tensors and leaf != COUNTER]
    used = {id(tensor) for tensor in tensors.values()}
    return Match(
        tensors, tuple(fresh), tuple(name for name, tensor in state.items() if id(tensor) not in used), by_position=True
    )


def _common_prefix(own: State, state: State, names: Mapping[str, str]) -> str:
    """What stands before the network's names in the file: ``model.``, ``net.backbone.``, or nothing."""
    counts = Counter(prefix for name in state for prefix in _prefixes(name))
    scores = {
        prefix: sum(
            ours in own and own[ours].shape == tensor.shape
            for name, tensor in state.items()
            if name.startswith(prefix)
            for ours in [_translate(name.removeprefix(prefix), own, names)]
        )
        for prefix in ("", *(prefix for prefix, count in counts.items() if count > len(own) / 3))
    }
    best = max(scores, key=lambda prefix: (scores[prefix], -len(prefix)))
    rivals = [prefix for prefix, score in scores.items() if prefix != best and score == scores[best] > len(own) / 2]
    if rivals:
        raise ZooError(
            f"the weights hold two networks that fit, under {best or 'no prefix'!r} and {rivals[0]!r}. "
            "Save the state dict of one of them in a file of its own."
        )
    return best


def _prefixes(name: str) -> Iterator[str]:
    for end in re.finditer(r"\.", name):
        yield name[: end.end()]


def _translate(name: str, own: State, names: Mapping[str, str]) -> str:
    """Their name to ours; a name that is ours already stays, so that our own checkpoints load as well."""
    if name not in own:
        for pattern, replacement in names.items():
            name = re.sub(pattern, replacement, name)
    return name


def _within(name: str, module: str) -> bool:
    return name.startswith(f"{module}.")


def _has_part(state: State | Mapping[str, torch.Tensor], name: str) -> bool:
    """Whether something in ``state`` lies in the same top-level part as ``name``."""
    part = name.partition(".")[0]
    return any(other == part or _within(other, part) for other in state)


def _is_auxiliary(name: str) -> bool:
    return AUXILIARY.match(name) is not None


def _is_headlike(tensor: torch.Tensor) -> bool:
    return tensor.dim() <= 2


def _heads_like(ours: State, head: str, spare: State) -> list[str]:
    """Layers of the file, not yet used, that have just the tensors of our head."""
    shapes = {name.removeprefix(head): tensor.shape for name, tensor in ours.items()}
    parts = _layers(spare)
    return [
        part
        for part, leaves in parts.items()
        if {f".{leaf}": tensor.shape for leaf, tensor in leaves.items()} == shapes
    ]


def _is_other_head(ours: State, theirs: State) -> bool:
    """Whether the file has another head in this place: for another number of classes, or of other layers.

    A head of which tensors are merely lacking is no other head, and neither is one that reads other features.
    """
    another_make = not ours.keys() & theirs.keys()
    other_classes = ours.keys() == theirs.keys() and all(
        ours[name].shape[0] != theirs[name].shape[0] and ours[name].shape[1:] == theirs[name].shape[1:] for name in ours
    )
    return another_make or other_classes


def _layers(state: State) -> dict[str, dict[str, torch.Tensor]]:
    """Tensors by the layer that owns them, in order."""
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        layer, _, leaf = name.rpartition(".")
        layers.setdefault(layer, {})[leaf] = tensor
    return layers


def _join(layer: str, leaf: str) -> str:
    return f"{layer}.{leaf}" if layer else leaf


def _kind(leaves: State, classes: bool = True) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a layer's tensors, which tell its kind; without ``classes``, but for the first dimension."""
    return {leaf: tuple(tensor.shape[0 if classes else 1 :]) for leaf, tensor in leaves.items() if leaf != COUNTER}


def _aligned(
    order: Sequence[str],
    ours: Mapping[str, State],
    theirs: Mapping[str, State],
    heads: Sequence[str],
) -> bool:
    return len(order) == len(theirs) and all(
        _kind(ours[layer], layer not in heads) == _kind(leaves, layer not in heads)
        for layer, leaves in zip(order, theirs.values(), strict=True)
    )


def _first_difference(orders: Sequence[Sequence[str]], ours: Mapping[str, State], theirs: Mapping[str, State]) -> str:
    """Where the sequences part, in that of our orders which goes furthest."""

    def agreeing(order: Sequence[str]) -> int:
        pairs = zip(order, theirs.values(), strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: _kind(ours[pair[0]]) == _kind(pair[1]), pairs))

    order = max(orders, key=agreeing)
    index = agreeing(order)

    def text(layer: str, leaves: State) -> str:
        first = next(iter(leaves.values()))
        return f"{layer!r} of shape {shape_text(first)}"

    mine = text(order[index], ours[order[index]]) if index < len(order) else "nothing"
    names = list(theirs)
    other = text(names[index], theirs[names[index]]) if index < len(names) else "nothing"
    return f"By position they do not fit either: layer {index + 1} is {other} in the file and {mine} in the model."


def _out_of_order(theirs: Mapping[str, State]) -> str:
    """A sign that the file's order is not its author's: numbers that run backwards, or names that were sorted."""
    names = list(theirs)
    last: dict[tuple[str, str], int] = {}
    for name in names:
        parent = ""
        for part in name.split("."):
            word, number = re.fullmatch(r"(.*?)(\d*)", part, re.DOTALL).groups()  # type: ignore[union-attr]
            if number:
                key = (parent, word)
                if int(number) < last.get(key, -1):
                    return f"The order of the file is not that of its layers: {name!r} comes after {word}{last[key]}."
                last[key] = int(number)
            parent = f"{parent}{part}."
    if names == sorted(names):
        for one, other in _alike(theirs):
            words = next((a, b) for a, b in zip(one.split("."), other.split("."), strict=False) if a != b)
            if words[0].rstrip(DIGITS) != words[1].rstrip(DIGITS):
                return f"The names in the file are sorted, so its order does not tell {one!r} from {other!r}."
    return ""


def _doubt(
    pairing: Mapping[str, str],
    ours: Mapping[str, State],
    theirs: Mapping[str, State],
    structure: Structure,
) -> str:
    """Why a pairing of layers is not certain, or nothing."""
    for layer, source in pairing.items():
        if source in pairing and source != layer and _kind(ours[source]) == _kind(theirs[source]):
            return f"By position {source!r} of the file would become our {layer!r}, though we have a {source!r} too."
    for one, other in _alike({layer: ours[layer] for layer in pairing}):
        if not structure.in_sequence(one, other) and not _told_apart(one, other, pairing[one], pairing[other]):
            return (
                f"By position they are ambiguous: {one!r} and {other!r} have the same shapes and do not follow one "
                f"another, and the names {pairing[one]!r} and {pairing[other]!r} do not say which is which."
            )
    return ""


def _alike(layers: Mapping[str, State]) -> Iterator[tuple[str, str]]:
    """Pairs of layers of one kind."""
    kinds: dict[tuple[tuple[str, tuple[int, ...]], ...], list[str]] = {}
    for name, leaves in layers.items():
        kinds.setdefault(tuple(sorted(_kind(leaves).items())), []).append(name)
    for names in kinds.values():
        yield from itertools.combinations(names, 2)


def _told_apart(one: str, other: str, one_source: str, other_source: str) -> bool:
    """Whether names confirm which of two layers is which: by a part of the name, or as a shortcut."""
    parts, other_parts, sources, other_sources = (
        set(name.split(".")) for name in (one, other, one_source, other_source)
    )
    only, only_other = sources - other_sources, other_sources - sources
    if (parts - other_parts) & only and not (parts - other_parts) & only_other:
        return True
    if (other_parts - parts) & only_other and not (other_parts - parts) & only:
        return True
    shortcuts = [SHORTCUT.search(name) is not None for name in (one, other, one_source, other_source)]
    return shortcuts[0] != shortcuts[1] and shortcuts[:2] == shortcuts[2:]
