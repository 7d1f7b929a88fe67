"""The name people type: ``import zoobench``, ``python -m zoobench``, the command ``zoobench`` and the pytest plugin.

The packages beside this file are called `bench`, `zoo` and `reports`, as are modules of many others. So nothing of them
is imported before something of them is used; it is then the ones beside this file that are found, whatever `sys.path`
has first; and where others of these names could be imported too, ours leave `sys.modules` when the call is over.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # typing's own is true for type checkers; importing it here could find the current folder's
if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

    import pytest

    from bench.gate.pytest_plugin import Throughput as Throughput
    from reports.data.history import find_steps as find_steps
    from reports.data.leaderboard import leaderboard as leaderboard
    from reports.data.loading import load_history as load_history
    from reports.data.loading import load_results as load_results
    from reports.data.loading import load_runs as load_runs
    from reports.export import export_runs as export_runs
    from reports.pages.verify import verify_page as verify_page
    from reports.report import write_report as write_report
    from zoo.info import ModelInfo as ModelInfo
    from zoo.info import Published as Published
    from zoo.info import UnknownModelError as UnknownModelError
    from zoo.info import ZooError as ZooError
    from zoo.registry import create_model as create_model
    from zoo.registry import list_models as list_models
    from zoo.registry import model_info as model_info
    from zoo.registry import register_model as register_model

__version__ = "0.1.0"

_EXPORTS = {
    "zoo.registry": ("create_model", "list_models", "model_info", "register_model"),
    "zoo.info": ("ModelInfo", "Published", "UnknownModelError", "ZooError"),
    "reports.data.loading": ("load_runs", "load_history", "load_results"),
    "reports.data.leaderboard": ("leaderboard",),
    "reports.data.history": ("find_steps",),
    "reports.export": ("export_runs",),
    "reports.report": ("write_report",),
    "reports.pages.verify": ("verify_page",),
    "bench.gate.pytest_plugin": ("Throughput",),
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}
__all__ = ["__version__", "main", *_MODULE_OF]

ROOT = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120 - pathlib is imported later, see above
PACKAGES = ("bench", "zoo", "reports")
NEEDED_BY = {"zoo": ("zoo",), "reports": ("reports", "bench"), "bench": ("bench", "zoo")}
THROUGHPUT_PROPERTY = "zoobench_throughput"
"""The user property by which a test's row comes to the terminal summary, also from the workers of pytest-xdist."""


class NameClashError(ImportError):
    """Another module of the name of one of our packages is loaded in this process already."""


class _Finder:
    """Finds `bench`, `zoo` and `reports` beside this file, before `sys.path` is searched."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return _find(name, [ROOT]) if name in PACKAGES else None


class _OurPackages:
    """Inside, the three names mean our packages, as long as nobody else's are loaded; may be nested."""

    _depth = 0
    _set_aside: dict[str, ModuleType] = {}  # noqa: RUF012 - one for the process, like sys.modules

    def __init__(self, *names: str) -> None:
        self._names = names

    def __enter__(self) -> None:
        for name in self._names:
            module = sys.modules.get(name)
            if module is not None and not _is_ours(module):
                where = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), "no file")
                raise NameClashError(
                    f"zoobench cannot be used in this process: its own package {name!r} is needed, and another module "
                    f"of that name is loaded already, from {where}.",
                    name=name,
                )
        if _OurPackages._depth == 0:
            sys.meta_path.insert(0, _Finder)
            for name, module in self._set_aside.items():
                sys.modules.setdefault(name, module)
            self._set_aside.clear()
        _OurPackages._depth += 1

    def __exit__(self, *raised: object) -> None:
        _OurPackages._depth -= 1
        if _OurPackages._depth == 0:
            sys.meta_path.remove(_Finder)
            for package in _shadowed(PACKAGES):
                if package in sys.modules and _is_ours(sys.modules[package]):
                    for name in [name for name in sys.modules if _package_of(name) == package]:
                        self._set_aside[name] = sys.modules.pop(name)


def _package_of(name: str) -> str:
    return name.partition(".")[0]


def _find(name: str, path: list[str] | None = None) -> ModuleSpec | None:
    from importlib.machinery import PathFinder

    return PathFinder.find_spec(name, path)


def _is_ours(module: ModuleType | ModuleSpec) -> bool:
    file = getattr(module, "__file__", None) or getattr(module, "origin", None)
    return file is not None and os.path.realpath(os.path.dirname(os.path.dirname(file))) == ROOT  # noqa: PTH120


def _shadowed(names: tuple[str, ...]) -> list[str]:
    """Which of our packages ``import`` would not find: another comes first, or `sys.path` lacks ours."""
    return [name for name in names if (found := _find(name)) is None or not _is_ours(found)]


