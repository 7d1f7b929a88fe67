"""Shards: every run of a plan belongs to exactly one, for any number, on any machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.cli.app import main
from bench.config import Budget, load_plan
from bench.errors import ConfigError
from bench.records import plan_folders, read_records
from bench.runs.resolve import resolve_plan
from bench.runs.runner import run_plan
from bench.runs.shards import Shard, choose_shard, expected_seconds, parse_shard, partition
from reports.data.loading import load_runs

CAMPAIGN = Path(__file__).parents[2] / "perf" / "shard_campaign.py"
FAST = {
    "recipe": "quick",
    "measure": {"seconds": 0.1, "batch_size": 2, "probes": False},
    "limit_train": 60,
    "limit_test": 20,
}
COSTS = st.lists(st.floats(min_value=0, max_value=1e9), max_size=60)


def plan(*models, **overrides):
    return load_plan("quick", FAST | {"models": list(models), "budget": {"epochs": 1}, "threads": 1} | overrides)


@given(costs=COSTS, count=st.integers(1, 70))
def test_each_run_is_in_exactly_one_part(costs, count):
    parts = partition(costs, count)
    assert len(parts) == count
    assert sorted(position for part in parts for position in part) == list(range(len(costs)))
    assert all(part == sorted(part) for part in parts)
    assert parts == partition(list(costs), count)


@given(costs=COSTS.filter(len), count=st.integers(1, 10))
def test_no_part_costs_more_than_four_thirds_of_the_best_possible_one(costs, count):
    heaviest = max(sum(costs[position] for position in part) for part in partition(costs, count))
    ordered = sorted(costs, reverse=True)
    least = max(sum(costs) / count, ordered[0], ordered[count - 1] + ordered[count] if len(costs) > count else 0)
    assert heaviest <= 4 / 3 * least * (1 + 1e-9) + 1e-9 or heaviest <= sum(costs) / count + ordered[count - 1] * (
        1 + 1e-9
    )


@given(runs=st.integers(1, 40), count=st.integers(1, 12))
def test_equal_runs_are_dealt_out_evenly(runs, count):
    sizes = [len(part) for part in partition([0.0] * runs, count)]
    assert max(sizes) - min(sizes) <= 1


def test_a_large_network_has_its_shard_and_the_small_ones_share_the_other():
    wanted = plan("lenet5", "simple_cnn", "vgg16", limit_train=None, budget={"epochs": 50})
    runs = resolve_plan(wanted, data_dir=None)
    shards = [choose_shard(runs, Shard(number, 2), None) for number in (1, 2)]
    assert sorted(sorted(run.model for run in shard) for shard in shards) == [["lenet5", "simple_cnn"], ["vgg16"]]


def test_the_expected_cost_follows_the_budget():
    run = resolve_plan(plan("lenet5"), data_dir=None)[0]
    base = expected_seconds(run, 0, 0)
    of = {
        name: run.model_copy(update={"budget": Budget(**{name: value})})
        for name, value in (("seconds", 30.0), ("macs", 2e12))
    }
    assert expected_seconds(of["seconds"], 10**9, 10**6) == pytest.approx(base + 30)
    assert expected_seconds(of["macs"], 0, 0) > base
    assert expected_seconds(run, 2 * 10**9, 100) - base == pytest.approx(2 * (expected_seconds(run, 10**9, 100) - base))


@pytest.mark.parametrize(
    "text", ["0/4", "5/4", "1/0", "1", "a/b", "1/4/2", "-1/4", "", "1/99999999999999999999", "¹/²"]
)
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(ConfigError, match="--shard 2/4"):
        parse_shard(text)


def test_shards_in_one_folder_and_in_several_make_the_whole_plan(tmp_path, capsys):
    wanted = plan("lenet5", "simple_cnn", seeds=[0, 1])
    runs = {run.run_id for run in resolve_plan(wanted, data_dir=None)}
    folders = [str(tmp_path / name) for name in ("a", "b")]
    for number, folder in enumerate(folders, 1):
        outcome = run_plan(wanted, folder, shard=Shard(number, 2))
        assert len(outcome.records) == 2
        assert outcome.left == []
    assert {record.run_id for folder in folders for record in read_records(folder)[0]} == runs
    assert set(load_runs(folders).run_id) == runs
    # A shard skips what lies there of its own, and leaves alone what is another's.
    assert run_plan(wanted, folders[0], shard=Shard(1, 2)).skipped == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["zoobench", "report", "--results", folders[0], "--results", folders[1]])
        with pytest.raises(SystemExit, match="0"):
            main()
    assert "index.html" in capsys.readouterr().out
    page = (tmp_path / "a" / "report" / "index.html").read_text()
    assert "lenet5" in page
    assert "simple_cnn" in page
    assert plan_folders(tmp_path) == sorted(folders)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the campaign forks")
def test_shards_that_are_killed_again_and_again_lose_damage_and_double_nothing(tmp_path):
    command = [sys.executable, "-W", "ignore", str(CAMPAIGN), "--runs", "6", "--kills", "8"]
    done = subprocess.run([*command, "--out", str(tmp_path / "found.json")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["kills"] > 0
    assert sum(found["runs_by_attempts"].values()) == found["alone"] == 6
    for fault in ("lost", "damaged", "doubled", "different", "unplanned", "failed", "not_in_one_shard"):
        assert found[fault] == 0, fault
