"""Two networks timed in turn by real processes."""

import dataclasses
import json
import math
import signal
import sys
import venv

import pytest
import torch

from bench.gate.timing.interference import Interference, preemption_flags
from bench.gate.timing.pair import BLOCK_SECONDS, SLICE_SECONDS, BlockWork, Built, measure_pair, open_fresh_pair
from bench.gate.timing.process import InterpreterError, WorkerError, WorkerProcess
from bench.gate.timing.sample import Abba, Block, PairSample, step_ms
from bench.gate.timing.subject import Setting, Subject
from bench.gate.timing.worker import Commands

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


def subjects(roots, model="small"):
    return tuple(Subject(model, root=root) for root in roots)


SETTING = Setting(input_size=16)


@pytest.fixture(scope="module")
def workers():
    """One process for all tests that leave it alive."""
    with open_fresh_pair([sys.executable], SETTING) as one:
        yield one


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_two_source_trees_live_in_one_process_and_each_runs_its_own_code(workers, two_roots, mode):
    workers = dataclasses.replace(workers, setting=Setting(mode=mode, input_size=16))
    pair = measure_pair(workers, subjects(two_roots), batch_size=2, seconds=0.5, seed=0)
    back = measure_pair(workers, subjects(two_roots[::-1]), batch_size=2, seconds=0.5, seed=1)
    assert min(pair.log_ratios()) > 0.7
    assert min(pair.log_ratios("cpu_seconds")) > 0.7
    assert max(back.log_ratios()) < -0.7
    assert len(pair.abba) >= 4
    orders = ["".join("AB"[block.subject] for block in abba.blocks) for abba in pair.abba]
    assert {"ABBA", "BAAB"} == set(orders)
    assert all(block.seconds > 0 and block.cpu_seconds > 0 for abba in pair.abba for block in abba.blocks)


def test_two_interpreters_get_a_process_each(two_roots, tmp_path):
    other = create_environment(tmp_path / "other")
    both = (Subject("small", root=two_roots[0]), Subject("small", interpreter=other, root=two_roots[1]))
    with open_fresh_pair([subject.interpreter for subject in both], SETTING) as workers:
        pair = measure_pair(workers, both, 2, 0.5, seed=0)
    assert min(pair.log_ratios()) > 0.7


def test_a_network_that_prints_does_not_break_the_answers(workers, repository):
    repository.replace("zoo/__init__.py", "    def forward(self, x):", "    def forward(self, x):\n        print('{}')")
    assert measure_pair(workers, subjects([str(repository.path)] * 2), 1, 0.1, seed=0).abba


def test_an_error_in_a_network_is_reported_and_the_process_goes_on(workers, repository):
    root = str(repository.path)
    with pytest.raises(WorkerError, match="no_such") as raised:
        measure_pair(workers, subjects([root] * 2, model="no_such"), 1, 0.1, seed=0)
    assert raised.value.kinds[0] == "KeyError"
    assert measure_pair(workers, subjects([root] * 2), 1, 0.1, seed=0).abba


def test_a_process_that_dies_is_reported_with_what_it_said(repository):
    dying = "    def forward(self, x):\n        import os; os.write(2, b'no memory'); os._exit(7)"
    repository.replace("zoo/__init__.py", "    def forward(self, x):", dying)
    with open_fresh_pair([sys.executable], Setting()) as workers:
        process = next(iter(workers.workers.values()))._process._process
        with pytest.raises(WorkerError, match="status 7: no memory"):
            measure_pair(workers, subjects([str(repository.path)] * 2), 1, 0.1, seed=0)
    assert process.wait() == 7


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


def test_a_process_ends_with_its_pair_whatever_it_does(repository):
    endless = "    def forward(self, x):\n        while True: pass"
    repository.replace("zoo/__init__.py", "    def forward(self, x):", endless)
    with open_fresh_pair([sys.executable], SETTING) as workers:
        process = next(iter(workers.workers.values()))._process
        subject = Subject("small", root=str(repository.path)).to_worker(SETTING)
        process.send(json.dumps({"do": "build", "subjects": [subject], "order": [0], "padding": [0]}))
    assert process.wait() == -signal.SIGKILL


def abba(base, head, flags=()):
    blocks = (Block(0, base, base, 0), Block(1, head, head, 0), Block(1, head, head, 0), Block(0, base, base, 0))
    return Abba(blocks, tuple(flags))


def test_log_ratio_by_hand():
    assert abba(0.02, 0.03).log_ratio() == pytest.approx(math.log(1.5))
    # A drift that doubles the time from block to block hits both sides alike.
    drifting = Abba(tuple(Block(subject, 0.01 * 2**i, 0.01, 0) for i, subject in enumerate((0, 1, 1, 0))), ())
    assert drifting.log_ratio() == pytest.approx(0)


