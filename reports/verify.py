"""Check a page against the data that it carries, and the data against the records they were taken from.

A page is a pure function of its snapshot. So it is made again from the snapshot inside it, and every text, every
attribute and every figure of the two is compared: whatever was altered afterwards differs, and is named by the
number's key (``b0/3/test_top1``), or by the section or figure it stands in.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import lru_cache
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from bench.errors import RecordError
from reports.html import asset, build_page, content_hash, digest
from reports.loading import load_results
from reports.snapshot import SCHEMA, Snapshot, take_snapshot, to_json, versions

_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy" content="(.*?)">', re.DOTALL)
_STYLE, _SCRIPT = re.compile(r"<style>(.*?)</style>", re.DOTALL), re.compile(r"<script>(.*?)</script>", re.DOTALL)

MOST = 20
"""So many problems are told."""

_DATA = re.compile(r'<script type="application/json" id="zoobench-data">(.*?)</script>', re.DOTALL)
_DIGEST = re.compile(r'<code id="digest">(.*?)</code>', re.DOTALL)


@dataclass(frozen=True)
class Verification:
    """What was found: ``problems`` name what does not match; ``checked`` counts the texts and attributes compared."""

    problems: list[str] = field(default_factory=list)
    checked: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything matched."""
        return not self.problems


def verify_page(page: str | Path, results: str | Path | None = None) -> Verification:
    """Recompute every number that a page shows; with ``results``, its data too, from the records.

    Raises `RecordError` if the file cannot be read or is no page of ours.
    """
    text = _read(page)
    found = _DATA.search(text)
    if not found:
        raise RecordError(f"{str(page)!r} carries no zoobench data. Name the index.html of a report.")
    try:
        snapshot = json.loads(found[1])
    except ValueError as error:
        return Verification([f"the embedded data is not JSON any more: {error}"])
    if not isinstance(snapshot, dict) or snapshot.get("schema") != SCHEMA:
        raise RecordError(f"{str(page)!r} was made by another version of zoobench. Verify it with that version.")
    problems = []
    shown = _DIGEST.search(text)
    if not shown or shown[1] != digest(found[1]):
        problems.append("the embedded data does not match its SHA-256 in the footer")
    problems += _policy_problems(text)
    problems_in_page, checked = _compare_with_remade(text, snapshot)
    problems += problems_in_page
    if results is not None:
        problems += _compare_with_records(snapshot, results)
    return Verification(problems[:MOST], checked, _other_versions(text, snapshot))


