"""What all tests share: a cache of their own, and the real images where this machine has them."""

import gc
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

# Threads that spin while they wait make every step crawl where another program holds a core; see bench/device.py.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# One thread a process: the suite runs in as many processes as there are cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The workers of pytest-xdist get a width of 80; a pipe has none.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)

# No deadline for an example: on a busy machine any can be slow.
hypothesis.settings.register_profile("zoobench", deadline=None)
hypothesis.settings.load_profile("zoobench")

CIFAR10_JPEG = "cifar10-jpeg"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """One for all workers of pytest-xdist: decoding the real images takes twenty seconds."""
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if base.name.startswith("popen-") else base) / "cache"
    cache.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOOBENCH_CACHE", str(cache))
        yield


@pytest.fixture(autouse=True)
def _keep_subnormal_numbers():
    """ONNX Runtime leaves its caller's thread flushing them to zero, which hypothesis refuses to work with."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture(autouse=True)
def _collects_garbage():
    """A command that is run in this process turns the collector on again, whatever comes after it."""
    yield
    assert gc.isenabled()


@pytest.fixture(scope="session")
def cifar10_jpeg() -> Path:
    """The folder of CIFAR-10's images as Parquet shards of JPEG, in ``ZOOBENCH_DATA``."""
    folder = Path(os.environ.get("ZOOBENCH_DATA", "data")) / CIFAR10_JPEG
    if not folder.is_dir():
        reason = f"ZOOBENCH_DATA names no folder that holds {CIFAR10_JPEG}"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return folder


@pytest.fixture
def zoobench_here(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """The command line in this process, which has imported torch already; ``columns`` is the width of the terminal."""
    from bench.cli.app import main

    def run(*arguments: object, columns: int | str = 120) -> "subprocess.CompletedProcess[str]":
        monkeypatch.setattr(sys, "argv", ["zoobench", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", str(columns))
        capfd.readouterr()
        with warnings.catch_warnings(), pytest.raises(SystemExit) as end:
            main()
        return subprocess.CompletedProcess(arguments, int(end.value.code or 0), *capfd.readouterr())

    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small file system cannot be mounted here: {error}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
