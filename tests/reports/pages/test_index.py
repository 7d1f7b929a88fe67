import re
import shutil

import pytest

from bench.cli.app import main
from reports.pages.verify import verify_page
from reports.report import write_reports


def lay_out(zoo_results, root):
    """Two plans and what is none, in one folder."""
    for plan, pattern in (("zoo", "resnet18-*.json"), ("small", "lenet5-*.json")):
        (root / plan / "runs").mkdir(parents=True)
        for path in (zoo_results / "runs").glob(pattern):
            shutil.copy(path, root / plan / "runs")
    (root / "baselines").mkdir()
    return root


@pytest.fixture
def plans(zoo_results, tmp_path):
    return lay_out(zoo_results, tmp_path / "results")


@pytest.fixture(scope="module")
def reported(zoo_results, tmp_path_factory):
    """The two plans with their reports, to be read only."""
    root = lay_out(zoo_results, tmp_path_factory.mktemp("reported") / "results")
    return root, write_reports(root)


def links(page):
    return dict(re.findall(r'<a href="([^"#]+)"><bdi>([^<]+)</bdi></a>', page.read_text(encoding="utf-8")))


def test_each_plan_has_its_report_and_the_index_leads_to_all(reported) -> None:
    plans, (index, *written) = reported
    assert index == plans / "index.html"
    assert links(index) == {"small/report/index.html": "small", "zoo/report/index.html": "zoo"}
    for name in ("small", "zoo"):
        page = plans / name / "report" / "index.html"
        assert page in written
        assert verify_page(page, plans / name).problems == []
    assert "resnet18" in (plans / "zoo" / "report" / "leaderboard.csv").read_text()
    assert "resnet18" not in (plans / "small" / "report" / "leaderboard.csv").read_text()


def test_all_of_it_can_go_elsewhere(plans, tmp_path) -> None:
    index, *_ = write_reports(plans, tmp_path / "site")
    assert links(index) == {"small/index.html": "small", "zoo/index.html": "zoo"}
    assert all((tmp_path / "site" / page).exists() for page in links(index))
    assert not (plans / "zoo" / "report").exists()


def test_names_that_are_markup_stay_text(plans) -> None:
    shutil.rmtree(plans / "zoo")
    (plans / "small").rename(plans / '<b>"&')
    text = write_reports(plans)[0].read_text(encoding="utf-8")
    assert "<b>" not in text
    assert 'href="%3Cb%3E%22%26/report/index.html"' in text


def zoobench(monkeypatch, capsys, *arguments):
    """The command line in this process: exit status, output, errors."""
    monkeypatch.setattr("sys.argv", ["zoobench", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0, *capsys.readouterr()


def test_commands_find_plans_by_name_under_results(plans, monkeypatch, capsys) -> None:
    monkeypatch.chdir(plans.parent)
    status, out, _ = zoobench(monkeypatch, capsys, "report", "small")
    assert (status, out.splitlines()[0]) == (0, "results/small/report/index.html")
    assert zoobench(monkeypatch, capsys, "verify", "small")[0] == 0
    assert zoobench(monkeypatch, capsys, "verify", "zoo")[0] == 2  # has no report yet
    status, out, _ = zoobench(monkeypatch, capsys, "report")
    assert (status, out.splitlines()[0]) == (0, "results/index.html")
    status, out, _ = zoobench(monkeypatch, capsys, "report", "results/small", "--model", "lenet5")
    assert (status, out) == (0, "results/small/report/models/lenet5.html\n")
    for arguments, words in (
        (["report", "smal"], ["'smal'", "Did you mean 'small'?", "small, zoo", "--results DIR"]),
        (["report", "--model", "lenet5"], ["--model needs one plan", "small, zoo"]),
        (["report", "small", "--results", "results"], ["exclude each other"]),
        (["verify", "nothing.html"], ["nothing.html", "cannot be read"]),
        (["watch"], ["no plan has run in 'results'"]),
    ):
        status, out, err = zoobench(monkeypatch, capsys, *arguments)
        assert (status, out) == (2, "")
        assert err.count("\n") == 1
        assert all(word in err for word in words), err


def test_export_and_history_take_all_plans(plans, monkeypatch, capsys) -> None:
    monkeypatch.chdir(plans.parent)
    for path in (plans / "zoo" / "runs").iterdir():
        path.unlink()
    for path in (plans / "small" / "runs").glob("lenet5-s0-*.json"):
        shutil.move(path, plans / "zoo" / "runs")
    assert zoobench(monkeypatch, capsys, "export", "--format", "csv")[0] == 0
    rows = (plans.parent / "export" / "runs.csv").read_text().splitlines()[1:]
    assert len(rows) == len(list(plans.glob("*/runs/*.json"))) > len(list(plans.glob("small/runs/*.json"))) > 0
    status, out, _ = zoobench(monkeypatch, capsys, "history", "lenet5")
    assert (status, f"{len(rows)} record" in out) == (0, True)


def test_the_index_verifies_and_an_altered_number_is_found(reported) -> None:
    plans, (index, *_) = reported
    assert verify_page(index, plans).problems == []
    text = index.read_text(encoding="utf-8")
    score = re.search(r"<td>(\d\d\.\d\d%)</td>", text)[1]
    changed = index.with_name("changed.html")
    changed.write_text(text.replace(f"<td>{score}", "<td>99.99%", 1), encoding="utf-8")
    (problem,) = verify_page(changed).problems
    assert problem.endswith(f"'99.99%' should be '{score}'")