def test_a_block_that_had_to_wait_is_marked():
    assert preemption_flags([(0.03, 0.0299), (0.03, 0.03)]) == set()
    assert preemption_flags([(0.03, 0.0299), (0.06, 0.03)]) == {"preempted"}


def pair_of(*sequences):
    return PairSample(sequences, steps=(1, 1), step_seconds=(0.02, 0.02), seconds=1.0, notices=())


def test_disturbed_blocks_are_kept_and_left_out_only_where_enough_are_clean():
    clean, hit = abba(0.02, 0.02), abba(0.02, 0.09, ["preempted"])
    mostly_clean = pair_of(clean, hit, clean, clean)
    assert (len(mostly_clean.abba), mostly_clean.disturbed, len(mostly_clean.counted())) == (4, 1, 3)
    assert max(mostly_clean.log_ratios()) == pytest.approx(0)
    mostly_hit = pair_of(clean, hit, hit, hit)
    assert (mostly_hit.disturbed, len(mostly_hit.counted())) == (3, 4)


def test_the_median_step_of_either_subject():
    pairs = [dataclasses.replace(pair_of(abba(0.02, 0.09), abba(0.04, 0.09)), steps=(2, 3)), pair_of()]
    assert step_ms(pairs) == pytest.approx((15, 30))
    assert step_ms([]) is None


def test_a_network_that_reads_values_when_it_is_built_is_counted_all_the_same(repository, workers):
    """The meta device has no values: such a network is counted with its weights."""
    repository.replace("zoo/__init__.py", "self.stem =", "torch.linspace(0, 1, 2).sum().item(); self.stem =")
    (worker,) = workers.workers.values()
    subject = Subject("small", root=str(repository.path)).to_worker(SETTING)
    counted = worker.ask("count", subject=subject)
    assert counted["params"] == 3 * 8 * 9 + 8 + 8 * 8 * 9 + 8 + 8 * 10 + 10


class Stepper(Commands):
    """A worker of this process whose two subjects write down when they step."""

    def __init__(self):
        super().__init__()
        self.log = []
        self._device = torch.device("cpu")
        self._steps = [(None, lambda: self.log.append("A")), (None, lambda: self.log.append("B"))]

    def ask(self, command, **arguments):
        return getattr(self, command)(**arguments)


def test_the_blocks_of_an_abba_take_turns_slice_by_slice_and_add_up():
    worker = Stepper()
    built = Built({0: (worker, 0), 1: (worker, 1)}, (0.001, 0.001), SETTING, in_process=True)
    four = built.measure_abba(BlockWork((2, 3), turns=4), (0, 1, 1, 0), Interference())
    assert "".join(worker.log) == "AABBBBBBAA" * 4
    assert [block.subject for block in four.blocks] == [0, 1, 1, 0]
    assert all(block.seconds > 0 for block in four.blocks)
    assert BlockWork((2, 3), turns=4).block_steps == (8, 12)


def test_what_a_worker_does_between_slices_is_not_taken_for_other_programs(monkeypatch):
    """As another revision's modules are put in place of the first one's."""

    class Busy(Stepper):
        def take_turns(self, order, steps, turns):
            return {
                "blocks": [{"seconds": 0.02, "cpu_seconds": 0.02, "involuntary_switches": 0} for _ in order],
                "cpu_seconds": 0.12,
            }

    seen = []
    monkeypatch.setattr(Interference, "add", lambda self, before, after, own: seen.append(own) or set())
    Built({0: (Busy(), 0), 1: (Busy(), 1)}, (0.001, 0.001), SETTING, in_process=False).measure_abba(
        BlockWork((2, 3), turns=4), (0, 1, 1, 0), Interference()
    )
    assert seen == [0.12]


@pytest.mark.parametrize("seconds", [(1e-5, 1e-5), (1e-4, 3e-4), (0.002, 0.003), (0.05, 0.02)])
@pytest.mark.parametrize("equal", [True, False])
def test_what_fills_a_block(seconds, equal):
    one, other = object(), object()
    work = Built({0: (one, 0), 1: (one, 1)}, seconds, Setting()).choose_work(equal=equal)
    slices = [count * each for count, each in zip(work.steps, seconds, strict=True)]
    assert (work.steps[0] == work.steps[1]) if equal else max(slices) <= 1.5 * max(SLICE_SECONDS, *seconds)
    assert work.turns * max(slices) <= 1.5 * max(BLOCK_SECONDS, *seconds)
    assert work.turns * max(slices) >= BLOCK_SECONDS / 1.5
    # Two processes, or a GPU with its queue, are too slow to take turns within a block.
    apart = Built({0: (one, 0), 1: (other, 0)}, seconds, Setting()).choose_work(equal=equal)
    on_gpu = Built({0: (one, 0), 1: (one, 1)}, seconds, Setting(device="cuda")).choose_work(equal=equal)
    assert apart == on_gpu
    assert apart.turns == 1
