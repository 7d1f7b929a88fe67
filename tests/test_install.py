"""zoobench installed from its wheel, beside projects whose modules have the names of our packages."""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from bench.records import read_records

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A fresh virtual environment with the wheel; everything that it depends on comes from this interpreter's."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    shared = [entry for entry in sys.path if entry.endswith("site-packages")]
    (site / "shared.pth").write_text("\n".join(shared))
    install = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, capture_output=True)
    return Environment(folder)


class Environment:
    """Commands of a virtual environment, run in any folder."""

    def __init__(self, folder):
        self.bin = folder / "bin"

    def run(self, folder, program, *arguments, **variables):
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        command = [self.bin / program, *map(str, arguments)]
        encoding = variables.get("PYTHONIOENCODING", "utf-8")
        environment = inherited | variables
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding=encoding)

    def pytest(self, folder, by_module, *arguments):
        options = ["-q", "-p", "no:cacheprovider", *arguments]
        if by_module:
            return self.run(folder, "python", "-m", "pytest", *options)
        return self.run(folder, "python", "-P", "-c", "import pytest, sys; sys.exit(pytest.main())", *options)


def test_the_wheel_has_all_that_is_read_at_run_time(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "zoobench.py" in names
    for package in ("bench", "zoo", "reports"):
        files = [path for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        missing = {path.relative_to(ROOT).as_posix() for path in files} - names
        assert not missing
    assert not [name for name in names if name.startswith(("tests/", "results/"))]


OWN = {
    "modules": {name: f"{name}.py" for name in ("bench", "zoo", "reports")},
    "packages": {name: f"{name}/__init__.py" for name in ("bench", "zoo", "reports")},
}
OWN_TESTS = """
import bench, reports, zoo

def test_own_modules():
    assert [bench.OWNER, reports.OWNER, zoo.OWNER] == ["them"] * 3
"""
FIXTURE_TESTS = """
def test_with_the_fixture(throughput):
    from torch import nn

    def net():
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 10))

    throughput.compare(net(), net(), input_size=8, batch_size=2, budget=2, tolerance=0.5)
"""
IN_TURN = (
    FIXTURE_TESTS
    + """
def test_own_modules_afterwards():
    import bench, reports, zoo
    assert [bench.OWNER, reports.OWNER, zoo.OWNER] == ["them"] * 3
"""
)


@pytest.fixture(params=["modules", "packages"])
def project(request, tmp_path):
    """Somebody's project, with modules of the names of our packages."""
    for file in OWN[request.param].values():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("OWNER = 'them'\n")
    (tmp_path / "conftest.py").write_text("")  # puts this folder on sys.path
    return tmp_path


@pytest.mark.parametrize("by_module", [False, True], ids=["pytest", "python -m pytest"])
def test_a_suite_that_does_not_use_it_is_left_alone(environment, project, by_module):
    (project / "test_own.py").write_text(OWN_TESTS)
    done = environment.pytest(project, by_module, "-W", "error")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


@pytest.mark.parametrize("by_module", [False, True], ids=["pytest", "python -m pytest"])
def test_a_clash_is_one_sentence_and_one_error(environment, project, by_module):
    (project / "test_own.py").write_text(OWN_TESTS + FIXTURE_TESTS)
    done = environment.pytest(project, by_module)
    assert "1 passed, 1 error" in done.stdout, done.stdout + done.stderr
    message = next(line for line in done.stdout.splitlines() if line.startswith("zoobench cannot be used"))
    assert "'bench'" in message
    assert str(project / "bench") in message
    assert "Traceback" not in done.stdout


def test_ours_in_the_fixture_and_theirs_in_their_tests(environment, project):
    (project / "test_in_turn.py").write_text(IN_TURN)
    done = environment.pytest(project, True)
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    assert "test_with_the_fixture against" in done.stdout  # the table at the end


def test_functions_of_ours_beside_modules_of_theirs(environment, project):
    code = """
import zoobench
assert zoobench.create_model("lenet5").__class__.__name__
import bench, zoo, reports
assert [bench.OWNER, reports.OWNER, zoo.OWNER] == ["them"] * 3
try:
    zoobench.create_model("lenet5")
except ImportError as error:
    print(error)
"""
    done = environment.run(project, "python", "-c", code)
    assert done.returncode == 0, done.stderr
    assert "another module of that name is loaded already" in done.stdout


def folder_with_a_changed_copy(folder):
    for package in ("bench", "zoo", "reports"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    lenet = folder / "zoo" / "architectures" / "lenet.py"
    changed = lenet.read_text().replace("120", "130")
    assert changed != lenet.read_text()
    lenet.write_text(changed)


def folder_with_empty_modules(folder):
    (folder / "bench").mkdir()
    for file in ("bench/__init__.py", "types.py", "torch.py"):
        (folder / file).write_text("")


def printing_site(folder):
    """A folder for PYTHONPATH: its sitecustomize prints, and so does its module with an architecture."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import os\nprint('{\"event\": 1}')\nos.write(1, b'{}\\n')\n")
    (folder / "noisy_nets.py").write_text(
        "from torch import nn\nprint('noise')\n"
        "def noisy(num_classes=10, input_size=32):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3 * input_size**2, num_classes))\n"
    )
    info = folder / "noisy_nets-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: noisy-nets\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[zoobench.models]\nnoisy = noisy_nets:noisy\n")
    return folder


RUN = ["run", "quick", "--models", "lenet5", "--epochs", "1", "--device", "cpu", "--threads", "1"]
RUN += ["--limit-train", "64", "--limit-test", "20", "--set", "measure.seconds=0.1", "--set", "measure.probes=false"]


@pytest.mark.parametrize("lay_out", [folder_with_a_changed_copy, folder_with_empty_modules])
def test_a_run_measures_the_installed_code(environment, tmp_path, lay_out):
    here = tmp_path / "here"
    here.mkdir()
    lay_out(here)
    variables = {}
    if lay_out is folder_with_a_changed_copy:  # the current folder by PYTHONPATH as well, and others that print
        variables["PYTHONPATH"] = os.pathsep.join(["", ".", str(printing_site(tmp_path / "site"))])
    results = tmp_path / "results"
    done = environment.run(here, "zoobench", *RUN, "--results", results, **variables)
    records, _ = read_records(str(results))
    assert done.returncode == 0, done.stderr + "".join(str(record.error) for record in records)
    assert [record.metrics["params"] for record in records] == [62_006]


def test_a_study_that_ships_is_run_and_its_page_verified(environment, tmp_path):
    command = ["study", "kernels", "--data", "digits", "--seeds", "0", "--epochs", "1", "--threads", "1", "--json"]
    done = environment.run(tmp_path, "zoobench", *command, "--limit-train", "64", "--limit-test", "20")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [each["verdict"] for each in found["comparisons"]] == ["undecided at this budget", "supported"]
    assert found["comparisons"][1]["effect"] == 681_994 / 591_450  # the weights of both networks
    listed = json.loads(environment.run(tmp_path, "zoobench", "study", "--json").stdout)
    assert {each["name"]: each["found"] for each in listed}["kernels"] == found
    verified = environment.run(tmp_path, "zoobench", "verify", "study-kernels")
    assert verified.returncode == 0, verified.stdout


def test_by_module_beside_a_changed_copy_and_a_noisy_architecture(environment, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    folder_with_a_changed_copy(here)
    site = printing_site(tmp_path / "site")
    (site / "sitecustomize.py").unlink()
    done = environment.run(here, "python", "-m", "zoobench", "list", "noisy", "--json", PYTHONPATH=str(site))
    assert [row["params"] for row in json.loads(done.stdout)] == [30_730]
    assert "noise" in done.stderr


@pytest.mark.parametrize(
    ("encoding", "command", "status"),
    [("ascii", ["describe", "lenet5"], 0), ("latin-1", ["list", "lenet*"], 0), ("ascii", ["run", "–×quick"], 2)],
)
def test_a_terminal_that_lacks_characters(environment, tmp_path, encoding, command, status):
    done = environment.run(tmp_path, "zoobench", *command, PYTHONIOENCODING=encoding)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout + done.stderr
