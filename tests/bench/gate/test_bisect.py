"""The commit that made a network slower, in small repositories with real commits."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bench.errors import UserError
from bench.gate.bisect import MAX_DOUBLINGS, bisect, bisection_to_dict
from bench.gate.result import CompareOptions
from bench.gate.timing.subject import Setting
from bench.gate.worktrees import PREFIX

ROOT = Path(__file__).parents[3]
FAST = CompareOptions(("small",), Setting(input_size=16), budget_seconds=8, batch_size=2, tolerance=0.5)
COUNTS = CompareOptions(("small",), decide="counts")
SLOW = "        [x.clone() for _ in range(200)]\n        return self.fc("
"""Far more work, which the exact gates do not see: copies are no part of what is computed."""


def commit(repository, *subjects):
    """Commits that change nothing that counts; returns the last one's hash."""
    for subject in subjects:
        repository.write("notes.txt", subject)
        repository.commit(subject)
    return repository.git("rev-parse", "HEAD")


def widen(repository):
    repository.replace("zoo/__init__.py", '"small": 8', '"small": 9')


@pytest.fixture
def history(repository, monkeypatch):
    monkeypatch.chdir(repository.path)
    repository.git("tag", "good")
    return repository


def test_the_commit_with_the_slowdown_is_found_with_its_change(history, tmp_path, monkeypatch):
    folder = tmp_path / "temporary"  # other workers have revisions checked out in the common one
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    commit(history, "a", "b")
    history.replace("zoo/__init__.py", "        return self.fc(", SLOW)
    culprit = commit(history, "copies in the forward pass")
    commit(history, "c")
    found = bisect("good", "HEAD", FAST)
    assert found.verdict == "found", found.summary
    assert found.exit_code == 0
    assert [each.sha for each in found.suspects] == [culprit]
    assert "copies in the forward pass" in found.summary
    (result,) = found.confirmation.results
    assert result.judgement.change > 0.5
    assert 0 < result.judgement.low < result.judgement.change < result.judgement.high
    assert found.trials[0].outcome == "bad"
    assert list(folder.glob(f"{PREFIX}*")) == []
    shown = json.loads(json.dumps(bisection_to_dict(found), allow_nan=False))
    assert shown["suspects"] == [
        {"sha": culprit, "subject": "copies in the forward pass", "date": shown["suspects"][0]["date"]}
    ]
    assert shown["confirmation"]["results"][0]["change"] == result.judgement.change


def test_counts_are_searched_exactly_without_timing(history):
    commit(history, *"ab")
    widen(history)
    culprit = commit(history, "one more channel")
    commit(history, *"cdef")
    lines = []
    found = bisect("good", "HEAD", COUNTS, progress=lines.append)
    assert [each.sha for each in found.suspects] == [culprit]
    assert len(found.trials) <= 4  # of 7 commits: all are halved each time
    assert {each.outcome for each in found.trials} == {"good", "bad"}
    assert any("params" in str(difference) for difference in found.confirmation.results[0].differences)
    assert not any("round 1" in line for line in lines)


def test_commits_that_cannot_be_tested_are_skipped(history):
    commit(history, "a")
    zoo = (history.path / "zoo/__init__.py").read_text()
    history.write("zoo/__init__.py", "import no_such_package\n")
    commit(history, "broken import")
    history.write("zoo/__init__.py", zoo.replace('"small": 8', '"tiny": 8'))
    commit(history, "renamed for a while")
    history.write("zoo/__init__.py", zoo)
    good = commit(history, "whole again")
    widen(history)
    culprit = commit(history, "one more channel")
    commit(history, "b")
    found = bisect("good", "HEAD", COUNTS)
    assert [each.sha for each in found.suspects] == [culprit]
    assert good in {each.commit.sha for each in found.trials if each.outcome == "good"}
    assert found.verdict == "found"


