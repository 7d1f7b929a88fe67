"""What counts as a disturbance of a process that may use a part of the machine."""

import json
import os
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from bench import disturbance
from bench.disturbance import CpuUse, available_seconds, cgroup_quota, foreign_seconds

Times = namedtuple("Times", ["user", "system", "idle", "iowait", "steal", "guest", "guest_nice"])


def moment(seconds, busy, cores, quota, own=0.0):
    return CpuUse(seconds=seconds, busy=busy, own=own, steal=0.0, throttled=0, cores=cores, quota=quota)


@pytest.mark.parametrize(
    ("busy", "quota", "foreign"),
    [
        (12.0, 4.0, 2.0),  # ten seconds of ours and two of others, on four cores that are all ours
        (12.0, 2.5, 0.0),  # a container limited to 2.5 of the four leaves them 1.5 for ten seconds
        (30.0, 2.5, 5.0),
    ],
)
def test_others_may_have_what_a_container_may_not_use(busy, quota, foreign):
    before, after = moment(0.0, 0.0, 4, quota), moment(10.0, busy, 4, quota, own=10.0)
    assert foreign_seconds(before, after) == pytest.approx(foreign)
    assert foreign_seconds(before, after, own_seconds=foreign) == 0
    assert available_seconds(before, after) == 10 * quota


@pytest.mark.parametrize(
    ("busy_core", "foreign"), [(1, 2.0), (0, 0.0)], ids=["on the core that we may use", "on another core"]
)
def test_only_the_cores_that_we_may_use_count(monkeypatch, busy_core, foreign):
    """Two seconds in which one of two cores is busy with others; the process is pinned to core 1."""
    monkeypatch.setattr(disturbance, "usable_cores", lambda: (1,))
    monkeypatch.setattr(disturbance, "cgroup_quota", lambda: float("inf"))
    monkeypatch.setattr(disturbance, "_online", lambda: [0, 1])
    clock = iter((100.0, 102.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    idle = Times(5.0, 1.0, 50.0, 1.0, 0.0, 0.0, 0.0)
    later = [idle._replace(idle=52.0), idle._replace(idle=52.0)]
    later[busy_core] = idle._replace(user=7.0)
    counters = iter(([idle, idle], later))
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: next(counters))
    before, after = CpuUse.now(), CpuUse.now()
    assert available_seconds(before, after) == 2.0
    assert foreign_seconds(before, after) == foreign


def test_cores_that_are_offline_do_not_shift_the_others(monkeypatch):
    monkeypatch.setattr(disturbance, "_online", lambda: [0, 2, 3])
    assert disturbance._positions((2, 3), 3) == [1, 2]


def test_guest_time_is_not_counted_twice_and_stolen_time_is_not_ours():
    assert disturbance._busy(Times(10.0, 2.0, 50.0, 3.0, 4.0, 5.0, 1.0)) == 12.0


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/pod/one\n", {"pod/one/cpu.max": "max 100000", "pod/cpu.max": "250000 100000"}, 2.5),
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/\n", {}, float("inf")),
        (
            "5:memory:/x\n4:cpu,cpuacct:/docker/1\n",
            {"cpu/docker/1/cpu.cfs_quota_us": "50000", "cpu/docker/1/cpu.cfs_period_us": "100000"},
            0.5,
        ),
        ("4:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, float("inf")),
        (None, {}, float("inf")),
    ],
)
def test_the_limit_of_a_container(tmp_path, membership, files, quota):
    if membership is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(membership)
    for name, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    assert cgroup_quota(tmp_path) == quota


WATCH = """
import json, os, subprocess, sys, time
import psutil
from bench.disturbance import CpuUse, foreign_seconds

ours, busy = int(sys.argv[1]), int(sys.argv[2])
os.sched_setaffinity(0, {ours})
load = subprocess.Popen([sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{busy}}})\\nwhile True: pass"])
try:
    process = psutil.Process(load.pid)
    while process.cpu_times().user < 0.1:
        pass
    before, took = CpuUse.now(), process.cpu_times()
    while CpuUse.now().seconds < before.seconds + 2:
        pass
    after, now = CpuUse.now(), process.cpu_times()
finally:
    load.kill()
    load.wait()
print(json.dumps({"foreign": foreign_seconds(before, after), "load": now.user + now.system - took.user - took.system,
                  "seconds": after.seconds - before.seconds, "cores": after.cores, "busy": after.busy - before.busy}))
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="processes cannot be pinned on this system")
def test_a_pinned_process_sees_the_load_on_its_core_and_no_other():
    """By the system's own counters; whatever else this machine does at the time is in them on either core."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("there is one core only")
    ours, other = cores[:2]

    def watch(busy):
        command = [sys.executable, "-c", WATCH, str(ours), str(busy)]
        process = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(disturbance.__file__).parent.parent
        )
        return json.loads(process.stdout)

    tick = 0.05
    here, there = watch(ours), watch(other)
    assert here["cores"] == there["cores"] == 1
    assert here["load"] > 0
    assert here["foreign"] > here["load"] - tick  # it took that time from us
    for watched in (here, there):  # of one core there is no more than the wall clock: the other core's is left out
        assert watched["busy"] < watched["seconds"] + tick
