"""A small repository with a zoo of its own, to compare revisions of."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gate.compare import measure
from bench.gate.timing.fork_server import _Fork
from bench.gate.timing.pair import Host, WorkerPair
from bench.gate.timing.process import WorkerProcess
from bench.gate.timing.subject import Setting, Subject

ROOT = str(Path(__file__).parents[3])

ZOO = """
import fnmatch
import torch
from torch import nn
from zoo import registry

class Net(nn.Module):
    def __init__(self, num_classes, width):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(torch.relu(self.stem(x)))).mean((2, 3)))

BUILDERS = {"small": 8, "wide": 16}

def create_model(name, num_classes=10, input_size=32, **options):
    return Net(num_classes, BUILDERS[name])

def list_models(pattern="*"):
    return sorted(fnmatch.filter(BUILDERS, pattern))
"""
REGISTRY = """
class UnknownModelError(ValueError):
    pass

class Info:
    def __init__(self, name):
        self.name = name

def model_info(name):
    import zoo
    if name not in zoo.BUILDERS:
        raise UnknownModelError(f"no architecture is named {name!r}.")
    return Info(name)

def representative_models():
    return ["small"]
"""


class Repository:
    """A git repository in a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def git(self, *arguments: str) -> str:
        command = ["git", "-C", str(self.path), "-c", "user.name=test", "-c", "user.email=test@example.org", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def write(self, name: str, text: str) -> None:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def replace(self, name: str, old: str, new: str) -> None:
        text = (self.path / name).read_text()
        assert old in text
        self.write(name, text.replace(old, new))

    def commit(self, message: str) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)

    def worktrees(self) -> list[str]:
        lines = self.git("worktree", "list", "--porcelain").splitlines()
        return [line.removeprefix("worktree ") for line in lines if line.startswith("worktree ")]

    @staticmethod
    def exists(name: str, root: str) -> bool:
        return (Path(root) / name).exists()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A repository with one commit: a zoo of two tiny networks."""
    made = Repository((tmp_path / "repository").resolve())
    made.path.mkdir()
    made.git("init", "-q", "-b", "main")
    made.write("zoo/__init__.py", ZOO)
    made.write("zoo/registry.py", REGISTRY)
    made.write(".gitignore", "__pycache__\n")
    made.commit("first")
    return made


@pytest.fixture(scope="session", autouse=True)
def _kept_workers():
    """The workers of calls in this process are forks of one that has imported everything and computed nothing."""
    parents = {}

    @contextlib.contextmanager
    def connect(interpreters, setting):
        own = parents.setdefault((setting.device, setting.threads), {})
        names = list(dict.fromkeys(interpreters))
        for name in names:
            if name not in own:
                own[name] = WorkerProcess(name, setting).wait()
                if name == sys.executable:
                    lenet = Subject("lenet5", root=ROOT).to_worker(Setting())
                    own[name].ask("count", subject=lenet)  # on the meta device: it only imports
                    own[name].ask("prepare", subject=lenet)
        with contextlib.ExitStack() as stack:
            yield {name: stack.enter_context(_Fork(own, name)) for name in names}

    @contextlib.contextmanager
    def open_pair(interpreters, setting):
        with connect(interpreters, setting) as forks:
            yield WorkerPair(forks, setting)

    host = Host(connect, lambda subjects: contextlib.nullcontext(open_pair))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(measure.__kwdefaults__, "host", host)
        yield
    for own in parents.values():
        for parent in own.values():
            parent.close()
