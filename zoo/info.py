"""What the registry knows about an architecture, and the errors and types that the zoo shares."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from torch import nn

SMALL_INPUT_SIZE = 64
"""At this input size or less, in pixels, an architecture takes its small-image form."""


Task = Literal["classification", "segmentation"]
Builder = Callable[..., nn.Module]
BuilderT = TypeVar("BuilderT", bound=Builder)


class Register(Protocol):
    """`zoo.register_model` with the facts that a family shares filled in, by `functools.partial`."""

    def __call__(self, **facts: Any) -> Callable[[BuilderT], BuilderT]:
        """A decorator that registers a builder with these facts besides."""


class ZooError(ValueError):
    """A request that the zoo cannot meet; the message names it, what was expected and what to do."""


class UnknownModelError(ZooError):
    """No architecture has this name."""


class DuplicateModelError(ZooError):
    """Two builders claim one name."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """Published counts of an architecture, from the literature or a reference implementation.

    ``params`` counts trainable parameters and ``gmacs`` the multiply-accumulates, in 10^9, of one forward pass,
    both at ``num_classes``, ``input_size`` (pixels; the builder's own default if None) and ``in_chans``.
    """

    params: int | None = None
    gmacs: float | None = None
    source: str
    num_classes: int = 1000
    input_size: int | None = None
    in_chans: int = 3


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What the registry knows about an architecture without building it.

    ``input_size`` and ``num_classes`` are the canonical ones, the builder's defaults. ``small_image`` says in one
    sentence what changes at 64 pixels or less. ``weights`` names the timm or torchvision model whose pretrained
    weights fit. ``recipe`` holds defaults for recipes that leave them open: ``lr`` (peak, for SGD at batch 128) and
    ``weight_decay``. The plan ``quick`` runs the members of each family that are marked ``representative``.
    """

    name: str
    family: str
    builder: Builder = field(repr=False, compare=False)
    paper: str = ""
    year: int | None = None
    task: Task = "classification"
    input_size: int = 224
    num_classes: int = 1000
    published: Published | None = None
    small_image: str = ""
    weights: str | None = None
    recipe: Mapping[str, float] = field(default_factory=dict)
    representative: bool = False


# bench.errors has the same function: the zoo imports nothing of bench, and importing the zoo imports torch.
def did_you_mean(word: str, possible: Iterable[str]) -> str:
    """`` Did you mean 'x' or 'y'?``, or an empty string if no possible word is close."""
    near = difflib.get_close_matches(word, list(possible), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
