"""Runs steps of networks on demand: the program of the processes that `zoobench compare` keeps alive.

It is run by its path, by the interpreter of the side that it serves, and imports only the standard library, torch and
that side's `zoo`: an old revision, or another environment, need not know this program. Commands come as lines of JSON
on stdin, answers go as lines of JSON to stdout. The commands are the methods of `Worker` that are named in `COMMANDS`.

Two revisions that run on one interpreter live in one process: each has its own `zoo` modules, which are put in place
while one of its networks is built or run.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, cast

COMMANDS = ("start", "resolve", "count", "prepare", "build", "run", "drop")
FORK_DIED = "ForkDied"
WARM_UP_SECONDS, WARM_UP_SECONDS_GPU = 0.03, 0.15
"""At the least. On a CPU the third step is within 2% of all that follow; a GPU's clock takes longer to rise."""
WARM_UP_AT_MOST_SECONDS = 1.0
STABLE_WITHIN = 0.05
COMPARED_PACKAGES = ("torch", "torchvision", "timm")


class Zoos:
    """The `zoo` packages of several source trees in one process, of which one is in place at a time.

    A root of None means the `zoo` that the interpreter has installed.
    """

    def __init__(self) -> None:
        self._modules: dict[str | None, dict[str, ModuleType]] = {}
        self._path = list(sys.path)
        self._root: str | None = None

    @contextlib.contextmanager
    def active(self, root: str | None) -> Iterator[ModuleType]:
        """Inside, ``import zoo`` means the one under ``root``."""
        if root != self._root:
            self._modules[self._root] = {name: module for name, module in sys.modules.items() if _of_zoo(name)}
            for name in self._modules[self._root]:
                del sys.modules[name]
            sys.modules.update(self._modules.get(root, {}))
            sys.path[:] = self._path if root is None else [root, *self._path]
            self._root = root
        zoo = importlib.import_module("zoo")
        found = Path(zoo.__file__ or "").parent.parent
        if root is not None and found.resolve() != Path(root).resolve():
            raise ImportError(f"no package zoo in {root}; the interpreter finds the one in {found}")
        yield zoo


def _of_zoo(name: str) -> bool:
    return name == "zoo" or name.startswith("zoo.")


