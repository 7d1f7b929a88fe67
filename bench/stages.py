"""The stages of a run: load, count, train, test, measure, probe; each joins the zoo with one wing or two."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from pydantic import BaseModel, ConfigDict

from bench.config import Recipe, RunConfig
from bench.environment import Disturbance, describe_environment
from bench.records import CARD_SUFFIX, PROBES_SUFFIX, Flag, Status, is_local, record_path, write_atomically

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bench.data.augment import BatchStream
    from bench.data.mosaic import MosaicStream
    from bench.data.sources import Dataset
    from bench.training.checkpoint import Checkpoints
    from bench.training.evaluation import Evaluation
    from zoo.pretrained import Preprocessing

    Stream = BatchStream | MosaicStream

EVALUATION_BATCH_SIZE, DENSE_EVALUATION_BATCH_SIZE = 500, 50
LAST_SEEN = ("train_loss", "train_top1", "val_loss", "val_top1", "val_miou")
PROBE_IMAGES = 32
PROBE_REPEATS = 3
Emit = Callable[[dict[str, Any]], None]


class Job(BaseModel):
    """A run's configuration, where its record goes, where data lies, and what asked for it.

    ``checkpoint_seconds`` is the time between checkpoints; a ``fresh`` job does not go on from one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: RunConfig
    results: str
    data_dir: str | None = None
    checkpoint_seconds: float = 60.0
    fresh: bool = False
    save_weights: bool = False
    plan: str = ""
    command: str = ""


