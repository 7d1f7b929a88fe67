"""Check a page against the data that it carries, and the data against the records they were taken from.

A page is a pure function of its snapshot. So it is made again from the snapshot inside it, and every tag and every text
of the two is compared: what was altered afterwards differs, and is named by the number's key (``b0/3/test_top1``), or
by the section or figure it is in.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import lru_cache
from html import unescape
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import RecordError
from bench.records import parse_json, plan_folders, plan_name
from reports.data.report_data import load_report_data
from reports.pages.architecture import build_architecture_page, take_architecture_snapshot
from reports.pages.comparison import build_page
from reports.pages.index import build_index, describe_plan, take_index_snapshot
from reports.pages.page import SCHEMA, Snapshot, asset, content_hash, digest, to_json, unpack_array, versions
from reports.pages.snapshot import take_snapshot
from reports.pages.study import build_study_page, take_study_snapshot

_BUILD = {
    "comparison": build_page,
    "architecture": build_architecture_page,
    "index": build_index,
    "study": build_study_page,
}

MOST = 20
"""At most this many problems are listed."""
WINDOW = 2000
"""At most this many tags and texts are aligned where some were added or removed: alignment takes quadratic time."""

_DATA = re.compile(r'<script type="application/json" id="zoobench-data">(.*?)</script>', re.DOTALL)
_DIGEST = re.compile(r'<code id="digest">(.*?)</code>', re.DOTALL)
_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy" content="(.*?)">', re.DOTALL)
_STYLE, _SCRIPT = re.compile(r"<style>(.*?)</style>", re.DOTALL), re.compile(r"<script>(.*?)</script>", re.DOTALL)
_PART = re.compile(r"<[^>]*>|[^<]+")
_PLACE = re.compile(r'<[^>]*? data-k="([^"]*)"|<(?:section|figure|h2|table|code|script)\b[^>]*? id="([^"]*)"')


@dataclass(frozen=True)
class Verification:
    """What was found: ``problems`` name what does not match; ``checked`` counts the tags and texts compared."""

    problems: list[str] = field(default_factory=list)
    checked: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything matched."""
        return not self.problems


def verify_page(page: str | Path, results: str | Path | None = None) -> Verification:
    """Recompute everything that a report's page shows; with ``results``, its data too, from the records.

    Raises `RecordError` if the file cannot be read or is no page of ours.
    """
    text = _read(page)
    found = _DATA.search(text)
    if not found:
        raise RecordError(f"{str(page)!r} carries no zoobench data. Name a page of a report, such as its index.html.")
    try:
        snapshot = parse_json(found[1])
    except ValueError as error:
        return Verification([f"the embedded data is no longer JSON: {error}"])
    if not isinstance(snapshot, dict) or snapshot.get("schema") != SCHEMA or snapshot.get("kind") not in _BUILD:
        raise RecordError(f"{str(page)!r} was made by another version of zoobench. Verify it with that version.")
    shown = _DIGEST.search(text)
    altered = not shown or shown[1] != digest(found[1])
    problems = ["the embedded data does not match its SHA-256 in the footer"] if altered else []
    problems += _policy_problems(text)
    try:
        remade = _remade(to_json(snapshot))
    except Exception as error:  # noqa: BLE001 - whatever altered data does to the drawing of a page is a finding
        return Verification([*problems, f"the embedded data no longer makes a page: {type(error).__name__}: {error}"])
    problems += _differences(_parts(remade), _parts(text))
    if results is not None:
        problems += _differences_from_records(snapshot, results)
    return Verification(problems[:MOST], len(_parts(text)), _notes(text, snapshot))


def verify_report(folder: str | Path, results: str | Path | None = None) -> Verification:
    """`verify_page` of ``index.html`` and of every other page in a report's folder; problems there begin with its name.

    Raises `RecordError` if a page cannot be read, ``index.html`` above all, or is none of ours.
    """
    index = Path(folder) / "index.html"
    problems, checked, notes = list[str](), 0, list[str]()
    for page in (index, *sorted(set(Path(folder).rglob("*.html")) - {index})):
        found = verify_page(page, results)
        name = "" if page == index else f"{page.relative_to(folder).with_suffix('').as_posix()}: "
        problems += [name + problem for problem in found.problems]
        checked += found.checked
        notes += [note for note in found.notes if note not in notes]
    return Verification(problems[:MOST], checked, notes)