class Worker:
    """What the commands do; one instance a process."""

    def __init__(self) -> None:
        self._zoos = Zoos()
        self._lanes: list[tuple[str | None, Callable[[], None]]] = []
        self._padding: list[bytearray] = []
        self._device: Any = None

    def start(self, device: str, threads: int) -> dict[str, Any]:
        """Import torch and set the process up; the answer is its environment. ``auto`` is the best device here."""
        import torch

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        torch.set_num_threads(threads)
        torch.set_flush_denormal(True)  # hundreds of steps on one batch drive gradients down to where the CPU crawls
        self._device = torch.device(device)
        torch.zeros(1, device=self._device)  # one that is not here fails now
        # A collection in the middle of a block would be that block's bad luck; `drop` collects.
        gc.disable()
        on_cuda = self._device.type == "cuda"
        return {
            "device": device,
            "processor": torch.cuda.get_device_name(self._device) if on_cuda else platform.machine(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            **{name: _version(name) for name in COMPARED_PACKAGES},
            "torch": torch.__version__,  # tells builds apart
            "cuda": torch.version.cuda if on_cuda else None,
        }

    def resolve(self, root: str | None, patterns: list[str]) -> dict[str, Any]:
        """The names that each pattern stands for; for a plain name that is unknown, what the zoo says of it."""
        with self._zoos.active(root) as zoo:
            registry = importlib.import_module("zoo.registry")
            names: dict[str, list[str]] = {}
            unknown: dict[str, str] = {}
            for pattern in patterns:
                if pattern == "@representative":
                    names[pattern] = list(registry.representative_models())
                elif any(sign in pattern for sign in "*?["):
                    names[pattern] = list(zoo.list_models(pattern))
                else:
                    try:
                        names[pattern] = [registry.model_info(pattern).name]
                    except registry.UnknownModelError as error:
                        names[pattern], unknown[pattern] = [], str(error)
        return {"names": names, "unknown": unknown}

    def count(
        self, root: str | None, complexity: str, model: str, options: dict[str, Any], shape: dict[str, int]
    ) -> dict[str, Any]:
        """The exact counts of a network, by the code in the file ``complexity``; nothing is computed."""
        import dataclasses

        import torch

        counting = sys.modules.get("zoobench_complexity") or _load("zoobench_complexity", complexity)
        with self._zoos.active(root) as zoo:
            with torch.device("meta"):
                network = zoo.create_model(model, **shape, **options)
            counted = counting.count_complexity(network, (3, shape["input_size"], shape["input_size"]))
        answer: dict[str, Any] = dataclasses.asdict(counted)
        return answer

    def prepare(self, root: str | None, model: str, options: dict[str, Any]) -> dict[str, Any]:
        """Import what a network needs, and compute nothing, so that a fork of this process finds it there."""
        import torch

        with self._zoos.active(root) as zoo, torch.device("meta"):
            network = zoo.create_model(model, **options)
            torch.optim.SGD(network.parameters(), lr=1e-3).zero_grad()
        # What is here already no fork will free: its collections need not walk it, which would copy all its pages.
        gc.collect()
        gc.freeze()
        return {}

    def build(self, lanes: list[dict[str, Any]], order: list[int], padding: list[int]) -> dict[str, Any]:
        """Build a network a lane, in ``order``, and warm each up; the answer is the seconds of a step of each.

        ``padding`` are bytes to hold before each is built, so that no two pairs lie alike in memory.
        """
        built: dict[int, tuple[str | None, Callable[[], None]]] = {}
        for index, unused in zip(order, padding, strict=True):
            self._padding.append(bytearray(unused))
            lane = lanes[index]
            with self._zoos.active(lane["root"]) as zoo:
                built[index] = lane["root"], self._create_step(zoo, lane)
        self._lanes = [built[index] for index in range(len(lanes))]
        seconds = {index: self._warm_up(index) for index in order}
        gc.collect()
        return {"step_seconds": [seconds[index] for index in range(len(lanes))]}

    def run(self, lane: int, steps: int) -> dict[str, Any]:
        """A block: so many steps of a lane. Seconds of the wall clock (of the GPU on CUDA) and of this process."""
        root, step = self._lanes[lane]
        with self._zoos.active(root):
            return self._time(step, steps)

    def drop(self) -> dict[str, Any]:
        """Free all lanes."""
        self._lanes, self._padding = [], []
        gc.collect()
        return {}

    def _create_step(self, zoo: Any, lane: dict[str, Any]) -> Callable[[], None]:
        import torch

        if lane.get("program") is not None:
            program = _load(f"zoobench_{Path(lane['program']).stem}", lane["program"])
            return cast("Callable[[], None]", program.create_step(self._device))
        torch.manual_seed(0)
        network = self._create_network(zoo, lane)
        layout = torch.channels_last if lane["channels_last"] else torch.contiguous_format
        network = network.to(device=self._device, memory_format=layout)
        images = torch.randn(lane["batch_size"], lane.get("in_chans", 3), lane["input_size"], lane["input_size"])
        images = images.to(device=self._device, memory_format=layout)
        dtype = getattr(torch, lane["dtype"])
        called = torch.compile(network) if lane["compile"] else network

        def forward() -> Any:
            with torch.autocast(self._device.type, dtype, enabled=dtype != torch.float32):
                return _first_tensor(called(images))

        if lane["mode"] == "infer":
            network.eval()

            def infer() -> None:
                with torch.inference_mode():
                    forward()

            return infer
        network.train()
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4)
        with torch.no_grad():
            output = forward()
        labels = torch.randint(lane["num_classes"], (output.shape[0], *output.shape[2:])).to(self._device)

        def train() -> None:
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(forward().float(), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return train

    def _create_network(self, zoo: Any, lane: dict[str, Any]) -> Any:
        shape = {"num_classes": lane["num_classes"], "input_size": lane["input_size"]}
        return zoo.create_model(lane["model"], **shape, **lane["options"])

    def _warm_up(self, lane: int) -> float:
        """Step until two in a row take the same time within 5%, or for a second; the fastest step's seconds."""
        at_least = WARM_UP_SECONDS if self._device.type == "cpu" else WARM_UP_SECONDS_GPU
        seconds = [self.run(lane, 1)["seconds"] for _ in range(3)]
        begun = time.perf_counter()  # not before: the first steps may compile
        while True:
            spent = time.perf_counter() - begun
            stable = abs(seconds[-1] - seconds[-2]) <= STABLE_WITHIN * seconds[-2]
            if (stable and spent > at_least) or spent > WARM_UP_AT_MOST_SECONDS:
                return float(min(seconds[1:]))
            seconds.append(self.run(lane, 1)["seconds"])

    def _time(self, step: Callable[[], None], steps: int) -> dict[str, Any]:
        import torch

        on_cuda = self._device.type == "cuda"
        # Events belong to the current device, which is the first one unless somebody says so.
        with torch.cuda.device(self._device) if on_cuda else contextlib.nullcontext():
            if on_cuda:
                began = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                ended = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                torch.cuda.synchronize()
            switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
            cpu, wall = time.process_time(), time.perf_counter()
            if on_cuda:
                began.record()
            for _ in range(steps):
                step()
            if on_cuda:
                ended.record()
                torch.cuda.synchronize()
            elif self._device.type == "mps":
                torch.mps.synchronize()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - switches
        seconds = began.elapsed_time(ended) / 1000 if on_cuda else wall
        return {"seconds": seconds, "cpu_seconds": cpu, "involuntary_switches": switches}


def _first_tensor(output: Any) -> Any:
    if isinstance(output, dict):
        output = next(iter(output.values()))
    while isinstance(output, list | tuple):
        output = output[0]
    return output


def _load(name: str, path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Answer commands until stdin ends."""
    here = Path(__file__).parent  # whose modules must not be found in place of others
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != here.resolve()]
    # What a network prints must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker, parent = Worker(), os.getpid()
    for line in sys.stdin:
        command = json.loads(line)
        name = command.pop("do")
        if name == "fork":
            answer = _fork()
        elif name == "end":
            if os.getpid() != parent:
                os._exit(0)  # its parent answers
            answer = {}  # the fork that was meant is gone already
        else:
            answer = _do(worker, name, command)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _do(worker: Worker, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return getattr(worker, name)(**arguments) if name in COMMANDS else {"error": f"no command {name!r}"}
    except Exception as error:  # noqa: BLE001 - the process that asked decides what becomes of it
        bases = [base.__name__ for base in type(error).__mro__]
        return {"error": " ".join(str(error).split()) or type(error).__name__, "kinds": bases}


def _fork() -> dict[str, Any]:
    """Let a child answer what follows; this process answers again when the child has ended."""
    child = os.fork()
    if child == 0:
        return {}
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {} if status == 0 else {"error": f"the process ended with status {status}", "kinds": [FORK_DIED]}


if __name__ == "__main__":
    main()
