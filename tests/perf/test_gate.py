"""The gate against a slowdown that the exact gates let pass: needless copies, committed to a clone of this one."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE = "zoo/architectures/simple_cnn.py"
BEFORE = "x = self.pool(self.stages(x))"
NEEDLESS = """for stage in self.stages:
            x = stage(x)
            for _ in range(4):
                x = x.transpose(2, 3).contiguous()"""
AFTER = f"{NEEDLESS}\n        x = self.pool(x)"


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=perf", "-c", "user.email=perf@example.org", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_a_needless_copy_is_found_by_timing(tmp_path):
    """A quiet machine calls it regressed; one that others keep busy may leave it open, but calls it nothing else."""
    subprocess.run(["git", "clone", "-q", "--local", str(ROOT), str(tmp_path / "clone")], check=True)
    clone = tmp_path / "clone"
    source = (clone / FILE).read_text()
    assert BEFORE in source
    (clone / FILE).write_text(source.replace(BEFORE, AFTER))
    git(clone, "commit", "-qam", "copies that nobody needs")
    command = [sys.executable, "-P", "-m", "zoobench", "compare", "git:HEAD~1", "git:HEAD"]
    options = ["--models", "simple_cnn,lenet5", "--json"]
    done = subprocess.run([*command, *options], cwd=clone, capture_output=True, text=True)
    results = {result["model"]: result for result in json.loads(done.stdout)["results"]}
    for result in results.values():
        print(
            {
                key: result.get(key)
                for key in ("model", "status", "change", "low", "high", "seconds", "disturbed_blocks")
            }
        )
    copying, untouched = results["simple_cnn"], results["lenet5"]
    assert copying["differences"] == []
    assert copying["change"] > 0
    quiet = 2 * copying["disturbed_blocks"] < copying["blocks"]
    assert copying["status"] == "regressed" or (copying["status"] == "inconclusive" and not quiet)
    assert untouched["status"] in ("unchanged", "inconclusive")
    assert done.returncode == (10 if copying["status"] == "regressed" else 0)
    assert len(git(clone, "worktree", "list").splitlines()) == 1
