"""One run: its configuration in, its record out. The job that an executor gives to a process or a cluster.

``python -m bench.job RESULTS`` reads a `Job` as a line of JSON from its standard input, and writes events as lines of
JSON to its standard output: ``{"event": "phase", …}`` and ``{"event": "row", …}``. It ends when its input is closed,
so that it never outlives the process that waits for it.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import faulthandler
import functools
import hashlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

import psutil
from pydantic import BaseModel, ConfigDict

from bench.config import RunConfig
from bench.environment import Disturbance, describe_environment, keep_allocator_pages
from bench.errors import RecordError
from bench.records import Flag, RunFailure, RunRecord, Status, save_record

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bench.data.augment import BatchStream
    from bench.data.sources import Dataset
    from bench.measure.throughput import Throughput
    from zoo.pretrained import Preprocessing

EVALUATION_BATCH_SIZE = 500
Emit = Callable[[dict[str, Any]], None]


class Job(BaseModel):
    """A run's configuration, where its record goes, where data lies, and what asked for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: RunConfig
    results: str
    data_dir: str | None = None
    plan: str = ""
    command: str = ""


def run_job(job: Job, emit: Emit = lambda event: None) -> RunRecord:
    """Do the run and save its record; an exception becomes a record with status ``failed``.

    Raises `RecordError` if the record cannot be saved.
    """
    run = _Run(job, emit)
    started = datetime.datetime.now(datetime.UTC)
    clock = time.perf_counter()
    status: Status = "failed"
    failure: RunFailure | None = None
    try:
        status = run.execute()
    except Exception as error:  # noqa: BLE001 - whatever happens in a run becomes its record
        failure = RunFailure(kind=type(error).__name__, message=str(error), traceback=traceback.format_exc())
    run.metrics["wall_seconds"] = time.perf_counter() - clock
    record = RunRecord(
        run_id=job.config.run_id,
        status=status,
        config=job.config.model_dump(mode="json"),
        environment=run.environment | {"started_at": started.isoformat(timespec="seconds")},
        metrics=run.metrics,
        history=run.history,
        samples=run.samples,
        flags=run.flags,
        error=failure,
    )
    save_record(record, job.results)
    return record


