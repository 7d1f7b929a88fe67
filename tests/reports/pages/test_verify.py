import json
import re
from pathlib import Path

import numpy as np
import pytest

from bench.errors import RecordError
from bench.records import read_record, save_record
from reports.pages.page import content_hash
from reports.pages.verify import verify_page, verify_report
from reports.report import write_report

RESULTS = Path(__file__).parents[3] / "results"
PUBLISHED = re.findall(r"^!/results/(.+)/$", RESULTS.with_name(".gitignore").read_text(), re.MULTILINE)


@pytest.fixture
def altered(zoo_report, tmp_path):
    """Write the page with one place altered, and return its path."""

    def alter(old: str, new: str, count: int = 1):
        text = (zoo_report / "index.html").read_text(encoding="utf-8")
        assert old in text
        path = tmp_path / "altered.html"
        path.write_text(text.replace(old, new, count), encoding="utf-8")
        return path

    return alter


def test_the_page_as_written_matches_its_data_and_the_records(zoo_report, zoo_results) -> None:
    found = verify_page(zoo_report / "index.html", zoo_results)
    assert found.ok
    assert found.problems == []
    assert found.checked > 3000
    assert found.notes == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_page_matches_its_records(name) -> None:
    found = verify_report(RESULTS / name / "report", RESULTS / name)
    assert found.problems == []
    assert found.checked > 500


def test_an_altered_number_is_named_by_its_key(zoo_report, altered) -> None:
    text = (zoo_report / "index.html").read_text(encoding="utf-8")
    cell = re.search(r'data-k="(b0/2/test_top1)" data-v="[^"]+">(\d\d\.\d)(\d)', text)
    digit = str((int(cell[3]) + 1) % 10)
    found = verify_page(altered(cell[0], cell[0][:-1] + digit))
    assert not found.ok
    assert found.problems == [p for p in found.problems if p.startswith("b0/2/test_top1: ")]
    assert f"{cell[2]}{digit}" in found.problems[0]
    assert f"{cell[2]}{cell[3]}" in found.problems[0]


def test_a_number_in_words_or_in_a_figure_is_found_as_well(zoo_report, altered) -> None:
    text = (zoo_report / "index.html").read_text(encoding="utf-8")
    tick = re.search(r">(70)</text>", text)
    assert verify_page(altered(tick[0], ">79</text>")).problems[0].startswith("accuracy-macs: '79' should be '70'")
    assert verify_page(altered("1 of 17 runs diverged", "2 of 17 runs diverged")).problems[0].startswith("summary: ")


def test_any_digit_of_the_page_altered_is_found(zoo_report, tmp_path) -> None:
    """Digits drawn at random from everything behind the head: text, attributes, figures, data, hash, script."""
    text = (zoo_report / "index.html").read_text(encoding="utf-8")
    start = text.index("<body>")
    places = [match.start() for match in re.finditer(r"\d", text) if match.start() > start]
    path = tmp_path / "altered.html"
    for place in np.random.default_rng(0).choice(places, 8, replace=False):
        path.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :], encoding="utf-8")
        assert not verify_page(path).ok, text[place - 60 : place + 20]


def test_data_and_page_altered_alike_betray_themselves_by_the_hash(zoo_report, altered) -> None:
    text = (zoo_report / "index.html").read_text(encoding="utf-8")
    digest = re.search(r'<code id="digest">(\w+)</code>', text)[1]
    assert any("SHA-256" in problem for problem in verify_page(altered(digest, digest[::-1])).problems)


def test_a_record_changed_since_is_named(zoo_report, zoo_results, tmp_path) -> None:
    for path in (zoo_results / "runs").glob("*.json"):
        one = read_record(path)
        if one.run_id == "lenet5-s1-000000000000":
            one = one.model_copy(update={"metrics": one.metrics | {"test_top1": 0.99}})
        if one.run_id != "resnet18-s0-000000000000":
            save_record(one, tmp_path)
    problems = verify_page(zoo_report / "index.html", tmp_path).problems
    changed = "data.runs.lenet5-s1-000000000000.test_top1: "
    assert any(p.startswith(changed) and "0.99" in p for p in problems)
    assert "data.runs.resnet18-s0-000000000000 is in the page but not in the records" in problems


def test_a_changed_curve_is_named(zoo_report, zoo_results, tmp_path) -> None:
    for path in (zoo_results / "runs").glob("*.json"):
        one = read_record(path)
        if one.run_id == "lenet5-s1-000000000000":
            one = one.model_copy(update={"history": [row | {"val_top1": 0.1} for row in one.history]})
        save_record(one, tmp_path)
    assert any(p.startswith("data.curves") for p in verify_page(zoo_report / "index.html", tmp_path).problems)


def test_something_added_or_removed_is_found(altered) -> None:
    assert "should not be there" in verify_page(altered("<main", "<p>99%</p><main")).problems[0]
    assert not verify_page(altered("</bdi></dd>", "</bdi>")).ok


def test_a_page_of_an_earlier_look_still_verifies(zoo_report, altered) -> None:
    text = (zoo_report / "index.html").read_text(encoding="utf-8")
    style = re.search("<style>(.*?)</style>", text, re.DOTALL)[1]
    older = style.replace("88rem", "70rem")
    path = altered(style, older)
    assert any("style" in problem for problem in verify_page(path).problems)
    path.write_text(
        path.read_text(encoding="utf-8").replace(content_hash(style), content_hash(older)), encoding="utf-8"
    )
    found = verify_page(path)
    assert found.problems == []
    assert any("style is not that of this zoobench" in note for note in found.notes)


@pytest.mark.parametrize("allowed", [False, True])
def test_a_forged_script_is_found_also_where_the_policy_allows_it(zoo_report, altered, allowed) -> None:
    script = re.search("<script>(.*?)</script>", (zoo_report / "index.html").read_text(encoding="utf-8"), re.DOTALL)[1]
    forged = script.replace('"use strict";', '"use strict"; document.title = "99%";')
    path = altered(script, forged)
    if allowed:
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(content_hash(script), content_hash(forged)), encoding="utf-8")
    assert any("the page's script is not that of this" in problem for problem in verify_page(path).problems)


def test_what_is_no_page_of_ours_is_an_error(tmp_path) -> None:
    (tmp_path / "x.html").write_text("<p>hello")
    (tmp_path / "b.html").write_bytes(b"\xff\xfe\x00")
    data = '<script type="application/json" id="zoobench-data">%s</script>'
    (tmp_path / "v.html").write_text(data % json.dumps({"schema": 99}))
    (tmp_path / "e.html").write_text(data % "{")
    for name in ("x.html", "b.html", "v.html", "missing.html"):
        with pytest.raises(RecordError, match=name):
            verify_page(tmp_path / name)
    assert "no longer JSON" in verify_page(tmp_path / "e.html").problems[0]


def test_data_that_makes_no_page_is_a_problem_not_a_crash(zoo_report, tmp_path) -> None:
    text = (zoo_report / "index.html").read_text(encoding="utf-8")
    (tmp_path / "x.html").write_text(re.sub(r'"runs":\{"run_id":\[', '"runs":{"run_ib":[', text, count=1))
    assert not verify_page(tmp_path / "x.html").ok


def test_hostile_names_verify_too(save, make_record, tmp_path) -> None:
    results = save([make_record('</script><b a="1">&amp;\x00\r\n\u202e')])
    assert verify_page(write_report(results, tmp_path / "out")[0], results).problems == []