def _inside(function: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    """The function, called with our packages in place."""
    import functools

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        with _OurPackages(*names):
            return function(*arguments, **options)

    return call


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'zoobench' has no attribute {name!r}")
    import importlib
    import inspect

    names = NEEDED_BY[_package_of(_MODULE_OF[name])]
    with _OurPackages(*names):
        value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    return _inside(value, names) if inspect.isfunction(value) and _shadowed(names) else value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Isolated:
    """An object whose methods run with our packages in place; a clash of names fails the test in one sentence."""

    def __init__(self, target: object, names: tuple[str, ...]) -> None:
        self._target, self._names = target, names

    def __getattr__(self, name: str) -> Any:
        import functools

        import pytest

        method = _inside(getattr(self._target, name), self._names)

        @functools.wraps(method)
        def call(*arguments: Any, **options: Any) -> Any:
            __tracebackhide__ = True
            try:
                return method(*arguments, **options)
            except NameClashError as error:
                pytest.fail(str(error), pytrace=False)

        return call


class _PytestPlugin:
    """What pytest loads wherever zoobench is installed: the fixture ``throughput`` and its flags.

    Until a test uses the fixture nothing of ours but this file is imported. ``-p no:zoobench`` leaves it out.
    """

    def pytest_addoption(self, parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
        """The plugin's flags and settings."""
        group = parser.getgroup("zoobench", "throughput of networks (zoobench)")
        group.addoption(
            "--throughput-save",
            action="store_true",
            help="measure and save (or replace) the baselines of throughput.check instead of comparing with them",
        )
        group.addoption(
            "--throughput-strict",
            action="store_true",
            help="an inconclusive check fails, and so does a baseline from a different machine",
        )
        folder = ".zoobench/baselines"
        parser.addini("throughput_baselines", "folder of the baselines, relative to rootdir", default=folder)
        parser.addini("throughput_strict", "as --throughput-strict", type="bool", default=False)
        pluginmanager.register(_create_fixtures(), "zoobench-fixtures")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """A row for each check, whatever became of it."""
        import json

        rows = [
            [report.nodeid, *json.loads(str(value))]
            for reports in terminalreporter.stats.values()
            for report in reports
            if getattr(report, "when", None) == "call"
            for key, value in report.user_properties
            if key == THROUGHPUT_PROPERTY
        ]
        if not rows:
            return
        terminalreporter.write_sep("=", "throughput")
        colors = dict.fromkeys(("unchanged", "slower", "faster", "improved"), "green") | {"saved": "cyan"}
        colors |= dict.fromkeys(("inconclusive", "unlike"), "yellow")
        for nodeid, against, status, found in sorted(rows):
            terminalreporter.write(f"{status.upper():12}", **{colors.get(status, "red"): True})
            terminalreporter.write_line(f" {nodeid} against {against}: {found}")


def _create_fixtures() -> object:
    """The fixtures, in a function since only pytest's processes can import pytest."""
    import pytest

    class Fixtures:
        @pytest.fixture
        def throughput(self, request: pytest.FixtureRequest) -> Throughput | _Isolated:
            """Check that a network is not slower than its baseline, or than another network."""
            names = NEEDED_BY["bench"]
            try:
                checks = __getattr__("Throughput")(request, THROUGHPUT_PROPERTY)
            except NameClashError as error:
                pytest.fail(str(error), pytrace=False)
            return _Isolated(checks, names) if _shadowed(names) else checks

    return Fixtures()


pytest_plugin = _PytestPlugin()


def _forget_current_folder() -> None:
    """Take from `sys.path` what means the current folder: what ``python -m`` puts first, and relative PYTHONPATH.

    Otherwise a ``torch.py`` or ``random.py`` that lies there would be imported, here and in no process we start.
    """
    run_by_name = __name__ == "__main__" and globals()["__spec__"] is not None and not sys.flags.safe_path
    if run_by_name and sys.path[0] != ROOT:
        del sys.path[0]
    given = os.environ.get("PYTHONPATH", "")
    if (kept := _absolute_entries(given)) != given:
        relative = {os.path.abspath(entry) for entry in given.split(os.pathsep)}  # noqa: PTH100
        relative -= {*kept.split(os.pathsep), ROOT}
        sys.path[:] = [entry for entry in sys.path if entry not in relative]
        os.environ["PYTHONPATH"] = kept


def _absolute_entries(python_path: str) -> str:
    """The value of PYTHONPATH without empty and relative entries, which name other folders in other places."""
    return os.pathsep.join(entry for entry in python_path.split(os.pathsep) if os.path.isabs(entry))  # noqa: PTH117


def _print_anything() -> None:
    """Let no terminal's encoding end a command: what it lacks becomes the nearest ASCII, or a question mark."""
    import codecs

    ascii_for = {"×": "x", "–": "-", "—": "-", "…": "...", "±": "+-", "→": "->", "≥": ">=", "≤": "<=", "·": "."}

    def replace(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeEncodeError)
        text = error.object[error.start : error.end]
        return "".join(ascii_for.get(character, "?") for character in text), error.end

    codecs.register_error("zoobench", replace)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="zoobench")


def main() -> None:
    """Run the command line; exit with its status.

    ``python zoobench.py -m MODULE …`` instead runs a module of ours: that is how we start processes, by the path of
    this file, so that they have our packages and never those of the current folder.
    """
    _forget_current_folder()
    _print_anything()
    try:
        _OurPackages(*PACKAGES).__enter__()  # for the life of the process, which is ours
    except NameClashError as error:
        print(f"zoobench: {error}", file=sys.stderr)
        sys.exit(2)
    if sys.argv[1:2] == ["-m"]:
        import importlib

        _, _, module, *sys.argv[1:] = sys.argv
        importlib.import_module(module).main()
    else:
        from bench.cli.app import main as run_command_line

        run_command_line()


if __name__ == "__mp_main__":  # a process that multiprocessing spawns from ours, as a rank of a run on GPUs
    _OurPackages(*PACKAGES).__enter__()
if __name__ == "__main__":
    sys.modules["zoobench"] = sys.modules["__main__"]  # others import this file by its name
    main()
