"""What every run of a network does, whether it trains the network or finds it trained."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import datetime
import json
import time
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from bench.config import MeasureConfig
from bench.device import is_out_of_memory, multiplies_bfloat16
from bench.events import Emit, Note, Phase
from bench.machine import describe_environment, peak_resident_bytes
from bench.nvml import watching
from bench.records import Flag, Kind, RunFailure, RunRecord, Status, stored_path, write_atomically
from bench.runs.checks import has_finite_logits, takes_layout
from bench.runs.determinism import deterministic_algorithms
from bench.runs.locks import MachineLock
from bench.runs.tuning import Choices, start_form
from bench.training.weights import hash_weights

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from bench.data.augment import BatchStream, Resize
    from bench.data.mosaic import MosaicStream
    from bench.data.sources import Dataset, MosaicLayout
    from bench.timing.setting import Setting
    from bench.timing.speed import CreateTrainingStep
    from bench.training.distributed import Ranks
    from bench.training.evaluation import Evaluation
    from zoo.pretrained import Preprocessing

    Stream = BatchStream | MosaicStream
    Images = tuple[Tensor, Tensor]

DENSE_EVALUATION_BATCH_SIZE = 50
REPEATED = ("train", "test")
"""Phases that give the same bits for the same seed."""
PROBE_IMAGES = 32
PROBE_REPEATS = 3


class Config(Choices, Protocol):
    """What the configuration of a run says, with or without training."""

    @property
    def run_id(self) -> str:
        """The record's name."""

    @property
    def model(self) -> str:
        """The architecture's name."""

    @property
    def input_size(self) -> int:
        """The side in pixels of the images as they are decoded."""

    @property
    def data_sha256(self) -> str:
        """The hash of the data set's content."""

    @property
    def measure(self) -> MeasureConfig:
        """How speed is measured."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """The configuration as plain values."""


class NetworkRun(abc.ABC):
    """The stages that runs share, and what they have found so far: what a failure leaves is kept."""

    device: torch.device
    input_size: int
    """The side in pixels of the images as the network takes them."""

    def __init__(
        self, config: Config, results: str, emit: Emit, ranks: Ranks | None = None, several: bool = False
    ) -> None:
        from bench.training.distributed import ALONE

        self.config, self.results, self.emit = config, results, emit
        self.ranks = ranks or ALONE
        self.metrics: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.samples: dict[str, Any] = {}
        self.flags: list[Flag] = []
        self.form = start_form(config)
        self.environment: dict[str, Any] = {}
        self.ran_out_of_memory = False
        """Whether that is what the run failed of."""
        self.machine = MachineLock(lambda: emit(Phase("waiting_for_the_machine")), wanted=several)

    @abc.abstractmethod
    def execute(self) -> Status:
        """All stages in turn. Returns the record's status."""

    @abc.abstractmethod
    def model_options(self) -> dict[str, Any]:
        """What the run asks of the architecture's builder."""

    def to_record(self) -> RunRecord:
        """Execute, and put what was found into a record, not saved yet; an exception gives one of status ``failed``.

        Among several ranks an exception is raised: none of them can go on, and their launcher has to know.
        """
        started = datetime.datetime.now(datetime.UTC)
        clock = time.perf_counter()
        status: Status = "failed"
        failure: RunFailure | None = None
        try:
            status = self.execute()
        except Exception as error:
            self.ran_out_of_memory = is_out_of_memory(error)
            if self.ranks.size > 1:
                raise
            failure = RunFailure(kind=type(error).__name__, message=str(error), traceback=traceback.format_exc())
        self.metrics["wall_seconds"] = time.perf_counter() - clock - self.machine.waited_seconds
        return RunRecord(
            run_id=self.config.run_id,
            status=status,
            config=self.config.model_dump(mode="json"),
            environment=self.environment | {"started_at": started.isoformat(timespec="microseconds")},
            metrics=self.metrics,
            history=self.history,
            samples=self.samples,
            flags=self.flags,
            error=failure,
        )

    def _use_device(self, device: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.device = torch.device(device)
        self.environment |= describe_environment(device, threads)
        if self.device.type == "cuda" and not multiplies_bfloat16(device):
            used = "autocast emulates it, slowly" if self.config.autocast is True else "float32 was used"
            used += ", unless autocast was timed to be faster" if self.config.autocast == "auto" else ""
            self.flags.append(Flag(kind="no_bfloat16", phase="load", message=f"this GPU lacks bfloat16: {used}"))

    def _create_model(self, dataset: Dataset, pretrained: bool | str) -> nn.Module:
        """The network for the data set, on the device in the wanted memory format."""
        import zoo
        from bench.training.dense import ImageLogits
        from zoo.pretrained import loaded_weights

        options = self.model_options()
        model = zoo.create_model(self.config.model, len(dataset.classes), self.input_size, 3, pretrained, **options)
        if (loaded := loaded_weights(model)) is not None:
            self.environment["weights"] = dataclasses.asdict(loaded)
            self.emit(Note(loaded.summary()))
        if zoo.model_info(self.config.model).task == "segmentation" and dataset.mosaic is None:
            model = ImageLogits(model)
        return model.to(self.device).to(memory_format=self._memory_format())

    def _takes_layout(self, model: nn.Module, stream: Stream, num_classes: int, *, training: bool = True) -> bool:
        return takes_layout(
            model,
            next(stream.in_order()),
            num_classes,
            autocast=self.form.autocast,
            channels_last=self.form.channels_last,
            flags=self.flags,
            training=training,
        )

    def _prepare_images(self, dataset: Dataset, splits: dict[str, Images], prepared: Preprocessing | None) -> None:
        """Normalise and resize as ``prepared`` says, or by the statistics of ``train``; note both, and the splits.

        ``splits`` are uint8 images ``N×C×H×W`` and their labels.
        """
        from bench.data.augment import Normalization, Resize

        self.resize: Resize | None = None
        if prepared is None:
            self.normalization = Normalization.of(splits["train"][0])
        else:
            mean, std = (tuple(255 * value for value in each) for each in (prepared.mean, prepared.std))
            mode = "bicubic" if prepared.interpolation in ("bicubic", "lanczos") else "bilinear"
            self.normalization = Normalization(mean, std)
            if self.input_size != self.config.input_size:
                self.resize = Resize(self.input_size, mode)
        self.environment["data"] = {
            "name": dataset.name,
            "sha256": dataset.sha256,
            "classes": list(dataset.classes),
            "mean": self.normalization.mean,
            "std": self.normalization.std,
            "input_size": self.input_size,
        } | {name: len(splits[name][1]) if name in splits else 0 for name in ("train", "val", "test")}

    def _batches(self, images: Images, batch_size: int, **training: Any) -> BatchStream:
        from bench.data.augment import BatchStream

        return BatchStream(
            *images,
            batch_size,
            self.normalization,
            resize=self.resize,
            device=self.device,
            channels_last=self.form.channels_last,
            **training,
        )

    def _canvases(self, layout: MosaicLayout, images: Images, batch_size: int, **training: Any) -> MosaicStream:
        from bench.data.mosaic import MosaicStream

        return MosaicStream(
            *images,
            batch_size,
            self.normalization,
            layout=layout,
            device=self.device,
            channels_last=self.form.channels_last,
            **training,
        )

    def _evaluation_batches(self, dataset: Dataset, images: Images, batch_size: int) -> Stream:
        if dataset.mosaic is not None:
            return self._canvases(dataset.mosaic, images, DENSE_EVALUATION_BATCH_SIZE)
        return self._batches(images, batch_size)

    def _count(self, num_classes: int) -> None:
        import zoo
        from bench.counting.complexity import count_complexity

        model = zoo.create_meta_model(self.config.model, num_classes, self.input_size, **self.model_options())
        counts = count_complexity(model, (1, 3, self.input_size, self.input_size))
        self.metrics |= {
            "params": counts.params,
            "macs": counts.macs,
            "flops": counts.flops,
            "activations": counts.activations,
            "macs_torch": counts.macs_torch,
        }
        if counts.disagreements:
            self.metrics["macs_disagreements"] = ", ".join(counts.disagreements)
        if counts.uncounted:
            self.metrics["macs_uncounted"] = ", ".join(counts.uncounted)

    def _evaluate(
        self, model: nn.Module, stream: Stream, num_classes: int, views: tuple[bool, int, float], split: str
    ) -> Evaluation | None:
        """Loss, accuracy, confusion and calibration on a split; returns None if logits are not finite."""
        from bench.training.evaluation import evaluate

        with self._phase("test"):
            evaluation = evaluate(model, stream, num_classes, self.form.autocast, *views, self.ranks)
        if not has_finite_logits(evaluation, split, "test", self.flags):
            return None
        if evaluation.single_view_top1 is not None and evaluation.miou is None:
            self.metrics[f"{split}_single_view_top1"] = evaluation.single_view_top1
        if evaluation.miou is None:
            self.metrics |= {f"{split}_top1": evaluation.top1}
        else:  # under names of their own: pixels and images are not to be ranked together
            self.metrics |= {f"{split}_miou": evaluation.miou, f"{split}_pixel_accuracy": evaluation.top1}
        self.metrics |= {f"{split}_loss": evaluation.loss, "weights_sha256": hash_weights(model)}
        self.samples |= {f"{split}_confusion": evaluation.confusion, f"{split}_calibration": evaluation.calibration}
        return evaluation

    def _save_predictions(self, evaluation: Evaluation, images: NDArray[np.uint8]) -> None:
        """Keep the answers for the test images, if they have one label each."""
        from bench.runs.predictions import save_predictions

        if evaluation.predictions is not None:
            save_predictions(self.results, self.config.run_id, evaluation.predictions, images, self.config.data_sha256)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Have the machine alone, for what is timed, where several runs are done at once.

        The record says from when to when, and how long it was waited for; where there can be no lock, a flag does.
        """
        if not self.machine.wanted:
            yield
            return
        with self.machine.alone():
            began = _now()
            yield
            self.environment["alone"] = {"from": began, "to": _now(), "waited_seconds": self.machine.waited_seconds}
        if self.machine.problem:
            message = f"no other run was kept from this machine meanwhile: {self.machine.problem}"
            self.flags.append(Flag(kind="not_alone", phase="measure", message=message))

    def _measure(
        self, model: nn.Module, modes: tuple[str, ...], create_training_step: CreateTrainingStep | None = None
    ) -> None:
        from bench.timing.speed import Speed, measure_speed

        def announce(phase: str) -> None:
            self.emit(Phase(phase))

        found = Speed(self.metrics, self.samples, self.environment, self.flags)
        measure_speed(model, self._setting(), self.config.measure, found, announce, modes, create_training_step)
        self.metrics["process_peak_memory_bytes"] = peak_resident_bytes()

    def _setting(self) -> Setting:
        """How the network is measured: as it is trained and tested, unless the plan names a precision."""
        from bench.timing.setting import Setting

        return Setting(
            device=self.device,
            input_size=self.input_size,
            channels_last=self.form.channels_last,
            autocast=self.form.autocast,
            dtype=self.config.measure.dtype,
            runtime="compile" if self.form.compile else "eager",
        )

    def _probe(self, model: nn.Module, dataset: Dataset, stream: Stream, images: Any, labels: Any) -> None:
        """Keep, beside the record, the card and what only the live network can tell; for the report.

        A network that labels pixels is asked for an image's mean, and held against what covers most of the canvas.
        """
        import torch

        from bench.counting.card import describe
        from bench.data.mosaic import MosaicStream
        from bench.timing.probes import measure_probes, save_probes
        from bench.training.dense import ImageLogits

        count = min(PROBE_IMAGES, len(labels))
        network, images, labels = model, torch.as_tensor(images[:count]), torch.as_tensor(labels[:count])
        if isinstance(stream, MosaicStream):
            network, (images, maps) = ImageLogits(model), next(stream.fixed_canvases())
            images, labels = images.permute(0, 3, 1, 2)[:count], maps.flatten(1).mode().values[:count]

        def prepare(images: torch.Tensor) -> torch.Tensor:
            return next(self._batches((images, torch.zeros(len(images))), len(images)).in_order())[0]

        with self._phase("probe"):
            card = describe(self.config.model, self.input_size, len(dataset.classes), **self.model_options())
            write_atomically(self._stored("cards"), json.dumps(card.to_dict()))
            try:
                probed = images.to(self.device), labels.to(self.device)
                arrays = measure_probes(network, *probed, prepare, self._setting(), repeats=PROBE_REPEATS)
            except (RuntimeError, ValueError, IndexError) as error:  # a foreign network that cannot be looked into
                self.flags.append(Flag(kind="no_probes", phase="probe", message=f"{type(error).__name__}: {error}"))
            else:
                save_probes(arrays, self._stored("probes"))

    def _stored(self, kind: Kind) -> str:
        return stored_path(self.results, kind, self.config.run_id)

    def _memory_format(self) -> torch.memory_format:
        import torch

        return torch.channels_last if self.form.channels_last else torch.contiguous_format

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Of these phases only training has results that depend on time; measuring looks for disturbance itself.

        On a GPU, training and testing repeat themselves bit for bit; on a CPU they do by themselves.
        """
        from bench.timing.contention import TRAINING_LIMIT, Contention

        self.emit(Phase(name))
        with Contention() as contention, contextlib.ExitStack() as stack:
            if self.device.type == "cuda" and name in REPEATED:
                stack.enter_context(deterministic_algorithms(name, self.flags))
            if name == "train":
                stack.enter_context(watching(str(self.device), name, self.flags))
            yield
        if name == "train":
            self.flags += contention.flags(name, TRAINING_LIMIT, f"above {TRAINING_LIMIT:.0%}")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat()