class Run:
    """The stages of a run, and what they have found so far: what a failure leaves is kept."""

    def __init__(self, job: Job, emit: Emit) -> None:
        self.job, self.config, self.emit = job, job.config, emit
        self.metrics: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.samples: dict[str, Any] = {}
        self.flags: list[Flag] = []
        self.checkpoints: Checkpoints | None = None
        self.environment: dict[str, Any] = {"plan": job.plan, "command": job.command}

    def execute(self) -> Status:
        """All stages in turn. Returns the record's status."""
        import torch

        import zoo
        from bench.data.sources import load_dataset
        from bench.training.checkpoint import Checkpoints
        from bench.training.dense import ImageLogits

        config = self.config
        torch.set_num_threads(config.threads)
        if config.device.startswith("cuda"):
            torch.backends.cudnn.deterministic = True
            torch.use_deterministic_algorithms(True, warn_only=True)
        if is_local(self.job.results):  # a bucket is no place for a state that changes every minute
            folder = Path(self.job.results) / "checkpoints" / config.run_id
            self.checkpoints = Checkpoints(folder, self.job.checkpoint_seconds)
            if self.job.fresh:
                self.checkpoints.remove()
        self.device = torch.device(config.device)
        self.prepared = preprocessing_of(config.model, config.pretrained)
        self.input_size = self.prepared.input_size if self.prepared else config.input_size
        self.environment |= describe_environment(config.device, config.threads)

        with self._phase("load"):
            dataset = load_dataset(
                config.data, size=config.input_size, data_dir=self.job.data_dir, classes=config.classes
            )
            if dataset.sha256 != config.data_sha256:
                raise RuntimeError(f"{config.data!r} is not the data set that the run was planned with")
            streams = self._streams(dataset)
            torch.manual_seed(config.seed)
            model = zoo.create_model(
                config.model,
                len(dataset.classes),
                self.input_size,
                3,
                config.pretrained,
                **model_options(config.model, config.recipe),
            )
            if zoo.model_info(config.model).task == "segmentation" and dataset.mosaic is None:
                model = ImageLogits(model)
            model = model.to(self.device).to(memory_format=self._memory_format())
            if config.compile:
                model.compile()
        self._count(len(dataset.classes))
        if not self._train(model, streams, len(dataset.classes)):
            return "diverged"
        self._test(model, streams, len(dataset.classes))
        if self.job.save_weights:
            self._save_weights(model)
        self._measure(model)
        self._measure_memory()
        if config.measure.probes:
            self._probe(model, dataset, streams)
        return "completed"

    def _streams(self, dataset: Dataset) -> dict[str, Stream]:
        """Batches of ``train`` (augmented), ``val`` (if any is held out) and ``test``."""
        import numpy as np
        import torch

        from bench.data.augment import BatchStream, Normalization, Resize
        from bench.data.mosaic import MosaicStream
        from bench.data.sources import hold_out, limit
        from bench.data.transforms import Augmentation

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
            normalization = Normalization(mean, std)
            resize = Resize(self.input_size, mode) if self.input_size != config.input_size else None
        stream = functools.partial(
            BatchStream,
            normalization=normalization,
            resize=resize,
            device=self.device,
            channels_last=config.channels_last,
            seed=config.seed,
        )
        self.stream = stream
        self.environment["data"] = {
            "name": dataset.name,
            "sha256": dataset.sha256,
            "classes": list(dataset.classes),
            "mean": normalization.mean,
            "std": normalization.std,
            "input_size": self.input_size,
        } | {name: len(tensors[name][1]) if name in tensors else 0 for name in ("train", "val", "test")}
        if dataset.mosaic is not None:
            mosaic = functools.partial(
                MosaicStream,
                normalization=normalization,
                layout=dataset.mosaic,
                device=self.device,
                channels_last=config.channels_last,
                flip=recipe.flip,
                seed=config.seed,
            )
            sizes = dict.fromkeys(tensors, DENSE_EVALUATION_BATCH_SIZE) | {"train": recipe.batch_size}
            return {name: mosaic(*split, sizes[name]) for name, split in tensors.items()}
        streams: dict[str, Stream] = {
            name: stream(*split, EVALUATION_BATCH_SIZE) for name, split in tensors.items() if name != "train"
        }
        options = {option.name: getattr(recipe, option.name) for option in dataclasses.fields(Augmentation)}
        streams["train"] = stream(
            *tensors["train"],
            recipe.batch_size,
            augmentation=Augmentation(**options),
            num_classes=len(dataset.classes),
        )
        return streams

    def _count(self, num_classes: int) -> None:
        import torch

        import zoo
        from bench.measure.complexity import count_complexity

        with torch.device("meta"):
            model = zoo.create_model(
                self.config.model, num_classes, self.input_size, **model_options(self.config.model, self.config.recipe)
            )
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

    def _train(self, model: nn.Module, streams: dict[str, Stream], num_classes: int) -> bool:
        """Train; returns False if the loss was no longer finite."""
        import zoo
        from bench.training.evaluation import evaluate
        from bench.training.loop import fit
        from bench.training.optim import create_optimizer, peak_lr, weight_decay

        config, recipe = self.config, self.config.recipe
        hints = zoo.model_info(config.model).recipe
        lr = peak_lr(recipe, hints.get("lr"), streams["train"].batch_size)
        decay = weight_decay(recipe, hints.get("weight_decay"))
        self.metrics |= {"lr_peak": lr, "weight_decay": decay}
        val = streams.get("val")

        def look_at_val(network: nn.Module) -> Evaluation:
            assert val is not None
            return evaluate(network, val, num_classes, config.autocast, recipe.test_flip)

        def report(row: dict[str, Any], share: float) -> None:
            self.emit({"event": "row", "row": row, "share": share})

        with self._phase("train"):
            training = fit(
                model,
                create_optimizer(model, recipe, lr, decay),
                streams["train"],
                recipe,
                config.budget,
                autocast=config.autocast,
                macs=self.metrics["macs"],
                head=_head_of(model) if recipe.head_epochs else (),
                evaluate_val=look_at_val if val else None,
                target_top1=config.target_top1,
                report=report,
                checkpoints=self.checkpoints,
            )
        self.history = training.history
        self.metrics |= {
            "train_seconds": training.seconds,
            "epochs": training.epoch,
            "steps": training.step,
            "images_seen": training.images_seen,
        }
        if config.target_top1 is not None:
            self.metrics |= {"target_seconds": training.target_seconds, "target_steps": training.target_step}
        if training.micro_batch_size < streams["train"].batch_size:
            message = (
                f"memory held {training.micro_batch_size} of {streams['train'].batch_size} images at a time: gradients "
                "were accumulated over the batch, and batch-norm statistics come from the micro-batches"
            )
            self.flags.append(Flag(kind="out_of_memory", phase="train", message=message))
            self.metrics["micro_batch_size"] = training.micro_batch_size
        if training.history:
            last = training.history[-1]
            self.metrics |= {name: last[name] for name in LAST_SEEN if name in last}
        return training.status == "completed"

    def _test(self, model: nn.Module, streams: dict[str, Stream], num_classes: int) -> None:
        """Read ``test``, once, with the weights that training ended with."""
        from bench.training.evaluation import evaluate

        with self._phase("test"):
            evaluation = evaluate(
                model, streams["test"], num_classes, self.config.autocast, self.config.recipe.test_flip
            )
        if evaluation.miou is None:
            self.metrics |= {"test_top1": evaluation.top1}
        else:  # under names of their own: pixels and images are not to be ranked together
            self.metrics |= {"test_miou": evaluation.miou, "test_pixel_accuracy": evaluation.top1}
        self.metrics |= {"test_loss": evaluation.loss, "weights_sha256": hash_weights(model)}
        self.samples |= {"test_confusion": evaluation.confusion, "test_calibration": evaluation.calibration}

    def _save_weights(self, model: nn.Module) -> None:
        """Keep the weights, and with them how their images were prepared, for fine-tuning."""
        from bench.training.dense import ImageLogits
        from zoo.pretrained import Preprocessing, save_weights

        data = self.environment["data"]
        mean, std = (tuple(value / 255 for value in data[name]) for name in ("mean", "std"))
        path = Path(self.job.results) / "weights" / f"{self.config.run_id}.safetensors"
        network = model.network if isinstance(model, ImageLogits) else model
        save_weights(network, path, Preprocessing(mean, std, self.input_size, "bilinear", 1.0))

    def _measure(self, model: nn.Module) -> None:
        from bench.speed import Setting, Speed, measure_speed

        config = self.config
        setting = Setting(
            device=self.device,
            input_size=self.input_size,
            channels_last=config.channels_last,
            autocast=config.autocast,
            dtype=config.measure.dtype,
            compile=config.compile,
        )
        found = Speed(self.metrics, self.samples, self.environment, self.flags)
        measure_speed(model, setting, config.measure, config.recipe, found, self._phase)

    def _measure_memory(self) -> None:
        """On CUDA the most that tensors held; on a CPU the most that the whole process held, data set included."""
        import torch

        if self.device.type == "cuda":
            self.metrics["peak_memory_bytes"] = torch.cuda.max_memory_allocated(self.device)
        else:
            self.metrics["peak_memory_bytes"] = peak_resident_bytes()

    def _probe(self, model: nn.Module, dataset: Dataset, streams: dict[str, Stream]) -> None:
        """Keep, beside the record, the card and what only the live network can tell; for the report.

        A network that labels pixels is asked for an image's mean, and held against what covers most of the canvas.
        """
        import torch

        from bench.card import describe
        from bench.data.mosaic import MosaicStream
        from bench.measure.probes import measure_probes, save_probes
        from bench.training.dense import ImageLogits

        network, labels = model, torch.from_numpy(dataset.test.labels[:PROBE_IMAGES])
        images = torch.from_numpy(dataset.test.images[:PROBE_IMAGES])
        if isinstance(test := streams["test"], MosaicStream):
            network, (images, maps) = ImageLogits(model), next(test.fixed_canvases())
            images, labels = images.permute(0, 3, 1, 2)[:PROBE_IMAGES], maps.flatten(1).mode().values[:PROBE_IMAGES]

        def prepare(images: torch.Tensor) -> torch.Tensor:
            return next(self.stream(images, torch.zeros(len(images)), len(images)).in_order())[0]

        beside = record_path(self.job.results, self.config.run_id).removesuffix(".json")
        with self._phase("probe"):
            card = describe(self.config.model, self.input_size, len(dataset.classes))
            write_atomically(beside + CARD_SUFFIX, json.dumps(card.to_dict()))
            try:
                arrays = measure_probes(
                    network, images.to(self.device), labels.to(self.device), prepare, repeats=PROBE_REPEATS
                )
            except (RuntimeError, ValueError, IndexError) as error:  # a foreign network that cannot be looked into
                self.flags.append(Flag(kind="no_probes", phase="probe", message=f"{type(error).__name__}: {error}"))
            else:
                save_probes(arrays, beside + PROBES_SUFFIX)

    def _memory_format(self) -> torch.memory_format:
        import torch

        return torch.channels_last if self.config.channels_last else torch.contiguous_format

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        self.emit({"event": "phase", "phase": name})
        with Disturbance(name, self.flags):
            yield