def _read(page: str | Path) -> str:
    try:
        return Path(page).read_bytes().decode("utf-8")
    except OSError as error:
        raise RecordError(f"the page {str(page)!r} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise RecordError(f"{str(page)!r} is no page of zoobench: it is not UTF-8 text.") from error


def _policy_problems(text: str) -> list[str]:
    """The page's own style and script against the hashes in its policy: else the browser would not run them."""
    policy = _POLICY.search(text)
    allowed = unescape(policy[1]) if policy else ""
    parts = {"style": _STYLE.search(text), "script": _SCRIPT.search(text)}
    return [
        f"the {kind} of the page is not the one that its policy allows"
        for kind, found in parts.items()
        if not found or f"{kind}-src '{content_hash(found[1])}'" not in allowed
    ]


@lru_cache(maxsize=1)
def _remade(data: str) -> str:
    return build_page(json.loads(data))


def _compare_with_remade(text: str, snapshot: Snapshot) -> tuple[list[str], int]:
    try:
        remade = _remade(to_json(snapshot))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        return [f"the embedded data makes no page any more: {type(error).__name__}: {error}"], 0
    if remade == text:
        return [], len(_Parts.of(text))
    ours, theirs = _Parts.of(remade), _Parts.of(text)
    problems: list[str] = []
    for tag, a0, a1, b0, b1 in _differences([part for _, part in ours], [part for _, part in theirs]):
        here = theirs[b0:b1] or theirs[b0 - 1 : b0] or ours[a0:a1]
        expected, got = _around(*(" ".join(part for _, part in parts) for parts in (ours[a0:a1], theirs[b0:b1])))
        told = {"replace": f"{got!r} should be {expected!r}", "delete": f"{expected!r} is missing"}
        problems.append(f"{here[0][0]}: {told.get(tag, f'{got!r} should not be there')}")
    if not problems and _bare(remade) != _bare(text):
        problems.append("the page differs from its data outside of any text: in its markup")
    return problems, len(theirs)


def _bare(text: str) -> str:
    """The page without its style, script and policy."""
    for pattern in (_STYLE, _SCRIPT, _POLICY):
        text = pattern.sub("", text, count=1)
    return text


def _around(expected: str, got: str) -> tuple[str, str]:
    """The two texts, of long ones only what is near their first difference."""
    first = next((k for k, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), 0)
    start = max(first - 30, 0)
    return expected[start : start + 70], got[start : start + 70]


def _differences(ours: list[str], theirs: list[str]) -> list[tuple[str, int, int, int, int]]:
    """Opcodes of what differs; position by position where nothing was added or removed, which is fast."""
    if len(ours) == len(theirs):
        changed = [k for k, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
        return [("replace", k, k + 1, k, k + 1) for k in changed[:MOST]]
    start = next((k for k, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    end = 0
    while end < min(len(ours), len(theirs)) - start and ours[-1 - end] == theirs[-1 - end]:
        end += 1
    a, b = ours[start : len(ours) - end][:2000], theirs[start : len(theirs) - end][:2000]
    codes = SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    return [(tag, i + start, j + start, k + start, m + start) for tag, i, j, k, m in codes if tag != "equal"]


class _Parts(HTMLParser):
    """The texts, attributes and tags of a page in order, each with the name of where it stands.

    Style and script are left out: they show no number, and may be those of an earlier version.
    """

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[tuple[str, str]] = []
        self.where = ["the head"]

    @classmethod
    def of(cls, text: str) -> list[tuple[str, str]]:
        parser = cls()
        parser.feed(text)
        parser.close()
        return parser.parts

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        name = given.get("data-k") or (given.get("id") or given.get("aria-labelledby") if tag in _NAMED else None)
        if tag not in _VOID:
            self.where.append(name or self.where[-1])
        self.parts.append((name or self.where[-1], f"<{tag}>"))
        if given.get("http-equiv") != "Content-Security-Policy":  # it is checked by itself
            self.parts += [(name or self.where[-1], f"{key}={value}") for key, value in attrs]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.parts.append((self.where[-1], f"<{tag}/>"))
        self.parts += [(self.where[-1], f"{key}={value}") for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if len(self.where) > 1 and tag not in _VOID:
            self.where.pop()
        self.parts.append((self.where[-1], f"</{tag}>"))

    def handle_data(self, data: str) -> None:
        looks = self.lasttag in ("style", "script") and '"schema"' not in data[:4000]
        if data.strip() and not (looks and self.cdata_elem):
            self.parts.append((self.where[-1], data.strip()))

    def handle_decl(self, decl: str) -> None:
        self.parts.append((self.where[-1], decl))

    def handle_comment(self, data: str) -> None:
        self.parts.append((self.where[-1], f"<!--{data}-->"))


_NAMED = {"section", "figure", "h2", "script", "table", "code"}
_VOID = {"meta", "link", "br", "input", "img", "hr"}


def _compare_with_records(snapshot: Snapshot, results: str | Path) -> list[str]:
    """Every value of the embedded data against the same one taken from the records."""
    fresh = take_snapshot(load_results(results), snapshot["pages"])
    fresh["made_with"] = snapshot["made_with"]
    ours, theirs = fresh.pop("runs"), {**snapshot}.pop("runs")
    known = {run: k for k, run in enumerate(ours["run_id"])}
    carried = {run: k for k, run in enumerate(theirs.get("run_id", []))}
    problems = [f"the run {run} is in the page but not in the records" for run in carried if run not in known]
    problems += [f"the run {run} is in the records but not in the page" for run in known if run not in carried]
    for run in carried.keys() & known.keys():
        for column, values in ours.items():
            mine, other = values[known[run]], theirs.get(column, {})
            other = other[carried[run]] if len(other) > carried[run] else None
            if mine != other:
                problems.append(f"run {run}, {column}: the page has {other!r}, the record {mine!r}")
    rest = {key: value for key, value in snapshot.items() if key != "runs"}
    return sorted(problems) or _tree_differences(fresh, rest, "data")


def _tree_differences(ours: Any, theirs: Any, path: str) -> list[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = sorted(ours.keys() | theirs.keys())
        return [p for key in keys for p in _tree_differences(ours.get(key), theirs.get(key), f"{path}.{key}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [p for k, (a, b) in pairs for p in _tree_differences(a, b, f"{path}[{k}]")]
    return [] if ours == theirs else [f"{path}: the page has {str(theirs)[:80]}, the records give {str(ours)[:80]}"]


def _other_versions(text: str, snapshot: Snapshot) -> list[str]:
    now = versions()
    notes = [
        f"the page was made with {name} {was}, this is {now.get(name)}: figures may differ for that reason alone"
        for name, was in snapshot["made_with"].items()
        if now.get(name) != was
    ]
    for kind, found in (("css", _STYLE.search(text)), ("js", _SCRIPT.search(text))):
        if found and found[1] != asset(f"page.{kind}"):
            notes.append(f"the page's page.{kind} is not that of this zoobench: it may be an earlier one")
    return notes
