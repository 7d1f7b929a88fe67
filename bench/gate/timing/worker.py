"""Runs steps of networks on demand: the program of the processes that `zoobench compare` keeps alive.

It is run by its path, by the interpreter of the side that it serves, and imports only the standard library, torch,
that side's `zoo` and, by their paths, files that import nothing of ours: an old revision, or another environment, need
not know this program. Commands come as lines of JSON on stdin, answers go as lines of JSON to the descriptor that is
the last argument (see `bench.subprocesses`). The commands are the methods of `Commands` that are named in `COMMANDS`.

Two revisions that share an interpreter live in one process: each has its own `zoo` modules, which are put in place
while one of its networks is built or run.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, TextIO, cast

COMMANDS = ("start", "resolve", "count", "measure_memory", "record", "prepare", "build", "run", "take_turns", "drop")
FORK_DIED = "ForkDied"
BENCH = Path(__file__).parents[2]
WARM_UP_SECONDS, WARM_UP_SECONDS_GPU = 0.01, 0.15
"""At least. On a CPU the third step is within 2% of all that follow; a GPU's clock takes longer to rise."""
MAX_WARM_UP_SECONDS = 1.0
STABLE_WITHIN = 0.05


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


class Commands:
    """What the commands do; one instance per process."""

    def __init__(self) -> None:
        self._zoos = Zoos()
        self._steps: list[tuple[str | None, Callable[[], None]]] = []
        self._padding: list[bytearray] = []
        self._device: Any = None
        self._exported: dict[str, BinaryIO] = {}

    def start(self, device: str, threads: int) -> dict[str, Any]:
        """Import torch and set the process up; the answer is its environment. ``auto`` is the best device here."""
        import torch

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        torch.set_num_threads(threads)
        torch.set_flush_denormal(True)  # hundreds of steps on one batch drive gradients down to where the CPU crawls
        self._device = torch.device(device)
        torch.zeros(1, device=self._device)  # one that is not here fails now
        if self._device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # as a run measures speed: cuDNN chooses by trial
        # A collection in the middle of a block would count as that block's time; `drop` collects.
        gc.disable()
        described: dict[str, Any] = _ours("machine.py").describe_process(device, torch.get_num_threads())
        described["versions"]["torch"] = torch.__version__  # with its build
        return described

    def resolve(self, root: str | None, patterns: list[str]) -> dict[str, Any]:
        """The names that each pattern stands for; for a plain name that is unknown, the zoo's error message."""
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

    def count(self, subject: dict[str, Any]) -> dict[str, Any]:
        """The exact counts of a network, by our code whatever the side brings along; nothing is computed."""
        import dataclasses

        counting = _ours("counting/complexity.py")
        _ours("runtimes.py").check_installed(subject["runtime"])
        with self._zoos.active(subject["root"]) as zoo:
            network = self._create_on_meta(zoo, subject)
            side = subject["input_size"]
            counted = counting.count_complexity(network, (subject["in_chans"], side, side))
        answer: dict[str, Any] = dataclasses.asdict(counted)
        return answer

    def measure_memory(self, subject: dict[str, Any]) -> dict[str, Any]:
        """The peak of a step's memory in bytes; None where it cannot be observed, as in other runtimes."""
        if subject["runtime"] != "eager":
            return {"peak_bytes": None}
        with self._zoos.active(subject["root"]) as zoo:
            peak = _ours("gate/memory.py").measure_peak_bytes(lambda: self._eager_step(zoo, subject), self._device)
        gc.collect()
        return {"peak_bytes": peak}

    def record(self, subject: dict[str, Any], operators: list[str]) -> dict[str, Any]:
        """What a step of the network computes, as a reference workload of these operators."""
        with self._zoos.active(subject["root"]) as zoo:
            step = self._eager_step(zoo, subject | {"runtime": "eager"})
            workload: dict[str, Any] = _ours("gate/timing/replay.py").record(step, set(operators))
        gc.collect()
        return workload

    def prepare(self, subject: dict[str, Any]) -> dict[str, Any]:
        """Import what a network needs, and compute nothing, so that a fork of this process need not import it."""
        import torch

        self._exported_file(subject)
        # The meta device or nothing: computing would start threads, which no fork has.
        with self._zoos.active(subject["root"]) as zoo, torch.device("meta"):
            network = self._create_network(zoo, subject)
            torch.optim.SGD(network.parameters(), lr=1e-3).zero_grad()
        # No fork will free what is here already: its collections need not walk it, which would copy all its pages.
        gc.collect()
        gc.freeze()
        return {}

    def build(self, subjects: list[dict[str, Any]], order: list[int], padding: list[int]) -> dict[str, Any]:
        """Build the subjects in ``order`` and warm each up; the answer has the seconds of a step of each.

        ``padding`` are bytes to hold before each is built, so that no two pairs have the same layout in memory.
        """
        built: dict[int, tuple[str | None, Callable[[], None]]] = {}
        for index, unused in zip(order, padding, strict=True):
            self._padding.append(bytearray(unused))
            subject = subjects[index]
            with self._zoos.active(subject["root"]) as zoo:
                built[index] = subject["root"], self._create_step(zoo, subject)
        self._steps = [built[index] for index in range(len(subjects))]
        seconds = {index: self._warm_up(index) for index in order}
        gc.collect()
        return {"step_seconds": [seconds[index] for index in range(len(subjects))]}

    def run(self, subject: int, steps: int) -> dict[str, Any]:
        """A block of ``steps`` steps of a subject, timed: see `bench.gate.timing.block`."""
        root, step = self._steps[subject]
        with self._zoos.active(root):
            return self._time(step, steps)

    def take_turns(self, order: list[int], steps: list[int], turns: int) -> dict[str, Any]:
        """A block for each entry of ``order``, a subject: all of them together, slice by slice of ``steps[subject]``.

        What slows the machine down for milliseconds, as whatever shares its cores and caches does, then falls on all
        blocks alike. ``cpu_seconds`` are this process's, with what lies between the slices.
        """
        blocks: list[dict[str, Any]] = [{} for _ in order]
        began = time.process_time()
        for _ in range(turns):
            for block, subject in zip(blocks, order, strict=True):
                for key, value in self.run(subject, steps[subject]).items():
                    block[key] = block.get(key, 0) + value
        return {"blocks": blocks, "cpu_seconds": time.process_time() - began}

    def drop(self) -> dict[str, Any]:
        """Free all subjects."""
        self._steps, self._padding = [], []
        gc.collect()
        return {}

    def _create_step(self, zoo: Any, subject: dict[str, Any]) -> Callable[[], None]:
        step = self._eager_step(zoo, subject)
        if not subject["cuda_graph"]:
            return step
        return cast("Callable[[], None]", _ours("cuda_graph.py").capture(step, self._device))

    def _eager_step(self, zoo: Any, subject: dict[str, Any]) -> Callable[[], None]:
        """As Python launches it, operator by operator, if the subject's runtime is no other."""
        import torch

        if subject["workload"] is not None:
            replay = _ours("gate/timing/replay.py")
            return cast("Callable[[], None]", replay.create_step(self._device, subject["mode"], subject["workload"]))
        torch.manual_seed(0)
        network = self._create_network(zoo, subject)
        layout = torch.channels_last if subject["channels_last"] else torch.contiguous_format
        network = network.to(device=self._device, memory_format=layout)
        images = torch.randn(subject["batch_size"], subject["in_chans"], subject["input_size"], subject["input_size"])
        images = images.to(device=self._device, memory_format=layout)
        dtype = getattr(torch, subject["dtype"])
        called = torch.compile(network) if subject["runtime"] == "compile" else network

        def forward() -> Any:
            with torch.autocast(self._device.type, dtype, enabled=dtype != torch.float32):
                return _first_tensor(called(images))

        if subject["mode"] == "infer":
            network.eval()
            if subject["runtime"] in _ours("runtimes.py").EXPORTED:
                return self._exported_step(network, images, subject)

            def infer() -> None:
                with torch.inference_mode():
                    forward()

            if subject["runtime"] != "eager":
                with torch.inference_mode(), torch.autocast(self._device.type, dtype, enabled=dtype != torch.float32):
                    outputs = network(images), called(images)
                _ours("runtimes.py").check_outputs(*outputs, subject["runtime"], subject["dtype"])
            return infer
        network.train()
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4)
        with torch.no_grad():
            output = forward()
        labels = torch.randint(subject["num_classes"], (output.shape[0], *output.shape[2:])).to(self._device)

        def train() -> None:
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(forward().float(), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return train

    def _exported_step(self, network: Any, images: Any, subject: dict[str, Any]) -> Callable[[], None]:
        """The network as another runtime runs it; exported, and held against eager mode, at its first build only."""
        import torch

        runtimes, file = _ours("runtimes.py"), self._exported_file(subject)
        file.seek(0)
        model = file.read()
        exported_now = not model
        if exported_now:
            model = runtimes.export_onnx(network, images)
        step = cast("Callable[[], None]", runtimes.load_onnx(model, subject["runtime"], images, subject["threads"]))
        if exported_now:
            with torch.inference_mode():
                runtimes.check_outputs(network(images), step(), subject["runtime"])
            file.write(model)
            file.flush()
        return step

    def _exported_file(self, subject: dict[str, Any]) -> BinaryIO:
        """Where forks of this process find what an earlier one has exported; it has no name and is gone with us."""
        key = json.dumps({name: value for name, value in subject.items() if name != "batch_size"}, sort_keys=True)
        if key not in self._exported:
            self._exported[key] = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115 - as long as we live
        return self._exported[key]

    def _create_network(self, zoo: Any, subject: dict[str, Any]) -> Any:
        arguments = {key: subject[key] for key in ("num_classes", "input_size")} | subject["options"]
        if subject["in_chans"] != 3:  # which old revisions do not take
            arguments["in_chans"] = subject["in_chans"]
        return zoo.create_model(subject["model"], **arguments)

    def _create_on_meta(self, zoo: Any, subject: dict[str, Any]) -> Any:
        """The network without memory; with it where its constructor reads values, which the meta device has not."""
        import torch

        try:
            with torch.device("meta"):
                return self._create_network(zoo, subject)
        except RuntimeError:
            return self._create_network(zoo, subject)

    def _warm_up(self, subject: int) -> float:
        """Step until two in a row take the same time within 5%, or for a second; the fastest step's seconds."""
        at_least = WARM_UP_SECONDS if self._device.type == "cpu" else WARM_UP_SECONDS_GPU
        seconds = [self.run(subject, 1)["seconds"] for _ in range(3)]
        begun = time.perf_counter()  # not before: the first steps may compile
        while True:
            spent = time.perf_counter() - begun
            stable = abs(seconds[-1] - seconds[-2]) <= STABLE_WITHIN * seconds[-2]
            if (stable and spent > at_least) or spent > MAX_WARM_UP_SECONDS:
                return float(min(seconds[1:]))
            seconds.append(self.run(subject, 1)["seconds"])

    def _time(self, step: Callable[[], None], steps: int) -> dict[str, Any]:
        block: dict[str, Any] = _ours("gate/timing/block.py").time_block(step, steps, self._device)
        return block


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


def _ours(file: str) -> ModuleType:
    """A file of `bench` that imports nothing of ours, by its path: an old revision may not have it."""
    name = f"zoobench_{Path(file).stem}"
    return sys.modules.get(name) or _load(name, str(BENCH / file))


def main() -> None:
    """Answer commands until stdin ends."""
    here = Path(__file__).parent  # whose modules must not be found in place of others
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != here.resolve()]
    answers = _open_answers(int(sys.argv[-1]))
    worker, parent = Commands(), os.getpid()
    for line in sys.stdin:
        command = json.loads(line)
        name = command.pop("do")
        if name == "fork":
            answer = _fork()
        elif name == "end":
            if os.getpid() != parent:
                os._exit(0)  # its parent answers
            answer = {}  # the fork that it was meant for has ended already
        else:
            answer = _do(worker, name, command)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _open_answers(descriptor: int) -> TextIO:
    """As `bench.subprocesses.open_answers`, which an old revision does not have."""
    if descriptor == 1:
        descriptor = os.dup(1)
        os.dup2(2, 1)  # what a network prints must not mix with the answers
    os.set_inheritable(descriptor, False)
    return os.fdopen(descriptor, "w", encoding="utf-8")


def _do(worker: Commands, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return getattr(worker, name)(**arguments) if name in COMMANDS else {"error": f"no command {name!r}"}
    except Exception as error:  # noqa: BLE001 - the process that asked decides what to do
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
