"""The GitHub Action: its steps are run by bash as a runner does, against a server that keeps comments as GitHub's."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from tests.bench.gate.conftest import Repository
from tests.bench.gate.conftest import repository as repository

ROOT = Path(__file__).parent.parent
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
TOKEN = "a-token"

pytestmark = pytest.mark.skipif(not all(map(shutil.which, ("bash", "curl", "jq"))), reason="needs bash, curl and jq")


class Comments(ThreadingHTTPServer):
    """The part of GitHub's API that keeps the comments of a pull request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.kept: list[dict] = []
        self.may_write = True

    def add(self, body: str) -> dict:
        self.kept.append({"id": 1000 + len(self.kept), "body": body})
        return self.kept[-1]


class _Handler(BaseHTTPRequestHandler):
    server: Comments

    def _answer(self, status: int, value: object) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _body(self) -> str:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))["body"]

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        size, page = int(query["per_page"][0]), int(query["page"][0])
        assert url.path == "/repos/owner/nets/issues/7/comments"
        self._answer(200, self.server.kept[(page - 1) * size : page * size])

    def do_POST(self) -> None:
        body = self._body()
        if not self._may_write():
            return self._answer(403, {"message": "Resource not accessible by integration"})
        assert self.path == "/repos/owner/nets/issues/7/comments"
        return self._answer(201, self.server.add(body))

    def do_PATCH(self) -> None:
        body, (where, _, number) = self._body(), self.path.rpartition("/")
        assert self._may_write()
        assert where == "/repos/owner/nets/issues/comments"
        (comment,) = (each for each in self.server.kept if each["id"] == int(number))
        comment["body"] = body
        self._answer(200, comment)

    def _may_write(self) -> bool:
        return self.server.may_write and self.headers["Authorization"] == f"Bearer {TOKEN}"

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def github():
    server = Comments()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


class Runner:
    """Runs the action's steps in a repository, each as GitHub's runner does: bash -eo pipefail, in that folder."""

    def __init__(self, repository: Repository, api: str, folder: Path) -> None:
        self.repository, self.folder = repository, folder
        shims = folder / "bin"
        shims.mkdir(parents=True)
        for name, call in {"python": "", "zoobench": "-P -m zoobench "}.items():
            (shims / name).write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} {call}"$@"\n')
            (shims / name).chmod(0o755)
        self.environment = os.environ | {
            "PATH": f"{shims}:{os.environ['PATH']}", "RUNNER_TEMP": str(folder), "GITHUB_API_URL": api,
            "GITHUB_REPOSITORY": "owner/nets", "GITHUB_ACTION_PATH": "/nowhere",
            "PIP_NO_BUILD_ISOLATION": "0",  # off: nothing is downloaded
            "GITHUB_STEP_SUMMARY": str(folder / "summary"), "GITHUB_OUTPUT": str(folder / "output"),
        }  # fmt: skip

    def step(self, name: str, contexts: dict[str, str]) -> subprocess.CompletedProcess:
        (step,) = (step for step in ACTION["runs"]["steps"] if step["name"] == name)
        script = self.folder / f"{name}.sh"
        script.write_text(step["run"])
        env = {key: evaluate(text, contexts) for key, text in step.get("env", {}).items()}
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            cwd=self.repository.path, env=self.environment | env, capture_output=True, text=True,
        )  # fmt: skip

    def run(self, base: str, **inputs: str) -> subprocess.CompletedProcess:
        """All steps of a call for a pull request; the last one's result."""
        (self.folder / "output").write_text("")
        given = {name: str(value["default"]) for name, value in ACTION["inputs"].items()}
        given |= {"github-token": TOKEN} | {name.replace("_", "-"): value for name, value in inputs.items()}
        contexts = {f"inputs.{name}": value for name, value in given.items()}
        contexts |= {"github.event.pull_request.base.sha": base, "github.event.pull_request.number": "7"}
        self.said = {}
        for name in ("Install", "Compare", "Comment"):
            done = self.step(name, contexts)
            assert done.returncode == 0, done.stderr
            self.said[name] = done.stdout
        contexts["steps.compare.outputs.status"] = dict(
            line.split("=", 1) for line in (self.folder / "output").read_text().splitlines()
        )["status"]
        return self.step("Result", contexts)


def evaluate(text: str, contexts: dict[str, str]) -> str:
    """An expression of ``||`` over contexts: the first that is not empty."""
    (names,) = re.fullmatch(r"\$\{\{ (.*) \}\}", text).groups()
    return next(filter(None, (contexts.get(name, "") for name in names.split(" || "))), "")


