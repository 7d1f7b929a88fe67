"""What a run is known by: every resolved value that its weights, and what is said of them, depend on.

How speed is measured is not among them: measuring again adds a record and trains nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

HASHED: Final = frozenset({
    "model", "seed", "data", "data_sha256", "label_column", "classes", "input_size", "pretrained",
    "pretrained_sha256", "val_fraction", "limit_train", "limit_test", "target_top1", "device", "threads",
    "autocast", "channels_last", "compile", "lr_peak", "weight_decay", "budget.epochs", "budget.seconds",
    "budget.macs", "recipe.optimizer", "recipe.decay_norm_and_bias", "recipe.momentum", "recipe.nesterov",
    "recipe.batch_size", "recipe.schedule", "recipe.warmup", "recipe.steps", "recipe.step_factor",
    "recipe.label_smoothing", "recipe.clip_grad_norm", "recipe.ema", "recipe.drop_rate", "recipe.batch_norm",
    "recipe.flip", "recipe.test_flip", "recipe.crop_padding", "recipe.crop_fill", "recipe.rotation",
    "recipe.color_jitter", "recipe.randaugment", "recipe.cutout", "recipe.mixup", "recipe.cutmix",
    "recipe.head_epochs", "recipe.head_lr",
})  # fmt: skip
"""The options of `bench.config.RunConfig` as they were when the hash was defined: never changed again."""

NOT_HASHED: Final = frozenset({
    "recipe.name", "recipe.epochs", "recipe.lr", "recipe.weight_decay", "measure.batch_size", "measure.seconds",
    "measure.precision", "measure.block_seconds", "measure.batch_sizes", "measure.probes", "measure.dtype",
    "measure.repeats",
})  # fmt: skip
"""A label; what other options hold resolved (``budget``, ``lr_peak``, ``weight_decay``); and how speed is measured."""

ADDED_LATER: Final[Mapping[str, Any]] = {
    "recipe.muon_lr": 0.05,
    "recipe.normalize_filters": False,
    "recipe.norm_bias_lr_factor": 1.0,
    "recipe.lookahead": 0,
    "recipe.whiten": False,
    "recipe.dirac": False,
    "recipe.brightness": 0.0,
    "recipe.contrast": 0.0,
    "recipe.small_size": None,
    "recipe.small_epochs": 0,
    "recipe.test_shift": 0,
    "recipe.test_share": 1.0,
    "recipe.freeze_batch_norm": False,
    "recipe.head_lr_factor": 1.0,
    "recipe.stem_lr_factor": 1.0,
    "nproc": 1,
    "network_input_size": None,
}
"""Options that came after `HASHED`, each with the value under which training is as it was before it came.

An option at that value is hashed as if it were absent, so that the runs of earlier versions keep their ids.
"""


def training_hash(config: Mapping[str, Any]) -> str:
    """The hash of a run's configuration in its JSON form: SHA-256, in hexadecimal.

    Raises `KeyError` for an option of which this module does not say whether training depends on it.
    """
    options = flatten(config)
    if unknown := options.keys() - HASHED - NOT_HASHED - ADDED_LATER.keys():
        raise KeyError(f"bench/identity.py does not say whether training depends on {', '.join(sorted(unknown))}")
    # Where the weights' file lies does not matter: its content has a hash of its own.
    options["pretrained"] = bool(options["pretrained"])
    chosen = {
        name: value
        for name, value in options.items()
        if name in HASHED or (name in ADDED_LATER and value != ADDED_LATER[name])
    }
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"recipe": {"lr": 0.1}}`` to ``{"recipe.lr": 0.1}``."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
