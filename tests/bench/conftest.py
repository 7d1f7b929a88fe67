"""One server for the runs of all tests in a process: importing torch takes seconds."""

import contextlib
import os

import pytest

from bench.runs.executors import LocalExecutor


class KeptServer(LocalExecutor):
    """Keeps its server from plan to plan, as long as the environment is the same."""

    def __init__(self) -> None:
        super().__init__()
        self._environment: dict[str, str] = {}

    def _server_with(self, settings):
        now = {name: value for name, value in os.environ.items() if name not in ("PYTEST_CURRENT_TEST", "COLUMNS")}
        if now != self._environment:
            self._end_server()
        self._environment = now
        return super()._server_with(settings)


@pytest.fixture(scope="session", autouse=True)
def _one_fork_server():
    with KeptServer() as executor, pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.runs.runner.LocalExecutor", lambda: contextlib.nullcontext(executor))
        yield