def _read(page: str | Path) -> str:
    try:
        return Path(page).read_bytes().decode("utf-8")
    except OSError as error:
        raise RecordError(f"the page {str(page)!r} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise RecordError(f"{str(page)!r} is no page of zoobench: it is not UTF-8 text.") from error


@lru_cache(maxsize=1)
def _remade(data: str) -> str:
    snapshot = json.loads(data)
    return _BUILD[snapshot["kind"]](snapshot)


def _policy_problems(text: str) -> list[str]:
    """The page's own style and script against the hashes in its policy: otherwise the browser would not run them."""
    policy = _POLICY.search(text)
    allowed = unescape(policy[1]) if policy else ""
    parts = {"style": _STYLE.search(text), "script": _SCRIPT.search(text)}
    script = parts["script"]
    foreign = script is not None and script[1] != asset("page.js")
    problems = ["the page's script is not that of this zoobench, and may show other numbers: write the page again"]
    return (problems if foreign else []) + [
        f"the {kind} of the page is not the one that its policy allows"
        for kind, found in parts.items()
        if not found or f"{kind}-src '{content_hash(found[1])}'" not in allowed
    ]


def _parts(text: str) -> list[tuple[str, str]]:
    """The tags and texts of a page in order, each with the name of where it is.

    Style, script and the policy that allows them show no number, and may be those of an earlier version: left out.
    """
    for pattern in (_STYLE, _SCRIPT, _POLICY):
        text = pattern.sub("", text, count=1)
    parts, where = [], "the head"
    for part in _PART.findall(text):
        if place := _PLACE.match(part):
            where = place[1] or place[2]
        parts.append((where, part))
    return parts


def _differences(ours: list[tuple[str, str]], theirs: list[tuple[str, str]]) -> list[str]:
    """What differs; position by position where nothing was added or removed, which is fast."""
    a, b = [part for _, part in ours], [part for _, part in theirs]
    if len(a) == len(b):
        changed = [k for k in range(len(a)) if a[k] != b[k]][:MOST]
        codes = [("replace", k, k + 1, k, k + 1) for k in changed]
    else:
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
        a, b = a[same : same + WINDOW], b[same : same + WINDOW]
        opcodes = SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
        codes = [(tag, i + same, j + same, k + same, m + same) for tag, i, j, k, m in opcodes if tag != "equal"]
    problems = []
    for tag, a0, a1, b0, b1 in codes:
        expected, got = _around(*("".join(part for _, part in parts) for parts in (ours[a0:a1], theirs[b0:b1])))
        words = {"replace": f"{got!r} should be {expected!r}", "delete": f"{expected!r} is missing"}
        where = ours[min(a0, len(ours) - 1)][0]
        problems.append(f"{where}: {words.get(tag, f'{got!r} should not be there')}")
    return problems


def _around(expected: str, got: str) -> tuple[str, str]:
    """The two texts; where they are long, what is near their first difference."""
    pairs = zip(count(), expected, got, strict=False)
    start = max(next((k for k, a, b in pairs if a != b), 0) - 30, 0)
    return expected[start : start + 70], got[start : start + 70]


def _differences_from_records(snapshot: Snapshot, results: str | Path) -> list[str]:
    """Every value of the embedded data against the one taken from the records; of the runs alone where they differ."""
    if snapshot["kind"] == "index":
        pages = {plan["plan"]: plan["page"] for plan in snapshot["plans"]}
        plans = ((plan_name(folder), load_report_data(folder)) for folder in plan_folders(results))
        fresh = take_index_snapshot(describe_plan(name, pages.get(name, ""), data) for name, data in plans)
    elif snapshot["kind"] == "comparison":
        fresh = take_snapshot(load_report_data(results), snapshot["pages"])
        fresh["published"] = snapshot.get("published")  # others' numbers are in no record of ours
    elif snapshot["kind"] == "study":
        data = load_report_data(results)
        if data.study is None:
            return [f"{str(results)!r} holds no study"]
        fresh = take_study_snapshot(data)
    else:
        fresh = take_architecture_snapshot(load_report_data(results), str(snapshot["model"]))
    fresh["made_with"] = snapshot["made_with"]  # that is not for the records to say
    ours, theirs = (_by_run(each.get("runs", {})) for each in (fresh, snapshot))
    return _tree_differences(ours, theirs, "data.runs") or _tree_differences(fresh, snapshot, "data")


def _by_run(columns: dict[str, list[Any]]) -> dict[str, dict[str, Any]]:
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    return {row["run_id"]: row for row in rows}


def _tree_differences(ours: Any, theirs: Any, path: str) -> list[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if ours.keys() == theirs.keys() == {"dtype", "shape", "zlib"}:
            return [] if np.array_equal(unpack_array(ours), unpack_array(theirs)) else [f"{path}: the arrays differ"]
        keys = sorted(ours.keys() | theirs.keys())
        return [p for key in keys for p in _tree_differences(ours.get(key), theirs.get(key), f"{path}.{key}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [p for k, (a, b) in pairs for p in _tree_differences(a, b, f"{path}[{k}]")]
    if ours == theirs:
        return []
    if ours is None or theirs is None:
        return [f"{path} is in the {'page but not in the records' if ours is None else 'records but not in the page'}"]
    return [f"{path}: the page has {str(theirs)[:80]}, the records give {str(ours)[:80]}"]


def _notes(text: str, snapshot: Snapshot) -> list[str]:
    now = versions()
    notes = [
        f"the page was made with {name} {was}, this is {now.get(name)}: figures may differ for that reason alone"
        for name, was in snapshot["made_with"].items()
        if now.get(name) != was
    ]
    style = _STYLE.search(text)
    if style and style[1] != asset("page.css"):
        notes.append("the page's style is not that of this zoobench: an earlier one, or one that hides or covers text")
    return notes
