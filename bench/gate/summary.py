"""The result of a comparison for people and programs: as rows and lines, as Markdown, as plain values for JSON."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

from bench.flags import flag_words
from bench.gate.result import EXIT_CODES, FAIL_ON, Comparison, ModelResult
from bench.gate.statistics.verdicts import format_level
from bench.gate.timing.sample import PairSample, count_blocks, launch_share
from bench.machine import known_facts

SCHEMA_VERSION = 3
DETECTABLE = "detectable: the change that this measurement would have found in four of five cases"
COLUMNS = ("model", "verdict", "change", "interval", "memory", "batch", "detectable", "blocks", "disturbed", "why")
"""Of `row`; the first four are the essential ones."""
PLAIN = ("regressed", "unchanged", "improved", "changed")
"""The statuses that need no explanation in the table."""


def row(result: ModelResult) -> tuple[str, ...]:
    """One model's cells, in the order of `COLUMNS`."""
    judgement, batch_size = result.judgement, f"{result.batch_size or '–'}"
    said = [result.status, *["accepted"] * bool(result.accepted), *["launch-bound"] * bool(result.launch_bound)]
    verdict = ", ".join(said)
    memory = "–" if result.memory is None else format_change(result.memory.change) if result.memory.change else "equal"
    if judgement is None:
        return result.model, verdict, "–", "–", memory, batch_size, "–", "–", "–", result.detail
    low, high = format_change(judgement.low), format_change(judgement.high)
    return (
        result.model,
        verdict,
        format_change(judgement.change),
        "–" if judgement.low is None else f"{low} … {high} ({format_level(judgement.level)})",
        memory,
        batch_size,
        format_change(judgement.detectable),
        *(map(str, count_blocks(result.pairs)) if result.pairs else "––"),
        result.detail,
    )


def format_change(share: float | None) -> str:
    """A share as a signed percentage; more than a doubling is all the same here."""
    return "–" if share is None else ">+100%" if share > 1 else f"{share:+.1%}"


def heading(comparison: Comparison) -> str:
    """The setting in which everything was timed, which belongs above the table."""
    options = comparison.options
    if "device" not in known_facts(comparison.environments[1]):
        return f"Compared: the seconds of pytest-benchmark's rounds. Tolerance: {100 * options.tolerance:.3g}%."
    sizes = sorted({each.batch_size for each in comparison.results if each.batch_size})
    batches = f" Batch: {' to '.join(map(str, dict.fromkeys((sizes[0], sizes[-1]))))}." if sizes else ""
    return f"Timed: {options.setting}.{batches} Tolerance: {100 * options.tolerance:.3g}%."


def reasons(comparison: Comparison) -> list[str]:
    """Why a verdict is what it is, for those that do not speak for themselves."""
    return [f"{each.model}: {each.detail}" for each in comparison.results if each.status not in PLAIN]


def remarks(comparison: Comparison) -> list[str]:
    """All that belongs under the table: differences of counts, environments, disturbances, the exit status."""
    lines = [f"{result.model}: {difference}" for result in comparison.results for difference in result.differences]
    for grown in comparison.grown:
        assert grown.memory is not None
        lines.append(
            f"{grown.model}: peak memory of a step {grown.memory.before:,} → {grown.memory.after:,} bytes "
            f"({format_change(grown.memory.change)}), above the tolerance of "
            f"{100 * (comparison.options.memory_tolerance or 0):.3g}%"
        )
    lines += [f"{each.model}: {why}" for each in comparison.results for why in each.accepted.values()]
    lines += comparison.notes
    if comparison.environment_differences:
        differing = "; ".join(comparison.environment_differences)
        consequence = (
            "Measured all the same, as --force asks: the result includes these differences"
            if comparison.options.force
            else "Nothing was measured; --force measures all the same"
        )
        lines.append(f"The environments differ: {differing}. {consequence}.")
    pairs = [pair for result in comparison.results for pair in result.pairs]
    noticed: dict[str, list[str]] = {}
    for notice in (notice for pair in pairs for notice in pair.notices):
        noticed.setdefault(notice.kind, []).append(notice.message)
    lines += [
        f"{_capital(flag_words(kind))}, {len(each)} of {len(pairs)} pairs: {max(each, key=_numbers)}."
        for kind, each in noticed.items()
    ]
    launched = [(result.model, words) for result in comparison.results if (words := result.launch_bound)]
    lines += [f"{_capital(flag_words('launch_bound'))}: {model}: {words}." for model, words in launched]
    if any(result.status == "inconclusive" for result in comparison.results):
        lines.append(f"What is inconclusive needs {comparison.remedy or 'a larger --budget or a quieter machine'}.")
    failures = comparison.failures()
    if failures:
        on_request = {name: "" if name in FAIL_ON else " with --fail-on" for name in failures}
        lines.append(
            f"Result: {', '.join(f'{name} (exit {EXIT_CODES[name]}{on_request[name]})' for name in failures)}."
        )
    return lines + ([DETECTABLE] if any(result.judgement for result in comparison.results) else [])