class _Run:
    """The stages of a run, and what they have found so far: what a failure leaves is kept."""

    def __init__(self, job: Job, emit: Emit) -> None:
        self.job, self.config, self.emit = job, job.config, emit
        self.metrics: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.samples: dict[str, Any] = {}
        self.flags: list[Flag] = []
        self.environment: dict[str, Any] = {"plan": job.plan, "command": job.command}

    def execute(self) -> Status:
        """All stages in turn. Returns the record's status."""
        import torch

        import zoo
        from bench.data.sources import load_dataset
        from bench.training.dense import ImageLogits

        config = self.config
        torch.set_num_threads(config.threads)
        if config.device.startswith("cuda"):
            torch.backends.cudnn.deterministic = True
            torch.use_deterministic_algorithms(True, warn_only=True)
        self.device = torch.device(config.device)
        self.prepared = preprocessing_of(config.model, config.pretrained)
        self.input_size = self.prepared.input_size if self.prepared else config.input_size
        self.environment |= describe_environment(config.device, config.threads)

        with self._phase("load"):
            dataset = load_dataset(config.data, size=config.input_size, data_dir=self.job.data_dir)
            if dataset.sha256 != config.data_sha256:
                raise RuntimeError(f"{config.data!r} is not the data set that the run was planned with")
            streams = self._streams(dataset)
            torch.manual_seed(config.seed)
            model = zoo.create_model(config.model, len(dataset.classes), self.input_size, 3, config.pretrained)
            if zoo.model_info(config.model).task == "segmentation":
                model = ImageLogits(model)
            model = model.to(self.device).to(memory_format=self._memory_format())
        self._count(len(dataset.classes))
        if not self._train(model, streams, len(dataset.classes)):
            return "diverged"
        self._test(model, streams, len(dataset.classes))
        self._measure(model, len(dataset.classes))
        self._measure_memory()
        return "completed"

    def _streams(self, dataset: Dataset) -> dict[str, BatchStream]:
        """Batches of ``train`` (augmented), ``val`` (if any is held out) and ``test``."""
        import numpy as np
        import torch

        from bench.data.augment import BatchStream, Normalization, Resize
        from bench.data.sources import hold_out, limit

        config, recipe = self.config, self.config.recipe
        kept = limit(len(dataset.train), config.limit_train)
        labels = np.asarray(dataset.train.labels)[kept]
        train, val = hold_out(labels, config.val_fraction)
        chosen = {"train": (dataset.train, kept[train]), "val": (dataset.train, kept[val])}
        chosen["test"] = (dataset.test, limit(len(dataset.test), config.limit_test))
        tensors = {
            name: (torch.from_numpy(split.images[indices]), torch.from_numpy(split.labels[indices]))
            for name, (split, indices) in chosen.items()
            if len(indices)
        }
        if self.prepared is None:
            normalization, resize = Normalization.of(tensors["train"][0]), None
        else:
            mean, std = (tuple(255 * value for value in each) for each in (self.prepared.mean, self.prepared.std))
            mode = "bicubic" if self.prepared.interpolation in ("bicubic", "lanczos") else "bilinear"
            normalization, resize = Normalization(mean, std), Resize(self.input_size, mode)
        stream = functools.partial(
            BatchStream,
            normalization=normalization,
            resize=resize,
            device=self.device,
            channels_last=config.channels_last,
            seed=config.seed,
        )
        streams = {name: stream(*split, EVALUATION_BATCH_SIZE) for name, split in tensors.items() if name != "train"}
        streams["train"] = stream(
            *tensors["train"], recipe.batch_size, flip=recipe.flip, crop_padding=recipe.crop_padding
        )
        self.environment["data"] = {
            "name": dataset.name,
            "sha256": dataset.sha256,
            "classes": list(dataset.classes),
            "mean": normalization.mean,
            "std": normalization.std,
            "input_size": self.input_size,
        } | {name: len(tensors[name][1]) if name in tensors else 0 for name in ("train", "val", "test")}
        return streams

    def _count(self, num_classes: int) -> None:
        import torch

        import zoo
        from bench.measure.complexity import count_complexity

        with torch.device("meta"):
            model = zoo.create_model(self.config.model, num_classes, self.input_size)
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

    def _train(self, model: nn.Module, streams: dict[str, BatchStream], num_classes: int) -> bool:
        """Train; returns False if the loss was no longer finite."""
        import zoo
        from bench.training.loop import evaluate, fit
        from bench.training.optim import create_optimizer, peak_lr, weight_decay

        config, recipe = self.config, self.config.recipe
        hints = zoo.model_info(config.model).recipe
        lr = peak_lr(recipe, hints.get("lr"), streams["train"].batch_size)
        decay = weight_decay(recipe, hints.get("weight_decay"))
        self.metrics |= {"lr_peak": lr, "weight_decay": decay}
        val = streams.get("val")
        total = config.budget.epochs and config.budget.epochs * len(streams["train"])

        def report(row: dict[str, Any]) -> None:
            share = row["step"] / total if total else row["seconds"] / (config.budget.seconds or 1.0)
            self.emit({"event": "row", "row": row, "share": min(share, 1.0)})

        with self._phase("train"):
            training = fit(
                model,
                create_optimizer(model, recipe, lr, decay),
                streams["train"],
                recipe,
                config.budget,
                autocast=config.autocast,
                evaluate_val=(lambda: evaluate(model, val, num_classes, config.autocast)) if val else None,
                report=report,
            )
        self.history = training.history
        self.metrics |= {
            "train_seconds": training.seconds,
            "epochs": training.epoch,
            "steps": training.step,
            "images_seen": training.images_seen,
        }
        if training.history:
            last = training.history[-1]
            names = ("train_loss", "train_top1", "val_loss", "val_top1")
            self.metrics |= {name: last[name] for name in names if name in last}
        return training.status == "completed"

    def _test(self, model: nn.Module, streams: dict[str, BatchStream], num_classes: int) -> None:
        """Read ``test``, once, with the weights that training ended with."""
        from bench.training.loop import evaluate

        with self._phase("test"):
            evaluation = evaluate(model, streams["test"], num_classes, self.config.autocast)
        self.metrics |= {
            "test_top1": evaluation.top1,
            "test_loss": evaluation.loss,
            "weights_sha256": hash_weights(model),
        }
        self.samples |= {"test_confusion": evaluation.confusion, "test_calibration": evaluation.calibration}

    def _measure(self, model: nn.Module, num_classes: int) -> None:
        import torch

        from bench.measure.throughput import measure_throughput
        from bench.training.loop import synchronize, train_step
        from bench.training.optim import create_optimizer

        config, size = self.config, self.input_size
        batch_size = config.measure.batch_size
        images = torch.randn(batch_size, 3, size, size, device=self.device).to(memory_format=self._memory_format())
        targets = torch.randint(num_classes, (batch_size,), device=self.device)
        model.eval()

        def infer() -> object:
            with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=config.autocast):
                return model(images)

        # Training changes weights and statistics: it is timed on a copy, with steps too small to overflow.
        trained = copy.deepcopy(model).train()
        optimizer = create_optimizer(trained, config.recipe, 1e-6, 0.0)

        def train() -> object:
            return train_step(trained, optimizer, images, targets, config.recipe, config.autocast)

        for phase, prefix, step in (("infer", "", infer), ("train", "train_", train)):
            with self._phase(f"measure_{phase}"):
                measured = measure_throughput(step, batch_size, config.measure, lambda: synchronize(self.device))
            self._keep(phase, prefix, measured)

    def _keep(self, phase: str, prefix: str, measured: Throughput) -> None:
        key = f"{prefix}throughput_img_per_s"
        self.metrics |= {key: measured.img_per_s, f"{key}_low": measured.low, f"{key}_high": measured.high}
        self.metrics |= {f"{prefix}throughput_reached_precision": measured.reached_precision}
        self.samples[f"{phase}_block_seconds"] = measured.block_seconds
        self.metrics[f"{prefix}throughput_steps_per_block"] = measured.steps_per_block
        self.metrics["throughput_batch_size"] = measured.batch_size
        if not measured.has_interval:
            message = f"only {len(measured.block_seconds)} blocks fitted: the interval is their range"
            self.flags.append(Flag(kind="few_blocks", phase=f"measure_{phase}", message=message))

    def _measure_memory(self) -> None:
        """On CUDA the most that tensors held; on a CPU the most that the whole process held, data set included."""
        import torch

        if self.device.type == "cuda":
            self.metrics["peak_memory_bytes"] = torch.cuda.max_memory_allocated(self.device)
        else:
            self.metrics["peak_memory_bytes"] = peak_resident_bytes()

    def _memory_format(self) -> torch.memory_format:
        import torch

        return torch.channels_last if self.config.channels_last else torch.contiguous_format

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        self.emit({"event": "phase", "phase": name})
        with Disturbance(name, self.flags):
            yield


def preprocessing_of(model: str, pretrained: bool | str) -> Preprocessing | None:
    """The preparation of images that belongs to the weights; None where they are the data set's own.

    A state dict for one of our networks, given by its path, is taken to be trained on such images as it will see.
    """
    from zoo.pretrained import preprocessing

    return preprocessing(model) if pretrained is True or (pretrained and "/" in model) else None


def hash_weights(model: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of a model's parameters and buffers."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def peak_resident_bytes() -> int:
    """The most memory that this process ever held."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    """Do the job that standard input holds."""
    keep_allocator_pages()
    faulthandler.enable()
    # Events own the real standard output; what a library prints goes with the errors.
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    job = Job.model_validate_json(sys.stdin.readline())
    threading.Thread(target=_end_with, args=(sys.stdin,), daemon=True).start()

    def emit(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")

    try:
        run_job(job, emit)
    except RecordError as error:
        emit({"event": "unsaved", "message": str(error)})
        sys.exit(error.exit_code)


def _end_with(stream: TextIO) -> None:
    """End this process when the stream is closed: the one who waits for the record is gone."""
    stream.read()
    os._exit(1)


if __name__ == "__main__":
    main()
