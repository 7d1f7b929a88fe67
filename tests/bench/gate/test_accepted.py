"""Known changes: what they excuse, for how long, and what is said of them."""

import json
from datetime import date

import pytest

from bench.errors import ConfigError
from bench.gate.accepted import accept, load_accepted
from bench.gate.exact import Difference
from bench.gate.memory import Memory
from bench.gate.result import CompareOptions, Comparison, ModelResult
from bench.gate.revisions import Side
from bench.gate.statistics.verdicts import Judgement, Verdict
from bench.gate.summary import comparison_to_dict, remarks, render_markdown

TODAY = date(2026, 6, 15)
SLOWER = Judgement(Verdict.REGRESSED, 0.092, 0.0801, 0.1033, 0.002, 0.012, None, "slower for a reason")


def comparison(*results):
    return Comparison(Side("git:a"), Side("git:b"), CompareOptions(), ({}, {}), (), results)


def regressed(model="small"):
    return ModelResult(model, "regressed", judgement=SLOWER)


def entries(tmp_path, *tables):
    """What a file of these tables holds; what a table lacks is that of an entry which accepts a slower `small`."""
    file = tmp_path / "accepted.toml"
    default = {"model": '"small"', "metric": '"speed"', "commit": '"0123456789"', "reason": '"more accurate"'}
    default |= {"expires": "2026-06-15"}
    lines = [
        f"{key} = {value}" for table in tables for key, value in {"[[accepted]]\n": None, **default, **table}.items()
    ]
    file.write_text("\n".join(lines).replace("[[accepted]]\n = None", "[[accepted]]"))
    return load_accepted(file)


def accepted(found, known, today=TODAY, foreign=None):
    return accept(found, known, today, lambda commit: foreign)


def test_an_accepted_slowdown_fails_nothing_and_is_shown_with_its_reason(tmp_path):
    result = accepted(comparison(regressed(), regressed("wide")), entries(tmp_path, {"model": '"sm*"'}))
    assert result.failures() == ["regressed"]  # the other
    assert result.exit_code() == 10
    alone = accepted(comparison(regressed()), entries(tmp_path, {}))
    assert alone.exit_code() == 0
    why = "speed is accepted until 2026-06-15 (0123456789: more accurate)"
    assert f"small: {why}" in remarks(alone)
    assert "| `small` | regressed, accepted | +9.2% |" in render_markdown(alone)
    assert comparison_to_dict(alone)["results"][0]["accepted"] == {"regressed": why}
    assert alone.results[0].status == "regressed"


def test_the_day_after_it_fails_in_its_own_words(tmp_path):
    result = accepted(comparison(regressed()), entries(tmp_path, {}), date(2026, 6, 16))
    assert result.exit_code() == 10
    (said,) = (line for line in remarks(result) if "accepted" in line)
    assert said.startswith("small: speed was accepted until 2026-06-15 (0123456789: more accurate), which has passed")
    renewed = accepted(comparison(regressed()), entries(tmp_path, {}, {"expires": "2027-01-01"}), date(2026, 6, 16))
    assert renewed.exit_code() == 0


def test_what_matches_nothing_is_warned_about(tmp_path):
    known = entries(tmp_path, {"model": '"other"'}, {"metric": '"memory"'}, {"at_most": "0.09"})
    result = accepted(comparison(regressed()), known)
    assert result.exit_code() == 10
    warned = [line for line in remarks(result) if line.startswith("Warning")]
    assert [line.split(" matches")[0].removeprefix("Warning: the accepted change ") for line in warned] == [
        "speed of other by 0123456789",
        "memory of small by 0123456789",
        "speed of small by 0123456789",
    ]
    within = accepted(comparison(regressed()), entries(tmp_path, {"at_most": "0.1"}))
    assert within.exit_code() == 0
    foreign = accepted(comparison(regressed()), entries(tmp_path, {}), foreign="git:b does not have the commit")
    assert foreign.exit_code() == 10
    assert "matches nothing: git:b does not have the commit" in " ".join(remarks(foreign))


def test_every_count_that_changed_has_to_be_accepted(tmp_path):
    differences = (
        Difference("", "params", 10, 12), Difference("", "macs", 5, 6), Difference("fc", "params", 1, 3),
        Difference("", "operator 3 of 9", None, "aten.relu"),
    )  # fmt: skip
    changed = ModelResult("small", "changed", "the model itself changed", differences)
    some = entries(tmp_path, {"metric": '"params"'}, {"metric": '"macs"'})
    assert accepted(comparison(changed), some).exit_code() == 15
    every = entries(tmp_path, {"metric": '"params"'}, {"metric": '"macs"'}, {"metric": '"operators"'})
    assert accepted(comparison(changed), every).exit_code() == 0
    assert accepted(comparison(changed), entries(tmp_path, {"metric": '"counts"'})).exit_code() == 0


def test_one_failure_of_a_model_excuses_no_other(tmp_path):
    both = ModelResult("small", "regressed", judgement=SLOWER, memory=Memory(100, 200))
    assert accepted(comparison(both), entries(tmp_path, {})).failures() == ["memory"]
    both_known = entries(tmp_path, {}, {"metric": '"memory"'})
    assert accepted(comparison(both), both_known).failures() == []
    gone = comparison(ModelResult("small", "missing"), ModelResult("came", "new"), ModelResult("broken", "failed"))
    known = entries(tmp_path, {"metric": '"missing"'}, {"model": '"*"', "metric": '"new"'})
    assert accepted(gone, known).failures() == ["nothing"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[[acepted]]\nmodel = 1", "Did you mean 'accepted'?"),
        ("[accepted]\nmodel = 1", r"\[\[accepted\]\]"),
        ("[[accepted]]\nmodel = ", "not valid TOML"),
        ('[[accepted]]\nmodel = "a"\nmetric = "sped"', "entry 1: metric = 'sped'.*Did you mean 'speed'"),
        ('[[accepted]]\nmodel = "a"\nreson = "b"', "no key is named 'reson'. Did you mean 'reason'"),
        ('[[accepted]]\nmodel = "a"', "the key 'expires' is missing"),
        ('[[accepted]]\ncommit = "main"', "commit = 'main' is not possible"),
        (None, "No such file"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_words(tmp_path, text, shown):
    if text is not None:
        (tmp_path / "known.toml").write_text(text)
    with pytest.raises(ConfigError, match=shown):
        load_accepted(tmp_path / "known.toml")


def test_an_entry_holds_for_the_comparison_that_crosses_its_commit(repository, tmp_path, zoobench_here, monkeypatch):
    """By the command, in a repository: accepted across the commit, foreign before it, and told from a shorter range."""
    monkeypatch.chdir(repository.path)
    repository.replace("zoo/__init__.py", '"small": 8', '"small": 9')
    repository.commit("small is larger")
    commit = repository.git("rev-parse", "HEAD")
    repository.write("notes.md", "more")
    repository.commit("notes")
    entries(tmp_path, {"metric": '"counts"', "commit": f'"{commit[:10]}"', "expires": "2999-01-01"})
    options = ["--models", "small", "--accept", tmp_path / "accepted.toml", "--json"]
    done = zoobench_here("compare", "git:HEAD~2", "git:HEAD", *options)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    assert result["status"] == "changed"
    assert "more accurate" in result["accepted"]["changed"]
    repository.replace("zoo/__init__.py", '"small": 9', '"small": 10')
    done = zoobench_here("compare", "git:HEAD", ".", *options)
    assert done.returncode == 15
    assert "git:HEAD has the commit already" in done.stdout
