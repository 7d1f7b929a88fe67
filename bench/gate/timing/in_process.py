"""Workers inside this process, for networks that only this process can build: those of somebody's test.

Every pair builds its networks anew, in either order and with another layout in memory, as fresh processes do. What this
cannot average out is what is particular to the process itself; that is part of what sessions may differ by
(`bench.gate.statistics.sessions`).
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from bench.device import allocator, keep_allocator_pages
from bench.gate.timing.pair import Host, WorkerPair
from bench.gate.timing.process import WorkerError
from bench.gate.timing.subject import Setting
from bench.gate.timing.worker import Commands

if TYPE_CHECKING:
    from torch import nn

Build = Callable[[], "nn.Module"]


class LocalWorker(Commands):
    """A worker that is no process of its own, and builds its networks by functions of this one.

    ``networks`` has these functions, each with its network's exact counts, by what subjects have as ``model``.
    """

    def __init__(self, networks: Mapping[str, tuple[Build, Mapping[str, Any]]]) -> None:
        super().__init__()
        self._networks = networks
        self.environment: dict[str, Any] = {}

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """See `bench.gate.timing.process.Worker`."""
        try:
            answer: dict[str, Any] = getattr(self, command)(**arguments)
        except Exception as error:
            bases = [base.__name__ for base in type(error).__mro__]
            raise WorkerError(f"{type(error).__name__}: {error}", bases) from error
        return answer

    def resolve(self, root: str | None, patterns: list[str]) -> dict[str, Any]:
        """As the worker's."""
        unknown = {name: f"no network is named {name!r}" for name in patterns if name not in self._networks}
        return {"names": {name: [name] for name in patterns if name not in unknown}, "unknown": unknown}

    def count(self, subject: dict[str, Any]) -> dict[str, Any]:
        """The counts that the network came with."""
        return dict(self._networks[subject["model"]][1])

    def _create_network(self, zoo: Any, subject: dict[str, Any]) -> Any:
        return self._networks[subject["model"]][0]()


@contextlib.contextmanager
def in_process(networks: Mapping[str, tuple[Build, Mapping[str, Any]]], setting: Setting) -> Iterator[Host]:
    """Inside, this process is set up as a worker of ``networks`` (see `LocalWorker`); afterwards it is as it was.

    One thing cannot be taken back: as in a worker, glibc keeps the memory that tensors free. Returned to the system and
    faulted in again at every step, it makes a step up to half as slow again in some builds and not in others.
    """
    import torch

    before, collecting, flushing = torch.get_num_threads(), gc.isenabled(), _flushes_denormals()
    chosen_by_trial = torch.backends.cudnn.benchmark
    keep_allocator_pages()
    gc.freeze()  # collections between pairs need not walk all that the process has imported
    worker = LocalWorker(networks)
    try:
        with torch.random.fork_rng(devices=[setting.device] if setting.device.startswith("cuda") else []):
            worker.environment = worker.start(setting.device, setting.threads)
            worker.environment |= {"process": "the tests'", "allocator": allocator()}
            workers = {sys.executable: worker}

            def open_pair(interpreters: Sequence[str], setting: Setting) -> AbstractContextManager[WorkerPair]:
                return contextlib.nullcontext(WorkerPair(workers, setting, in_process=True))

            yield Host(
                lambda interpreters, setting: contextlib.nullcontext(workers),
                lambda subjects: contextlib.nullcontext(open_pair),
            )
    finally:
        worker.drop()
        torch.set_num_threads(before)
        torch.set_flush_denormal(flushing)
        torch.backends.cudnn.benchmark = chosen_by_trial
        gc.unfreeze()
        if collecting:
            gc.enable()


def _flushes_denormals() -> bool:
    import torch

    return float(torch.tensor(1e-40) * 1.0) == 0.0
