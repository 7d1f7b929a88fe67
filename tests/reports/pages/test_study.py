"""The page of a study, and the findings that the guide shows."""

import json
import re
from pathlib import Path

import pytest

from bench.records import save_record
from reports.data.report_data import load_report_data
from reports.pages.study import findings_as_dict, findings_as_markdown, part_text, take_study_snapshot
from reports.pages.verify import verify_page
from reports.report import write_report, write_reports

ROOT = Path(__file__).parents[3]
NASTY = "</script><b>\u202e|"


def study(**changes):
    content = {
        "schema_version": 1, "name": "mirrors", "title": f"Mirrors {NASTY}", "claim": "They help",
        "source": "a paper", "cost": "low",
        "part": {"seeds": [0, 1], "budget": {"epochs": 2}},
        "variants": [
            {"name": name, "changes": {"recipe.flip": name == "with"}, "runs": [f"{name}-s{k}" for k in range(3)]}
            for name in ("without", "with")
        ],
        "comparisons": [
            {"claim": claim, "better": "with", "than": "without", "metric": metric, "ratio": ratio, "margin": margin}
            for claim, metric, ratio, margin in (("Help", "test_top1", False, 0), ("For free", "macs", True, 0.99))
        ],
    }  # fmt: skip
    return content | changes


@pytest.fixture
def results(make_record, tmp_path):
    folder = tmp_path / "study-mirrors"
    for name, values in (("without", (0.80, 0.81)), ("with", (0.90, 0.91))):
        for seed, value in enumerate(values):
            metrics = {"test_top1": value, "macs": 1000, "wall_seconds": 30.0}
            save_record(make_record("lenet5", seed, run_id=f"{name}-s{seed}", metrics=metrics), folder)
    (folder / "study.json").write_text(json.dumps(study()))
    return folder


def test_the_page_comes_first_and_every_number_of_it_is_checked(results):
    page = write_report(results, results / "report")[0]
    text = page.read_text(encoding="utf-8")
    assert page.name == "index.html"
    assert '<strong data-k="verdict">supported</strong>' in text
    assert "+10.00 points" in text
    assert NASTY not in text
    assert "4 of 6 runs done, of 2 of 2 variants; they took 2.00 minutes" in text
    assert "with seeds 0, 1, budget 2 epochs" in text
    assert verify_page(page, results).problems == []
    for old, new, place in (("+10.00 points", "+11.00 points", "comparison/0/effect"), (">exact<", ">1 to 2<", "comp")):
        altered = page.with_name("altered.html")
        altered.write_text(text.replace(old, new, 1), encoding="utf-8")
        assert any(problem.startswith(place) for problem in verify_page(altered).problems)


def test_a_record_or_a_study_changed_afterwards_is_found(results, make_record):
    page = write_report(results, results / "report")[0]
    content = study()
    content["comparisons"][0]["margin"] = 0.2
    (results / "study.json").write_text(json.dumps(content))
    assert any("margin" in problem for problem in verify_page(page, results).problems)
    (results / "study.json").write_text(json.dumps(study()))
    save_record(make_record("lenet5", 0, run_id="with-s0", metrics={"test_top1": 0.1, "macs": 1000}), results)
    assert any("values.with.test_top1" in problem for problem in verify_page(page, results).problems)
    (results / "study.json").unlink()
    assert verify_page(page, results).problems == [f"{str(results)!r} holds no study"]


def test_the_index_of_plans_leads_to_it(results):
    index = write_reports(results.parent)[0]
    assert "study-mirrors/report/index.html" in index.read_text(encoding="utf-8")
    assert verify_page(index, results.parent).problems == []


def test_a_study_without_any_record_is_a_page_as_well(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "study.json").write_text(json.dumps(study()))
    page = write_report(tmp_path, tmp_path / "report")[0]
    assert "0 of 6 runs done" in page.read_text(encoding="utf-8")
    assert verify_page(page, tmp_path).problems == []
    found = findings_as_dict(take_study_snapshot(load_report_data(tmp_path)))
    assert found["verdict"] == "undecided at this budget"
    assert [each["effect"] for each in found["comparisons"]] == [None, None]


def test_the_guide_shows_what_the_published_records_say():
    published = re.findall(r"^!/results/(study-.+)/$", (ROOT / ".gitignore").read_text(), re.MULTILINE)
    snapshots = [take_study_snapshot(load_report_data(ROOT / "results" / name)) for name in published]
    text = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    shown = text.partition("<!-- findings -->\n")[2].partition("<!-- /findings -->")[0]
    assert shown == (findings_as_markdown(snapshots) + "\n" if snapshots else "")
    for snapshot in snapshots:
        assert part_text(snapshot) in shown
