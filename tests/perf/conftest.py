"""Speed is told as a ratio of two things measured side by side; nothing here passes or fails by the clock."""

import pytest

from bench.environment import describe_machine, keep_allocator_pages

keep_allocator_pages()


@pytest.hookimpl
def pytest_benchmark_update_machine_info(config, machine_info):
    """Say what machine it was, not what it is called."""
    machine_info.clear()
    machine_info.update(describe_machine("cpu"))
