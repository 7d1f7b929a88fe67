import copy
import subprocess
import sys

import psutil
import pytest
import torch

from bench import machine
from bench.machine import COMPARED, describe_environment, incomparable


def test_an_environment_is_comparable_with_itself_and_with_an_older_one():
    here = describe_environment("cpu", 2)
    assert incomparable(here, copy.deepcopy(here)) == ()
    older = {"machine": {"cpu": here["machine"]["cpu"]}, "threads": 2}
    assert incomparable(older, here) == incomparable(here, older) == ()
    assert incomparable({}, {"machine": None}) == ()


@pytest.mark.parametrize("name", [name for name in COMPARED if not name.startswith("machine.")])
def test_each_fact_that_differs_is_named(name):
    here = describe_environment("cpu", 2) | {"process": "its own"}
    there = copy.deepcopy(here)
    *tables, key = name.split(".")
    table = there[tables[0]] if tables else there
    assert key in table
    before, table[key] = table[key], "other"
    assert incomparable(here, there) == (f"{key} {before} → other",)


def test_memory_and_commit_make_no_difference():
    here = describe_environment("cpu", 2)
    there = copy.deepcopy(here) | {"git": {"commit": "abc", "dirty": True}}
    there["machine"]["memory_bytes"] = 1
    assert incomparable(here, there) == ()


def test_flags_are_those_of_the_moment(monkeypatch):
    before = describe_environment("cpu", 1)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    assert incomparable(before, describe_environment("cpu", 1)) == ("cudnn_benchmark False → True",)


def test_the_file_needs_nothing_of_ours_to_describe_a_process():
    """The gate loads it by its path, in interpreters that have only torch."""
    code = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("machine", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
found = module.describe_process("cpu", 1)
loaded = {name.partition(".")[0] for name in sys.modules}
loaded &= {"bench", "zoo", "reports", "zoobench", "psutil", "pydantic"}
assert not loaded, loaded
print(found["machine"]["memory_bytes"])
"""
    done = subprocess.run([sys.executable, "-P", "-c", code, machine.__file__], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == psutil.virtual_memory().total
