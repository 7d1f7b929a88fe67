"""Run a study: its variants' plans one after the other, and beside their records what they are to decide."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench.config import Plan
from bench.errors import ConfigError
from bench.events import Observer
from bench.identity import flatten
from bench.records import find_stored, is_local, study_path, unwritable, write_atomically
from bench.runs.runner import Outcome, run_plan
from bench.stores import file_system
from bench.study import Study

SCHEMA_VERSION: Final = 1
WHERE: Final = ("device", "threads")
"""Overrides that say where a study runs: the records hold them, and no claim is about them."""


def run_study(
    study: Study,
    results: str,
    overrides: Mapping[str, Any],
    *,
    weights: str | None = None,
    observers: Callable[[str], Sequence[Observer]] = lambda variant: (),
    force: bool = False,
    **settings: Any,
) -> list[Outcome]:
    """Do what is left of a study, variant by variant, and return their outcomes; fewer where it was interrupted.

    ``overrides`` are laid over every variant's plan. ``weights`` is a file for all variants that begin with weights, in
    place of another variant's and of published ones. ``observers`` makes those of a variant; ``settings`` are
    `run_plan`'s. Raises `ConfigError` where two variants are the same run, or weights have nobody to begin with them.
    """
    sources = [variant for variant in study.variants if study.gives_weights(variant)]
    if weights is not None and not any(map(study.begins_with_weights, study.variants)):
        raise ConfigError(f"--weights {weights!r}: no variant of the study {study.name!r} begins with weights.")
    if weights is not None and not Path(weights).is_file():
        raise ConfigError(f"--weights {weights!r}: there is no such file. Name a state dict or a checkpoint.")
    if sources and not is_local(results):
        raise ConfigError(f"the study {study.name!r} keeps weights: --results must be a folder here, not {results!r}.")
    variants = [variant for variant in study.variants if weights is None or variant not in sources]
    _check_distinct(study, {variant: study.plan_of(variant, overrides) for variant in variants})
    runs: dict[str, list[str]] = {}
    outcomes = []
    for variant in variants:
        own: dict[str, Any] = {}
        if (source := study.begins_with(variant)) is not None:
            own["pretrained"] = weights or find_stored(results, "weights", runs[source][0])
            if own["pretrained"] is None:
                continue  # nothing to begin with: the record of the source says why
        elif weights is not None and study.begins_with_weights(variant):
            own["pretrained"] = weights
        if variant in sources:
            own["seeds"] = study.plan_of(variant, overrides).seeds[:1]
        run = functools.partial(
            run_plan, study.plan_of(variant, {**overrides, **own}), results, observers(variant), **settings
        )
        outcome = run(force=force, save_weights=variant in sources)
        runs[variant] = [record.run_id for record in outcome.records] + [each.run_id for each in outcome.left]
        had_been_trained = (outcome.skipped or outcome.measured_again) and not outcome.interrupted
        if variant in sources and had_been_trained and find_stored(results, "weights", runs[variant][0]) is None:
            outcome = run(force=True, save_weights=True)  # its weights were not kept
        outcomes.append(outcome)
        _save(study, results, overrides, weights, runs)
        if outcome.interrupted:
            break
    return outcomes


def _check_distinct(study: Study, plans: Mapping[str, Plan]) -> None:
    """What is wrong with one variant is said before another has run."""
    owner: dict[str, str] = {}
    for variant, plan in plans.items():
        same = owner.setdefault(plan.model_dump_json(exclude={"recipe": {"name"}}), variant)
        if same != variant:
            raise ConfigError(
                f"the variants {same!r} and {variant!r} of the study {study.name!r} are the same run with these "
                "options: leave out the one that makes them equal."
            )


def _part(study: Study, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides that make it another study than its file says; where it runs is not among them."""
    return {
        key: value
        for key, value in overrides.items()
        if key not in WHERE
        and any(getattr(study.plan_of(v), key) != getattr(study.plan_of(v, overrides), key) for v in study.variants)
    }


def _known_runs(results: str, part: Mapping[str, Any]) -> dict[str, list[str]]:
    """The runs of each variant when the same part of the study was last done: some may not be reached this time."""
    fs, path = file_system(study_path(results))
    try:
        found = json.loads(fs.cat_file(path))
        same = found["part"] == json.loads(json.dumps(part))
        return {each["name"]: each["runs"] for each in found["variants"]} if same else {}
    except (OSError, ValueError, KeyError, TypeError):  # there is none, or none that could be read
        return {}


def _save(
    study: Study, results: str, overrides: Mapping[str, Any], weights: str | None, runs: Mapping[str, list[str]]
) -> None:
    """`study.json`: all that a report needs of the study, as plain JSON; ``part`` is what was asked for instead."""
    part = _part(study, overrides) | ({"weights": Path(weights).name} if weights is not None else {})
    before = _known_runs(results, part)
    content = study.model_dump(mode="json", include={"name", "title", "claim", "source", "cost", "comparisons"})
    content |= {
        "schema_version": SCHEMA_VERSION,
        "part": part,
        "variants": [
            {
                "name": variant,
                "changes": {key: v for key, v in flatten(table).items() if key.partition(".")[0] not in overrides},
                "runs": runs.get(variant) or before.get(variant, []),
            }
            for variant, table in study.variants.items()
        ],
    }
    try:
        write_atomically(study_path(results), json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise unwritable(results, error) from error
