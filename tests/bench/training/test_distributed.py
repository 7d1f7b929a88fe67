"""Two ranks train, evaluate and resume as one process does, or as torch's own data parallelism."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("two_ranks.py")
ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the program forks")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    code = f"import sys, runpy; sys.path.insert(0, {str(ROOT)!r}); sys.argv = sys.argv[1:]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, str(PROGRAM), str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text())


def close(gradients):
    return [each if each is None else pytest.approx(each, rel=1e-4, abs=1e-7) for each in gradients]


def test_slices_of_an_odd_batch_give_the_gradient_of_its_mean(found):
    gradients = found["gradients"]
    assert gradients["images"] == 33
    assert gradients["sizes"] == [16, 33]
    assert gradients["together"]["gradients"] == close(gradients["alone"]["gradients"])
    assert gradients["together"]["loss"] == pytest.approx(gradients["alone"]["loss"], rel=1e-5)
    *reached, weight, bias = gradients["together"]["gradients"]
    assert None not in reached  # also of the layer that only the first rank's images reach
    assert weight is bias is None  # so that weight decay leaves alone what nothing reaches, as with one process


def test_the_gradients_are_those_of_torch_s_own_data_parallelism(found):
    assert found["gradients"]["as_ddp"] == close(found["gradients"]["ddp"])


def test_a_rank_that_runs_out_of_memory_halves_the_micro_batch_of_all(found):
    ranks = found["gradients"]["out_of_memory"]
    assert [rank["micro_batch_size"] for rank in ranks] == [5, 5]  # 17, 9, 5
    for rank in ranks:
        assert rank["gradients"] == close(found["gradients"]["alone"]["gradients"])


def test_an_evaluation_is_that_of_one_process_to_the_last_bit(found):
    evaluations = found["evaluations"]
    assert evaluations["equal"]
    assert evaluations["same_predictions"] == [True, True, True]
    assert evaluations["images"] == 100


def test_a_resumed_training_with_dropout_and_batch_norm_ends_as_one_that_never_stopped(found):
    resumed = found["resumed"]
    assert resumed["interrupted_at"] == 3
    first, second = resumed["whole"]
    assert first == second
    assert resumed["resumed"] == [first, first]


def test_under_a_budget_of_seconds_the_first_rank_s_clock_decides_for_all(found):
    first, second = found["seconds"]
    assert first == second
    assert first["steps"] > 0
