"""A duet inside this process, for networks that only this process can build: those of somebody's test.

Every pair of a round builds its networks anew, in either order and at another place in memory, as fresh processes do.
What it cannot average out is the luck of the process itself; that is part of what a session may differ by
(`bench.measure.relative`).
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.environment import keep_allocator_pages
from bench.measure.duet import Duet, Setting, WorkerError
from bench.measure.duet_worker import Worker

if TYPE_CHECKING:
    from torch import nn

Build = Callable[[], "nn.Module"]


class LocalWorker(Worker):
    """A worker that is no process of its own, and builds its networks by functions of this one."""

    def __init__(self, builders: Mapping[str, Build]) -> None:
        super().__init__()
        self._builders = builders

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The answer to a command. Raises `WorkerError` from what went wrong."""
        try:
            answer: dict[str, Any] = getattr(self, command)(**arguments)
        except Exception as error:
            bases = [base.__name__ for base in type(error).__mro__]
            raise WorkerError(f"{type(error).__name__}: {error}", bases) from error
        return answer

    def close(self) -> None:
        """Free all lanes."""
        self.drop()

    def _create_network(self, zoo: Any, lane: dict[str, Any]) -> Any:
        return self._builders[lane["model"]]()


class LocalDuet(Duet):
    """Lanes of this process; each build is a fresh one."""

    inside = True

    def __init__(self, worker: LocalWorker, setting: Setting) -> None:
        self.setting = setting
        self.start_seconds = self.next_start_seconds = 0.0
        self._workers = {sys.executable: worker}


@contextlib.contextmanager
def local_worker(
    builders: Mapping[str, Build], device: str, threads: int
) -> Iterator[tuple[LocalWorker, dict[str, Any]]]:
    """Inside, this process is set up as a worker: a worker and its environment. Afterwards it is as it was.

    But for one thing that cannot be taken back: as in a worker, glibc keeps the memory that tensors free. Given back to
    the system and faulted in again at every step, it makes a step up to half as slow again in some builds and not in
    others.

    Args:
        builders: of the networks, by the names that lanes have as ``model``.
        device: of all lanes.
        threads: of torch, as long as it lasts.
    """
    import torch

    before, collecting, flushing = torch.get_num_threads(), gc.isenabled(), _flushes_denormals()
    keep_allocator_pages()
    gc.freeze()  # collections between pairs need not walk all that the process has imported
    worker = LocalWorker(builders)
    try:
        with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
            yield worker, worker.start(device, threads)
    finally:
        worker.close()
        torch.set_num_threads(before)
        torch.set_flush_denormal(flushing)
        gc.unfreeze()
        if collecting:
            gc.enable()


def duet_opener(worker: LocalWorker) -> Callable[[Sequence[str], Setting], Duet]:
    """What `bench.measure.rounds.measure_rounds` opens its duets by."""
    return lambda interpreters, setting: LocalDuet(worker, setting)


def _flushes_denormals() -> bool:
    import torch

    return float(torch.tensor(1e-40) * 1.0) == 0.0