@pytest.fixture
def runner(repository, github, tmp_path) -> Runner:
    return Runner(repository, f"http://127.0.0.1:{github.server_port}", tmp_path / "runner")


def test_a_pull_request_gets_summary_comment_and_status(runner, github):
    """A model that changed fails; the next call, in which nothing fails, replaces the comment, on its second page."""
    base = runner.repository.git("rev-parse", "HEAD")
    runner.repository.replace("zoo/__init__.py", '"small": 8', '"small": 9')
    runner.repository.commit("small is larger")
    for number in range(100):
        github.add(f"remark {number}; <!-- zoobench compare --> is quoted here")
    done = runner.run(base, models="small", budget="1")
    assert done.returncode == 15
    (comment,) = github.kept[100:]
    assert comment["body"].startswith(f"<!-- zoobench compare -->\n### Speed: `git:{base}` → `git:HEAD`")
    assert "small: params" in comment["body"]
    assert "| `small` | **changed** |" in (runner.folder / "summary").read_text()
    done = runner.run(base, models="small", budget="1", fail_on="none", tolerance="0.5", head="HEAD~1")
    assert done.returncode == 0
    assert len(github.kept) == 101
    assert "changed" not in github.kept[100]["body"]
    assert "Tolerance: 50%." in github.kept[100]["body"]


PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "nets"
version = "1"
entry-points."zoobench.models".little = "nets:little"
[tool.hatch.build.targets.wheel]
only-include = ["nets.py"]
"""
NETS = """
from torch import nn
def little(num_classes=10, input_size=32):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * input_size**2, 8), nn.ReLU(), nn.Linear(8, num_classes))
"""


def test_a_project_of_its_own_is_installed_at_either_revision(runner, github):
    repository = runner.repository
    (repository.path / "project").mkdir()
    repository.write("project/pyproject.toml", PROJECT)
    repository.write("project/nets.py", NETS)
    repository.commit("a project with a model")
    base = repository.git("rev-parse", "HEAD")
    repository.replace("project/nets.py", "8)", "9)")
    repository.replace("project/nets.py", "(8,", "(9,")
    repository.commit("little is larger")
    done = runner.run(base, package="project", models="little", budget="1")
    assert done.returncode == 15, runner.said
    assert "little: params 24,674 → 27,757" in github.kept[0]["body"]
    commit = repository.git("rev-parse", "HEAD")
    accepted = "".join(
        f'[[accepted]]\nmodel = "little"\nmetric = "{metric}"\ncommit = "{commit}"\nreason = "wanted"\n'
        "expires = 2999-01-01\n"
        for metric in ("counts", "speed")
    )
    repository.write("known.toml", accepted)
    done = runner.run(base, package="project", models="little", budget="1", accept="known.toml", fail_on="changed")
    assert done.returncode == 0, runner.said
    assert "wanted" in github.kept[0]["body"]
    assert runner.run(base, package="nothing", models="little").returncode == 2
    assert "could not be installed at both revisions" in runner.said["Compare"]


def test_where_nothing_can_be_compared_or_written_the_job_says_so(runner, github):
    """A model that is not there, and the token of a fork, which may only read."""
    github.may_write = False
    done = runner.run(runner.repository.git("rev-parse", "HEAD"), models="smal")
    assert done.returncode == 2
    assert "Exit status 2" in (runner.folder / "summary").read_text()
    assert runner.said["Comment"].startswith("::warning::")
    assert github.kept == []


@pytest.mark.parametrize("base", ["", "0" * 40])
def test_an_event_without_a_base_compares_nothing(runner, github, base):
    """As ``workflow_dispatch`` has none, and the first push of a branch has zeros."""
    assert runner.run(base, models="small").returncode == 2
    assert "nothing was compared" in (runner.folder / "summary").read_text()


def test_no_input_becomes_part_of_a_script_and_the_guide_shows_what_there_is():
    steps = ACTION["runs"]["steps"]
    assert not [step["name"] for step in steps if "${{" in step["run"]]
    shown = re.search(r"^```yaml\n(.*?)^```", (ROOT / "docs" / "gate.md").read_text(), re.MULTILINE | re.DOTALL)
    workflow = yaml.safe_load(shown[1])
    (job,) = workflow["jobs"].values()
    assert job["permissions"]["pull-requests"] == "write"
    (ours,) = (step for step in job["steps"] if "zoobench" in step.get("uses", ""))
    assert ours["with"].keys() <= ACTION["inputs"].keys()
    (checkout,) = (step for step in job["steps"] if "checkout" in step.get("uses", ""))
    assert checkout["with"]["fetch-depth"] == 0