def render_markdown(comparison: Comparison) -> str:
    """For the summary of a CI job or a comment on a pull request."""
    base, head = _plain(comparison.base.name), _plain(comparison.head.name)
    lines = [f"### Speed: `{base}` → `{head}`", "", _plain(heading(comparison)), ""]
    if comparison.results:
        lines += [f"| {' | '.join(COLUMNS)} |", f"|---|---|---|---|{'---:|' * (len(COLUMNS) - 5)}---|"]
        for result in comparison.results:
            model, verdict, *rest = (_plain(cell) for cell in row(result))
            is_fine = result.accepted or result.status in ("unchanged", "slower", "faster", "improved")
            strong = "" if is_fine else "**"
            lines.append(f"| `{model}` | {strong}{verdict}{strong} | {' | '.join(rest)} |")
        lines.append("")
    lines += [f"- {_plain(line)}" for line in remarks(comparison)]
    return "\n".join(lines).rstrip() + "\n"


def comparison_to_dict(comparison: Comparison) -> dict[str, Any]:
    """Everything but the raw blocks. Changes are shares: 0.05 is 5% slower; None where nothing can be said."""
    setting = asdict(comparison.options.setting)
    return {
        "schema_version": SCHEMA_VERSION,
        "base": {"name": comparison.base.name, "commit": comparison.base.commit, **comparison.environments[0]},
        "head": {"name": comparison.head.name, "commit": comparison.head.commit, **comparison.environments[1]},
        "environment_differences": list(comparison.environment_differences),
        "forced": comparison.options.force,
        "notes": list(comparison.notes),
        "setting": setting | {"budget_seconds": comparison.options.budget_seconds},
        "tolerance": comparison.options.tolerance,
        "memory_tolerance": comparison.options.memory_tolerance,
        "results": [result_to_dict(result) for result in comparison.results],
        "failures": comparison.failures(),
    }


def raw_to_dict(comparison: Comparison) -> dict[str, Any]:
    """The summary with every block of every pair, including disturbed ones."""
    pairs = {result.model: [_pair_to_dict(pair) for pair in result.pairs] for result in comparison.results}
    return comparison_to_dict(comparison) | {"pairs": {model: each for model, each in pairs.items() if each}}


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _numbers(text: str) -> list[float]:
    """What notices of one kind are ranked by: as text, 9% would be more than 67%."""
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]


def result_to_dict(result: ModelResult) -> dict[str, Any]:
    """A model's part of `comparison_to_dict`."""
    plain = ("model", "status", "detail", "batch_size", "step_ms", "reference_step_ms")
    values = {key: getattr(result, key) for key in plain}
    values["peak_memory_bytes"] = None if result.memory is None else [result.memory.before, result.memory.after]
    values["memory_change"] = None if result.memory is None else result.memory.change
    values["accepted"] = dict(result.accepted)
    values["differences"] = [asdict(difference) for difference in result.differences]
    if result.pairs:
        blocks, disturbed = count_blocks(result.pairs)
        left_out = 4 * sum(len(pair.abba) - len(pair.counted()) for pair in result.pairs)
        values |= {"seconds": result.seconds, "pairs": len(result.pairs), "blocks": blocks}
        values |= {"launch_share": launch_share(result.pairs)}
        values |= {"disturbed_blocks": disturbed, "left_out_blocks": left_out}
    if result.judgement is not None:
        values |= {key: value for key, value in asdict(result.judgement).items() if key not in ("verdict", "reason")}
    return values


def _pair_to_dict(pair: PairSample) -> dict[str, Any]:
    counted = {id(each) for each in pair.counted()}
    sequences = [
        {"flags": each.flags, "counted": id(each) in counted, "blocks": [block._asdict() for block in each.blocks]}
        for each in pair.abba
    ]
    notices = [notice._asdict() for notice in pair.notices]
    return {"steps": pair.steps, "seconds": pair.seconds, "notices": notices, "abba": sequences}


def _plain(text: str) -> str:
    """Text that Markdown's tables and code spans leave as it is; names and errors are not ours."""
    return " ".join(text.split()).replace("|", "¦").replace("`", "'").replace("<", "‹").replace(">", "›")
