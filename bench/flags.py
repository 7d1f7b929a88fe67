"""What may be said of a measurement besides its number: the kinds of flags, and the words for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, PlainValidator

FlagKind = Literal[
    "load",
    "steal",
    "throttling",
    "throttled",
    "frequency",
    "spread",
    "gpu_load",
    "gpu_throttling",
    "gpu_clock",
    "gpu_unknown",
    "launch_bound",
    "energy",
    "peak_exceeded",
    "out_of_memory",
    "layout",
    "no_bfloat16",
    "not_deterministic",
    "not_finite",
    "below_head_only",
    "no_checkpoint",
    "no_probes",
    "shared_machine",
    "shared_cores",
    "not_alone",
]
"""Every kind that is emitted: the type checker allows no other."""

FLAG_WORDS: Final[dict[FlagKind, str]] = {
    "load": "other programs ran",
    "steal": "the hypervisor took processor time",
    "throttling": "the processor was too hot",
    "throttled": "the processor was too hot",
    "frequency": "the processor's clock moved",
    "spread": "the timed blocks differ widely",
    "gpu_load": "other programs used the GPU",
    "gpu_throttling": "the GPU was held back",
    "gpu_clock": "the GPU's clock moved",
    "gpu_unknown": "the GPU could not be watched",
    "launch_bound": "launch-bound",
    "energy": "energy was not measured",
    "peak_exceeded": "faster than the measured peak",
    "out_of_memory": "memory did not suffice",
    "layout": "channels_last is not possible",
    "no_bfloat16": "the GPU lacks bfloat16",
    "not_deterministic": "not repeatable to the last bit",
    "not_finite": "results are not finite",
    "below_head_only": "worse than the head alone",
    "no_checkpoint": "a checkpoint was not written",
    "no_probes": "the layers could not be looked into",
    "shared_machine": "several runs trained at once",
    "shared_cores": "processes shared cores",
    "not_alone": "other runs were not kept away",
}
REMARKS: Final[frozenset[str]] = frozenset(
    {
        "launch_bound", "energy", "peak_exceeded", "out_of_memory", "layout", "no_bfloat16", "not_deterministic",
        "not_finite", "below_head_only", "no_checkpoint", "no_probes", "gpu_unknown",
    }
)  # fmt: skip
"""Kinds that say something of the run itself, or that nobody looked; all others are disturbances."""
_EARLIER: Final[dict[str, str]] = {
    "few_blocks": "few blocks were timed",
    "few_samples": "few latencies were timed",
    "not_warm": "the speed had not settled",
}
"""Kinds that only records of earlier versions have."""


def _text(kind: Any) -> str:
    if not isinstance(kind, str):
        raise ValueError("expected text")
    return kind


StoredKind = Annotated[FlagKind, PlainValidator(_text)]
"""A kind in a file. Any text is read: a later version may have kinds that this one does not know."""


class Flag(BaseModel):
    """What is said of a measurement: which kind, in which phase, and how much in words."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: StoredKind
    phase: str
    message: str

    def __str__(self) -> str:
        during = f" during {self.phase.replace('_', ' ')}" if self.phase else ""
        return f"{flag_words(self.kind)}{during}: {self.message}"


def flag_words(kind: str) -> str:
    """The words for a kind; of one that this version does not know, its name."""
    known: Mapping[Any, str] = FLAG_WORDS
    return known.get(kind) or _EARLIER.get(kind) or kind.replace("_", " ")