def model_options(model: str, recipe: Recipe) -> dict[str, Any]:
    """What the recipe asks of the builder of ``model``. Raises `zoo.ZooError` where it does not take that.

    No dropout is what a network without dropout has.
    """
    from zoo.registry import check_options, takes_option

    options = {
        name: value
        for name, value in recipe.model_options.items()
        if not (name == "drop_rate" and value == 0 and not takes_option(model, name))
    }
    check_options(model, options)
    return options


def preprocessing_of(model: str, pretrained: bool | str) -> Preprocessing | None:
    """The preparation of images that belongs to the weights; None where it is the data set's own.

    A file may say so itself, as those do that a run has saved. A state dict for one of our networks that does not is
    taken to be trained on such images as it will see.
    """
    from zoo.pretrained import preprocessing, saved_preprocessing

    if isinstance(pretrained, str) and (saved := saved_preprocessing(Path(pretrained))) is not None:
        return saved
    return preprocessing(model) if pretrained is True or (pretrained and "/" in model) else None


def _head_of(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that put out the classes, also of a network in its wrapping."""
    from bench.training.dense import ImageLogits
    from zoo.pretrained import head_names

    if isinstance(model, ImageLogits):
        return tuple(f"network.{name}" for name in head_names(model.network))
    return head_names(model)


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
