"""Trackers: other programs' ways to look at curves. One so far, TensorBoard."""

from __future__ import annotations

from pathlib import Path

from bench.errors import ConfigError
from bench.events import Event, Row, RunBegins, RunEnds
from bench.records import is_local

TRACKERS = ("tensorboard",)
FINAL = ("test_top1", "test_miou", "test_loss", "throughput_img_per_s", "train_throughput_img_per_s")


class TensorBoardLog:
    """An observer that writes scalars to ``RESULTS/tensorboard/RUN_ID``, by step of training."""

    def __init__(self, results: str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "--tracker tensorboard needs the package tensorboard. Install it: pip install 'zoobench[tensorboard]'."
            ) from error
        if not is_local(results):
            raise ConfigError(f"--tracker tensorboard needs a folder of this machine for --results, not {results!r}.")
        self._create, self._folder = SummaryWriter, Path(results) / "tensorboard"
        self._writers: dict[str, SummaryWriter] = {}
        self._begun = ""

    def on(self, event: Event) -> None:
        """Write a run's scalars into a folder of its own; an interrupted run keeps what was flushed."""
        match event:
            case RunBegins(config):
                self._begun = config.run_id
                self._writers[self._begun] = self._create(str(self._folder / config.run_id))
            case Row(row, _, run_id):
                writer = self._writers[run_id or self._begun]
                for name, value in row.items():
                    if name not in ("epoch", "step") and value is not None:
                        writer.add_scalar(name, value, row["step"])
            case RunEnds(record):
                writer = self._writers.pop(record.run_id)
                for name in FINAL:
                    if (final := record.metrics.get(name)) is not None:
                        writer.add_scalar(name, final, record.metrics["steps"])
                writer.close()


def create_tracker(name: str, results: str) -> TensorBoardLog:
    """The tracker of that name. Raises `ConfigError` if there is none, or its package is missing."""
    if name not in TRACKERS:
        raise ConfigError(f"--tracker {name!r} is not known. Possible: {', '.join(TRACKERS)}.")
    return TensorBoardLog(results)