def test_where_only_skipped_commits_are_left_all_suspects_are_named(history):
    commit(history, "a")
    zoo = (history.path / "zoo/__init__.py").read_text()
    history.write("zoo/__init__.py", "import no_such_package\n")
    broken = commit(history, "broken import")
    history.write("zoo/__init__.py", zoo)
    widen(history)
    mended = commit(history, "mended, with one more channel")
    commit(history, "b")
    found = bisect("good", "HEAD", COUNTS)
    assert found.verdict == "inconclusive"
    assert found.exit_code == 11
    assert {each.sha for each in found.suspects} == {broken, mended}
    (skipped,) = [each for each in found.trials if each.outcome == "skipped"]
    assert "no_such_package" in skipped.detail


def test_no_difference_and_bad_input(history):
    last = commit(history, "a", "b")
    found = bisect("good", "HEAD", COUNTS)
    assert (found.verdict, found.exit_code, len(found.trials)) == ("nothing", 14, 1)
    with pytest.raises(UserError, match="is no ancestor of good"):
        bisect("HEAD", "good", COUNTS)
    with pytest.raises(UserError, match="the same commit"):
        bisect("HEAD", last, COUNTS)
    with pytest.raises(UserError, match="is no revision"):
        bisect("god", "HEAD", COUNTS)
    with pytest.raises(UserError, match="no architecture is named 'smal'"):
        bisect("good", "HEAD", CompareOptions(("smal",), decide="counts"))


def test_a_model_that_only_one_side_has_is_no_obstacle(history):
    history.replace("zoo/__init__.py", '"wide": 16', '"wide": 16, "newer": 4')
    history.commit("a third architecture")
    found = bisect("good", "HEAD", CompareOptions(("*",), decide="counts"))
    assert found.verdict == "nothing"
    assert "newer" not in found.summary


def test_an_inconclusive_comparison_is_repeated_with_twice_the_budget(history):
    commit(history, "a")
    lines = []
    # In a second there is one pair, in four a few, whose spread is above such a tolerance.
    options = CompareOptions(("small",), Setting(input_size=16), 1, 2, tolerance=0.001)
    found = bisect("good", "HEAD", options, progress=lines.append)
    assert found.verdict in ("inconclusive", "nothing")
    assert found.trials[0].budget_seconds == 2**MAX_DOUBLINGS
    assert sum(line == "counting" for line in lines) == MAX_DOUBLINGS + 1


def test_commits_of_a_merged_branch_are_searched_on_request(history):
    commit(history, "a")
    history.git("checkout", "-q", "-b", "topic")
    commit(history, "topic 1")
    widen(history)
    inside = commit(history, "one more channel, on the branch")
    history.git("checkout", "-q", "main")
    history.write("other.txt", "main goes on")
    history.commit("main goes on")
    history.git("merge", "-q", "--no-ff", "-m", "merge topic", "topic")
    merge = history.git("rev-parse", "HEAD")
    commit(history, "b")
    assert [each.sha for each in bisect("good", "HEAD", COUNTS).suspects] == [merge]
    assert [each.sha for each in bisect("good", "HEAD", COUNTS, history="ancestry-path").suspects] == [inside]


def command(*arguments):
    return [sys.executable, "-P", "-m", "zoobench", "bisect", *arguments]


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120", "OMP_NUM_THREADS": "1"}


def test_the_command_names_the_commit(history, zoobench_here):
    commit(history, "a")
    widen(history)
    commit(history, "one more channel")
    done = zoobench_here("bisect", "good", "--models", "small", "--exact")
    assert done.returncode == 0, done.stderr
    assert "The first bad commit is" in done.stdout
    assert "one more channel" in done.stdout
    assert "params" in done.stdout
    assert "Traceback" not in done.stderr
    assert zoobench_here("bisect", "HEAD", "good").returncode == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_search_leaves_nothing(history, number, tmp_path):
    commit(history, "a", "b")
    folder = tmp_path / "temporary"
    folder.mkdir()
    process = subprocess.Popen(
        command("good", "--models", "small", "--budget", "600"),
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment() | {"TMPDIR": str(folder)},
    )  # fmt: skip
    for line in process.stderr:
        if line.startswith("round 1"):
            break
    assert list(folder.glob(f"{PREFIX}*"))
    process.send_signal(number)
    process.stderr.read()
    assert process.wait(timeout=60) in (130, 143)
    assert list(folder.glob(f"{PREFIX}*")) == []
    assert history.worktrees() == [str(history.path)]
