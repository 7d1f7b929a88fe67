"""One server for the runs of all tests in a process: importing torch takes seconds."""

import contextlib
import os

import pytest

import bench.runs.parallel_executor  # binds the real class, as the next one does, before it is replaced below
import bench.runs.ray_executor  # noqa: F401
from bench.runs.executors import LocalExecutor

NO_MATTER = ("PYTEST_CURRENT_TEST", "COLUMNS", "KINETO_LOG_LEVEL", "CUBLAS_WORKSPACE_CONFIG")
"""What pytest, or a command in this process, sets, and what is served on a CPU does not depend on."""


class KeptServer(LocalExecutor):
    """Keeps its server from plan to plan, as long as the environment is the same."""

    def __init__(self) -> None:
        super().__init__()
        self._environment: dict[str, str] = {}

    def _server_with(self, settings):
        now = {k: v for k, v in os.environ.items() if k not in NO_MATTER and not k.endswith("_NUM_THREADS")} | settings
        if now != self._environment:
            self._end_server()
        self._environment = now
        return super()._server_with(settings)


@pytest.fixture(scope="session", autouse=True)
def _one_fork_server():
    with KeptServer() as executor, pytest.MonkeyPatch.context() as patch:

        def kept(nodes=1, rendezvous=""):
            return contextlib.nullcontext(executor) if nodes == 1 else LocalExecutor(nodes=nodes, rendezvous=rendezvous)

        for module in ("runner", "executors"):  # the command line imports it when it is called
            patch.setattr(f"bench.runs.{module}.LocalExecutor", kept)
        yield
