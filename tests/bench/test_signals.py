"""What ends a command does so once, with everything cleaned up."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import os, signal
from bench.signals import ended_by_signals
me = os.getpid()
{before}
with ended_by_signals():
    try:
        {inside}
    finally:
        {cleaning}
        print("cleaned up")
print("goes on", signal.getsignal(signal.SIGHUP))
"""


def run(before="", inside="pass", cleaning="pass"):
    code = SCRIPT.format(before=before, inside=inside, cleaning=cleaning)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_unwinds_the_stack_and_a_second_one_does_not_interrupt_that(name, status):
    again = "os.kill(me, signal.SIGTERM); os.kill(me, signal.SIGHUP)"
    done = run(inside=f"os.kill(me, signal.{name})", cleaning=again)
    assert (done.returncode, done.stdout) == (status, "cleaned up\n"), done.stderr


def test_what_nohup_ignores_stays_ignored():
    done = run(before="signal.signal(signal.SIGHUP, signal.SIG_IGN)", inside="os.kill(me, signal.SIGHUP)")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "cleaned up\ngoes on 1\n"
