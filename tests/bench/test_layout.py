"""Where a plan's results are: in folders of their own, and in those of the earlier layout."""

import subprocess
from pathlib import Path

import fsspec
import pytest

from bench.records import (
    RunRecord,
    find_stored,
    list_stored,
    own_or_inner_plans,
    plan_folders,
    plan_name,
    read_records,
    save_record,
    stored_path,
    write_atomically,
)

ROOT = Path(__file__).parents[2]


def record(run_id):
    return RunRecord(run_id=run_id, status="completed", config={}, environment={})


@pytest.fixture(params=["folder", "memory"])
def root(request, tmp_path):
    return str(tmp_path) if request.param == "folder" else f"memory://{tmp_path.name}"


def test_each_plan_has_a_folder_and_records_are_alone_in_runs(root):
    for plan, run_id in (("quick", "a-s0-1"), ("my plan", "b-s0-2"), ("quick", "c-s0-3")):
        save_record(record(run_id), f"{root}/{plan}")
        write_atomically(stored_path(f"{root}/{plan}", "cards", run_id), "{}")
        write_atomically(stored_path(f"{root}/{plan}", "probes", run_id), b"arrays")
    write_atomically(f"{root}/notes/readme.txt", "no plan")
    assert plan_folders(root) == own_or_inner_plans(root) == [f"{root}/my plan", f"{root}/quick"]
    assert plan_folders(f"{root}/quick") == own_or_inner_plans(f"{root}/quick/") == [f"{root}/quick"]
    assert [plan_name(folder) for folder in plan_folders(root)] == ["my plan", "quick"]
    fs, folder = fsspec.url_to_fs(f"{root}/quick/runs")
    assert sorted(name.rpartition("/")[2] for name in fs.ls(folder, detail=False)) == ["a-s0-1.json", "c-s0-3.json"]
    assert list_stored(f"{root}/quick", "cards") == list_stored(f"{root}/quick", "probes") == {"a-s0-1", "c-s0-3"}
    assert find_stored(f"{root}/quick", "probes", "a-s0-1") == stored_path(f"{root}/quick", "probes", "a-s0-1")
    assert find_stored(f"{root}/quick", "cards", "b-s0-2") is None
    assert plan_folders(f"{root}/nothing") == []


def test_a_folder_of_the_earlier_layout_is_read(root):
    save_record(record("a-s0-1"), root)
    write_atomically(f"{root}/runs/a-s0-1.card.json", "{}")
    write_atomically(f"{root}/runs/a-s0-1.probes.npz", b"arrays")
    save_record(record("b-s0-2"), f"{root}/ablation")
    assert read_records(root) == ([record("a-s0-1")], [])
    assert plan_folders(root) == [root, f"{root}/ablation"]
    assert own_or_inner_plans(root) == [root]
    for kind in ("cards", "probes"):
        assert list_stored(root, kind) == {"a-s0-1"}
        assert find_stored(root, kind, "a-s0-1").startswith(f"{root}/runs/a-s0-1.")
        write_atomically(stored_path(root, kind, "a-s0-1"), b"newer")
        assert find_stored(root, kind, "a-s0-1") == stored_path(root, kind, "a-s0-1")


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the repository")
@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("results/quick/runs/lenet5-s0-000000000000.json", True),
        ("results/smoke/report/index.html", True),
        ("results/baselines/all.json", True),
        ("results/index.html", True),
        ("results/cifar10_30s/checkpoints/lenet5-s0-000000000000/state.pt", True),
        ("results/cifar10_30s/live.json", True),
        ("results/cifar10_30s/runs/lenet5-s0-000000000000.json", False),
        ("results/cifar10_30s/report/index.html", False),
        ("results/gate.jsonl", False),
    ],
)
def test_git_keeps_the_published_plans_and_ignores_what_runs_leave(path, ignored):
    done = subprocess.run(["git", "-C", str(ROOT), "check-ignore", "-q", "--no-index", path], check=False)
    assert (done.returncode == 0) == ignored
