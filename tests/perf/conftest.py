"""Speed is reported as a ratio of two things measured side by side; no test here has a threshold on time."""

import pytest

from bench.device import keep_allocator_pages
from bench.machine import describe_machine

keep_allocator_pages()


@pytest.hookimpl
def pytest_benchmark_update_machine_info(config, machine_info):
    """Say what machine it was, not what it is called."""
    machine_info.clear()
    machine_info.update(describe_machine("cpu"))
