"""Measuring a run again: what its training left is taken from its record, and nothing is trained.

Speed does not depend on the values of weights, so that it is measured of the network as it was initialised.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from bench.config import MeasureConfig
from bench.records import Flag, RunRecord

TRAINED = frozenset({
    "params", "macs", "flops", "activations", "macs_torch", "macs_disagreements", "macs_uncounted", "lr_peak",
    "weight_decay", "weights_sha256", "epochs", "steps", "images_seen", "micro_batch_size", "train_seconds",
    "train_loss", "train_top1", "peak_memory_bytes", "head_only_top1",
})  # fmt: skip
"""Metrics that counting and training leave, with all that begin with one of `PREFIXES`. The ``peak_memory_bytes`` of
earlier records is the whole process's, training included."""

PREFIXES = ("test_", "val_", "target_")
PHASES = ("load", "train", "test")


def is_measured_as(record: RunRecord, wanted: MeasureConfig) -> bool:
    """Whether a record was measured with these settings, ``probes`` aside, which only a training leaves."""
    try:
        measured = MeasureConfig.model_validate(record.config.get("measure"))
        return measured.model_copy(update={"probes": wanted.probes}) == wanted
    except ValidationError:
        return False


def training_part(record: RunRecord) -> dict[str, Any]:
    """The fields of a record that its training left: ``metrics``, ``history``, ``samples``, ``flags``.

    ``environment`` says under ``trained`` where and when that was, and under ``tuning`` how it computed.
    """
    flags: list[Flag] = [flag for flag in record.flags if flag.phase in PHASES]
    environment = {name: value for name, value in record.environment.items() if name not in ("data", "trained")}
    return {
        "metrics": {k: v for k, v in record.metrics.items() if k in TRAINED or k.startswith(PREFIXES)},
        "history": list(record.history),
        "samples": {name: rows for name, rows in record.samples.items() if name.startswith(PREFIXES)},
        "flags": flags,
        "environment": {"trained": record.environment.get("trained", environment)}
        | {name: record.environment[name] for name in ("tuning",) if name in record.environment},
    }
