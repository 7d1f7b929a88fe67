"""Trackers: other programs' ways to look at curves. One so far, TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.config import RunConfig
from bench.errors import ConfigError
from bench.records import RunRecord

TRACKERS = ("tensorboard",)


class TensorBoardLog:
    """A `bench.runner.Display` that writes scalars to ``RESULTS/tensorboard/RUN_ID``, by step of training."""

    def __init__(self, results: str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "--tracker tensorboard needs the package tensorboard. Install it: pip install 'zoobench[tensorboard]'."
            ) from error
        self._create, self._folder = SummaryWriter, Path(results) / "tensorboard"

    def loading(self, what: str, done: int, total: int) -> None:
        """Not a curve."""

    def begin(self, runs: list[RunConfig], done: list[RunRecord]) -> None:
        """Not a curve."""

    def run_begins(self, config: RunConfig) -> None:
        """Each run has its own folder."""
        self._writer = self._create(str(self._folder / config.run_id))

    def run_goes_on(self, event: dict[str, Any]) -> None:
        """Write the row's figures."""
        if event["event"] == "row":
            row = event["row"]
            for name, value in row.items():
                if name not in ("epoch", "step") and value is not None:
                    self._writer.add_scalar(name, value, row["step"])

    def run_ends(self, record: RunRecord) -> None:
        """Write what the run came to."""
        for name in ("test_top1", "test_miou", "test_loss", "throughput_img_per_s", "train_throughput_img_per_s"):
            if (value := record.metrics.get(name)) is not None:
                self._writer.add_scalar(name, value, record.metrics["steps"])
        self._writer.close()

    def close(self) -> None:
        """Every run has closed its writer; an interrupted one loses nothing that was flushed."""


def create_tracker(name: str, results: str) -> TensorBoardLog:
    """The tracker of that name. Raises `ConfigError` if there is none, or its package is missing."""
    if name not in TRACKERS:
        raise ConfigError(f"--tracker {name!r} is not known. Possible: {', '.join(TRACKERS)}.")
    return TensorBoardLog(results)
