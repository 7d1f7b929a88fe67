"""Training with real gradients on the meta device, in a process of its own.

In one process with what fake tensors have left behind, torch 2.14 has crashed in an operator of the meta device (a
segmentation fault in ``clamp``); alone it has not.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("backward_cases.py")
ROOT = CASES.parents[2]


@pytest.mark.timeout(900)
def test_training_is_rehearsed_with_real_gradients_and_no_values():
    command = [sys.executable, "-m", "pytest", str(CASES), "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "16 passed" in done.stdout
