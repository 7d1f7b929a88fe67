"""Runs as tasks of Ray: on a cluster of several nodes on this machine, one of which is lost."""

import pytest

from bench.config import load_plan
from bench.errors import ConfigError, DataError
from bench.events import Phase, Row, RunBegins, RunEnds
from bench.records import read_records
from bench.runs.ray_executor import RayExecutor
from bench.runs.runner import run_plan
from zoo import UnknownModelError

pytest.importorskip("ray")
from ray.cluster_utils import Cluster

FAST = {
    "recipe": {"base": "quick", "batch_size": 20},
    "measure": {"seconds": 0.05, "block_seconds": 0.001, "batch_size": 2, "probes": False},
    "models": ["lenet5", "simple_cnn"],
    "limit_train": 60,
    "limit_test": 20,
    "threads": 1,
    "budget": {"epochs": 2},
}


def start_cluster(tries=3):
    """Ray gives its own processes thirty seconds to start, which a busy machine may not."""
    try:
        return Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    except Exception as error:
        if tries == 1 or "timed out during startup" not in str(error):
            raise
    return start_cluster(tries - 1)


@pytest.fixture(scope="module")
def cluster():
    """A head without processors, and two nodes of one each."""
    started = start_cluster()
    try:
        yield started
    finally:
        started.shutdown()


class WhenARunEnds:
    def __init__(self, action):
        self.action = action

    def on(self, event):
        if isinstance(event, RunEnds) and self.action is not None:
            self.action, action = None, self.action
            action()


class Seen:
    """Keeps the events of each run."""

    def __init__(self):
        self.events = []

    def on(self, event):
        self.events.append(event)

    def of(self, run_id):
        owners = {RunBegins: lambda event: event.config.run_id, RunEnds: lambda event: event.record.run_id}
        ids = [owners.get(type(event), lambda event: getattr(event, "run_id", None))(event) for event in self.events]
        return [event for event, own in zip(self.events, ids, strict=True) if own == run_id]


def numbers(results):
    records, damaged = read_records(results)
    assert damaged == []
    keys = ("test_top1", "test_loss", "weights_sha256", "steps", "macs")
    return {record.run_id: tuple(record.metrics[key] for key in keys) for record in records}


def test_a_node_is_lost_and_all_runs_are_there_once_with_the_undisturbed_numbers(cluster, tmp_path):
    plan = load_plan("quick", FAST | {"seeds": [0, 1]})
    run_plan(plan, str(tmp_path / "whole"))
    lost, _ = (cluster.add_node(num_cpus=1) for _ in range(2))
    seen = Seen()
    outcome = run_plan(
        plan,
        str(tmp_path / "ray"),
        [seen, WhenARunEnds(lambda: cluster.remove_node(lost, allow_graceful=False))],
        executor=RayExecutor(cluster.address),
        checkpoint_seconds=0.0,
    )
    assert [record.status for record in outcome.records] == ["completed"] * 4
    assert numbers(tmp_path / "ray") == numbers(tmp_path / "whole")
    assert not list((tmp_path / "ray").glob("earlier/*"))
    for record in outcome.records:
        kinds = [type(event).__name__ for event in seen.of(record.run_id)]
        assert kinds[0] == "RunBegins"
        assert kinds[-1] == "RunEnds"
        assert (kinds.count("RunBegins"), kinds.count("RunEnds")) == (1, 1)
        epochs = [event.row["epoch"] for event in seen.of(record.run_id) if isinstance(event, Row)]
        assert epochs[-1] == 1
        assert {event.phase for event in seen.of(record.run_id) if isinstance(event, Phase)} >= {"train", "test"}
        attempts = record.environment["attempts"]
        assert attempts
        assert all(attempt["node"] for attempt in attempts)


def test_data_that_no_node_has_is_a_placement_error_and_leaves_no_record(cluster, tmp_path):
    plan = load_plan("quick", FAST | {"data": f"folder:{tmp_path / 'nowhere'}"})
    with pytest.raises(DataError, match=r"no machine of the cluster has the data.*nowhere"):
        run_plan(plan, str(tmp_path / "plan"), executor=RayExecutor(cluster.address))
    assert read_records(tmp_path / "plan") == ([], [])


def test_what_the_user_has_written_wrongly_is_one_line(cluster, tmp_path):
    plan = load_plan("quick", FAST | {"models": ["resnet19"]})
    with pytest.raises(UnknownModelError, match="resnet19") as raised:
        run_plan(plan, str(tmp_path), executor=RayExecutor(cluster.address))
    assert "\n" not in str(raised.value)


def test_a_cluster_that_is_not_there_and_a_gpu_that_no_node_has_are_refused(cluster, tmp_path):
    plan = load_plan("quick", FAST | {"device": "cuda"})
    with pytest.raises(ConfigError, match="no machine of the Ray cluster has a GPU"):
        run_plan(plan, str(tmp_path), executor=RayExecutor(cluster.address))
    for asked in ({"threads": 64}, {"threads": 16, "nproc": 4}):
        with pytest.raises(ConfigError, match=r"needs 64 CPUs on one machine, and the largest"):
            run_plan(load_plan("quick", FAST | asked), str(tmp_path), executor=RayExecutor(cluster.address))
    with pytest.raises(ConfigError, match=r"no Ray cluster to be reached at --address '127.0.0.1:1'"):
        run_plan(plan, str(tmp_path), executor=RayExecutor("127.0.0.1:1"))
