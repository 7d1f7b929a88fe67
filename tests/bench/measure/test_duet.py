"""Two networks timed in turn by real processes."""

import json
import math
import signal
import sys
import venv

import pytest

from bench.measure.duet import (
    Block,
    Duet,
    InterpreterError,
    Lane,
    PairSample,
    Quad,
    Setting,
    WorkerError,
    WorkerProcess,
    measure_pair,
)
from bench.measure.interference import preemption_flags

SLOW = "return self.fc("
SLOWER = "[self.conv(torch.relu(self.stem(x))) for _ in range(60)]; return self.fc("


@pytest.fixture
def two_roots(repository, tmp_path):
    """The same zoo twice; the second one's networks do sixty times the work."""
    slower = tmp_path / "slower" / "zoo"
    slower.mkdir(parents=True)
    for file in (repository.path / "zoo").glob("*.py"):
        (slower / file.name).write_text(file.read_text().replace(SLOW, SLOWER))
    return str(repository.path), str(slower.parent)


def create_environment(folder):
    """Another virtual environment that sees our packages; its interpreter."""
    venv.create(folder, with_pip=False)
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "ours.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    return str(folder / "bin" / "python")


def lanes(roots, interpreter=sys.executable, model="small"):
    return tuple(Lane(interpreter, root, model) for root in roots)


@pytest.fixture(scope="module")
def duet():
    """One process for all tests that leave it alive."""
    with Duet([sys.executable], Setting(input_size=16)) as one:
        yield one


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_two_source_trees_live_in_one_process_and_each_runs_its_own_code(duet, two_roots, mode, monkeypatch):
    monkeypatch.setattr(duet, "setting", Setting(mode=mode, input_size=16))
    pair = measure_pair(duet, lanes(two_roots), batch_size=2, seconds=0.5, seed=0)
    back = measure_pair(duet, lanes(two_roots[::-1]), batch_size=2, seconds=0.5, seed=1)
    assert min(pair.log_ratios()) > 0.7
    assert min(pair.log_ratios("cpu_seconds")) > 0.7
    assert max(back.log_ratios()) < -0.7
    assert len(pair.quads) >= 4
    orders = ["".join("AB"[block.lane] for block in quad.blocks) for quad in pair.quads]
    assert {"ABBA", "BAAB"} == set(orders)
    assert all(block.seconds > 0 and block.cpu_seconds > 0 for quad in pair.quads for block in quad.blocks)


def test_two_interpreters_get_a_process_each(two_roots, tmp_path):
    other = create_environment(tmp_path / "other")
    both = (Lane(sys.executable, two_roots[0], "small"), Lane(other, two_roots[1], "small"))
    with Duet([lane.interpreter for lane in both], Setting(input_size=16)) as duet:
        pair = measure_pair(duet, both, 2, 0.5, seed=0)
    assert min(pair.log_ratios()) > 0.7


def test_a_network_that_prints_does_not_break_the_answers(duet, repository):
    repository.replace("zoo/__init__.py", "    def forward(self, x):", "    def forward(self, x):\n        print('{}')")
    assert measure_pair(duet, lanes([str(repository.path)] * 2), 1, 0.1, seed=0).quads


def test_an_error_in_a_network_is_told_and_the_process_goes_on(duet, repository):
    root = str(repository.path)
    with pytest.raises(WorkerError, match="no_such") as raised:
        measure_pair(duet, lanes([root] * 2, model="no_such"), 1, 0.1, seed=0)
    assert raised.value.kinds[0] == "KeyError"
    assert measure_pair(duet, lanes([root] * 2), 1, 0.1, seed=0).quads


def test_a_process_that_dies_is_told_with_what_it_said(repository):
    dying = "    def forward(self, x):\n        import os; os.write(2, b'no memory'); os._exit(7)"
    repository.replace("zoo/__init__.py", "    def forward(self, x):", dying)
    with Duet([sys.executable], Setting()) as duet:
        process = next(iter(duet._workers.values()))._process
        with pytest.raises(WorkerError, match="status 7: no memory"):
            measure_pair(duet, lanes([str(repository.path)] * 2), 1, 0.1, seed=0)
    assert process.poll() == 7


def test_an_interpreter_without_torch_is_refused(tmp_path):
    venv.create(tmp_path / "bare", with_pip=False)
    bare = WorkerProcess(str(tmp_path / "bare" / "bin" / "python"), Setting())
    with bare, pytest.raises(InterpreterError, match="It needs torch"):
        bare.wait()
    without_device = WorkerProcess(sys.executable, Setting(device="cuda:99"))
    with without_device, pytest.raises(InterpreterError, match="cannot measure on cuda:99"):
        without_device.wait()
    with pytest.raises(InterpreterError, match="does not run"):
        WorkerProcess(str(tmp_path / "nothing"), Setting())


def test_a_process_ends_with_its_duet_whatever_it_does(repository):
    endless = "    def forward(self, x):\n        while True: pass"
    repository.replace("zoo/__init__.py", "    def forward(self, x):", endless)
    with Duet([sys.executable], Setting()) as duet:
        process = next(iter(duet._workers.values()))._process
        specification = {"root": str(repository.path), "model": "small", "options": {}, "mode": "infer"}
        specification |= {"batch_size": 1, "input_size": 16, "num_classes": 10, "dtype": "float32"}
        specification |= {"channels_last": False, "compile": False}
        command = {"do": "build", "lanes": [specification], "order": [0], "padding": [0]}
        process.stdin.write(json.dumps(command) + "\n")
        process.stdin.flush()
        assert process.poll() is None
    assert process.poll() == -signal.SIGKILL


def quad(base, head, flags=()):
    blocks = (Block(0, base, base, 0), Block(1, head, head, 0), Block(1, head, head, 0), Block(0, base, base, 0))
    return Quad(blocks, tuple(flags))


def test_log_ratio_by_hand():
    assert quad(0.02, 0.03).log_ratio() == pytest.approx(math.log(1.5))
    # A drift that doubles the time from block to block hits both sides alike.
    drifting = Quad(tuple(Block(lane, 0.01 * 2**i, 0.01, 0) for i, lane in enumerate((0, 1, 1, 0))), ())
    assert drifting.log_ratio() == pytest.approx(0)


def test_a_block_that_had_to_wait_is_marked():
    assert preemption_flags([(0.03, 0.0299), (0.03, 0.03)]) == set()
    assert preemption_flags([(0.03, 0.0299), (0.06, 0.03)]) == {"preempted"}


def pair_of(*quads):
    return PairSample(quads, steps=(1, 1), step_seconds=(0.02, 0.02), seconds=1.0, notices=())


def test_disturbed_quads_are_kept_and_left_out_only_where_enough_are_clean():
    clean, hit = quad(0.02, 0.02), quad(0.02, 0.09, ["preempted"])
    mostly_clean = pair_of(clean, hit, clean, clean)
    assert (len(mostly_clean.quads), mostly_clean.disturbed, len(mostly_clean.counted())) == (4, 1, 3)
    assert max(mostly_clean.log_ratios()) == pytest.approx(0)
    mostly_hit = pair_of(clean, hit, hit, hit)
    assert (mostly_hit.disturbed, len(mostly_hit.counted())) == (3, 4)
