"""The stages of a run that trains: load, count, train, test, measure, probe."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.config import RunConfig
from bench.errors import ConfigError
from bench.events import Emit, Phase, Row
from bench.records import Flag, RunRecord, Status
from bench.runs.checks import check_small_images, has_finite_logits
from bench.runs.job_description import Job
from bench.runs.ledger import Ledger
from bench.runs.measure_again import training_part
from bench.runs.network_run import NetworkRun
from bench.runs.resolve import evaluation_batch_size, model_options, network_input_size, preprocessing_of
from bench.runs.training_metrics import needs_head, training_metrics
from bench.runs.tuning import form_of, open_choices, tune_run
from bench.training.weights import _head_of, renew_head

if TYPE_CHECKING:
    from torch import nn

    from bench.data.sources import Dataset
    from bench.runs.network_run import Stream
    from bench.training.checkpoint import Checkpoints
    from bench.training.distributed import Ranks
    from bench.training.evaluation import Evaluation


class Run(NetworkRun):
    """A run that trains its network, or measures again what was trained."""

    config: RunConfig

    def __init__(self, job: Job, emit: Emit, ranks: Ranks | None = None) -> None:
        super().__init__(job.config, job.results, emit, ranks, several=job.jobs > 1)
        self.job = job
        self.ledger = Ledger.of(job)
        self.checkpoints: Checkpoints | None = None
        if job.trained is not None:
            self.form = form_of(job.trained)
        self.environment |= {"plan": job.plan, "command": job.command}

    def execute(self) -> Status:
        """All stages in turn: training shares the machine with other runs, measuring does not. Returns the status."""
        from bench.training.checkpoint import Checkpoints
        from bench.training.distributed import own_device

        config = self.config
        self.checkpoints = Checkpoints(
            f"{self.job.results.rstrip('/')}/checkpoints/{config.run_id}", self.job.checkpoint_seconds
        )
        if self.ranks.rank == 0:
            if self.job.fresh and not self.ledger.has_begun():  # an executor's retry goes on from its own
                self.checkpoints.remove()
            if self.job.trained is None:
                self.ledger.begin(self.job.attempt() | {"step": self.checkpoints.last_step()})
        self._use_device(config.device if self.ranks.size == 1 else own_device(config.device), config.threads)
        self.prepared = preprocessing_of(config.model, config.pretrained)
        self.input_size = network_input_size(config)

        with self.machine.shared():
            dataset, model, streams = self._load()
            classes = len(dataset.classes)
            if self.job.trained is not None:
                self._take_training_from(self.job.trained)
            elif not (self._train(model, streams, classes) and self._test(model, streams["test"], dataset)):
                return "diverged"
            elif self.job.save_weights and self.ranks.rank == 0:
                self._save_weights(model)
        with self._alone():
            self._measure_speed(model, streams["train"])
            if config.measure.probes and self.job.trained is None and self.ranks.rank == 0:
                count = self.environment["data"]["test"]  # a plan that limits test wants it to be short
                images, labels = dataset.test.images[:count], dataset.test.labels[:count]
                self._probe(model, dataset, streams["test"], images, labels)
        return "completed"

    def _load(self) -> tuple[Dataset, nn.Module, dict[str, Stream]]:
        """The images, the network as it is initialised, in the form in which it is trained, and the batches."""
        import torch

        from bench.data.sources import load_dataset
        from bench.training.initialisation import initialise

        config = self.config
        with self._phase("load"):
            dataset = load_dataset(
                config.data,
                size=config.input_size,
                data_dir=self.job.data_dir,
                classes=config.classes,
                label_column=config.label_column,
            )
            if dataset.sha256 != config.data_sha256:
                raise RuntimeError(f"{config.data!r} is not the data set that the run was planned with")
            streams = self._streams(dataset)
            if streams["train"].batch_size < self.ranks.size:
                raise ConfigError(
                    f"nproc = {self.ranks.size} processes cannot share a batch of {streams['train'].batch_size} "
                    "images, which is all that train has: set nproc to that or less"
                )
            torch.manual_seed(config.seed)
            model = self._create_model(dataset, config.pretrained)
            if self.job.trained is None:
                self._count(len(dataset.classes))
            if config.pretrained:
                renew_head(model, always=config.recipe.head_epochs > 0)
            initialise(model, config.recipe, streams["train"])
            open_options = open_choices(config)
            if not self._takes_layout(model, streams["train"], len(dataset.classes)):
                open_options.discard("channels_last")
                self.form = dataclasses.replace(self.form, channels_last=False)
                model, streams = model.to(memory_format=self._memory_format()), self._streams(dataset)
                self._takes_layout(model, streams["train"], len(dataset.classes))
            if config.recipe.small_epochs:
                batch, size = next(streams["train"].in_order()), config.recipe.small_size or 0
                check_small_images(model, batch, len(dataset.classes), autocast=self.form.autocast, size=size)
            if self.job.trained is None:
                macs, results = self.metrics["macs"], self.job.results
                tuning = self.ranks.from_first(
                    lambda: tune_run(
                        config, self.form, open_options, model, streams["train"], macs, results, self.machine.alone
                    )
                )
                self.form, self.environment["tuning"] = tuning.form, tuning.to_dict()
                model, streams = model.to(memory_format=self._memory_format()), self._streams(dataset)
            if self.form.compile:
                model.compile()
            if self.ranks.rank > 0:  # what a network draws, as its dropout does, is another for each rank's images
                torch.manual_seed(config.seed + 2**31 * self.ranks.rank)
        return dataset, model, streams

    def to_record(self) -> RunRecord:
        """As of every run; the record says what became of each attempt at it."""
        record = super().to_record()
        if self.job.trained is None and self.ranks.rank == 0:
            self.ledger.end("out_of_memory" if self.ran_out_of_memory else record.status)
            record = record.model_copy(update={"environment": record.environment | self.ledger.describe()})
        return record

    def model_options(self) -> dict[str, Any]:
        """What the recipe asks of the architecture's builder."""
        return model_options(self.config.model, self.config.recipe)

    def _streams(self, dataset: Dataset) -> dict[str, Stream]:
        """Batches of ``train`` (augmented), ``val`` (if any is held out) and ``test``."""
        import torch

        from bench.data.sources import limit, split_train
        from bench.data.transforms import Augmentation

        config, recipe = self.config, self.config.recipe
        train, val = split_train(dataset.train.labels, config.limit_train, config.val_fraction)
        chosen = {"train": (dataset.train, train), "val": (dataset.train, val)}
        chosen["test"] = (dataset.test, limit(len(dataset.test), config.limit_test))
        images = {
            name: (torch.from_numpy(split.images[indices]), torch.from_numpy(split.labels[indices]))
            for name, (split, indices) in chosen.items()
            if len(indices)
        }
        self._prepare_images(dataset, images, self.prepared)
        size = evaluation_batch_size(self.input_size)
        streams = {name: self._evaluation_batches(dataset, images[name], size) for name in images if name != "train"}
        if dataset.mosaic is not None:
            streams["train"] = self._canvases(
                dataset.mosaic, images["train"], recipe.batch_size, flip=recipe.flip, seed=config.seed
            )
            return streams
        options = {option.name: getattr(recipe, option.name) for option in dataclasses.fields(Augmentation)}
        streams["train"] = self._batches(
            images["train"],
            recipe.batch_size,
            augmentation=Augmentation(**options),
            num_classes=len(dataset.classes),
            seed=config.seed,
        )
        return streams

    def _take_training_from(self, record: RunRecord) -> None:
        part = training_part(record)
        self.metrics |= part["metrics"]
        self.history += part["history"]
        self.samples |= part["samples"]
        self.flags += [flag for flag in part["flags"] if flag not in self.flags]  # it has the same layout
        self.environment |= part["environment"]

    def _train(self, model: nn.Module, streams: dict[str, Stream], num_classes: int) -> bool:
        """Train; returns False if the loss was no longer finite."""
        from bench.training.evaluation import evaluate
        from bench.training.loop import fit
        from bench.training.optim import create_optimizer

        config, recipe = self.config, self.config.recipe
        self.metrics |= {"lr_peak": config.lr_peak, "weight_decay": config.weight_decay}
        val = streams.get("val")

        def look_at_val(network: nn.Module) -> Evaluation:
            assert val is not None
            evaluation = evaluate(network, val, num_classes, self.form.autocast, *recipe.test_views, self.ranks)
            has_finite_logits(evaluation, "val", "train", self.flags)
            return evaluation

        def report(row: dict[str, Any], share: float) -> None:
            self.emit(Row(row, share))

        head = _head_of(model) if needs_head(recipe) else ()
        with self._phase("train"):
            training = fit(
                model,
                create_optimizer(model, recipe, config.lr_peak, config.weight_decay, head),
                streams["train"],
                recipe,
                config.budget,
                autocast=self.form.autocast,
                macs=self.metrics["macs"],
                head=head,
                evaluate_val=look_at_val if val else None,
                target_top1=config.target_top1,
                report=report,
                checkpoints=self.checkpoints,
                ranks=self.ranks,
            )
        if self.checkpoints is not None and self.checkpoints.failure is not None:
            message = f"a checkpoint could not be written: {self.checkpoints.failure}"
            self.flags.append(Flag(kind="no_checkpoint", phase="train", message=message))
        self.history = training.history
        if self.job.jobs > 1:
            message = f"up to {self.job.jobs} runs trained on this machine at once: seconds are not those of one alone"
            self.flags.append(Flag(kind="shared_machine", phase="train", message=message))
        whole = self.ranks.largest_part(streams["train"].batch_size)
        metrics, flags = training_metrics(training, config, len(streams["train"]), whole)
        self.metrics |= metrics
        self.flags += flags
        return training.status == "completed"

    def _test(self, model: nn.Module, stream: Stream, dataset: Dataset) -> bool:
        """Read ``test``, once, with the weights that training ended with; returns False if logits are not finite."""
        from bench.data.sources import limit

        evaluation = self._evaluate(model, stream, len(dataset.classes), self.config.recipe.test_views, "test")
        if evaluation is not None and self.ranks.rank == 0:
            self._save_predictions(evaluation, dataset.test.images[limit(len(dataset.test), self.config.limit_test)])
        return evaluation is not None

    def _save_weights(self, model: nn.Module) -> None:
        """Keep the weights, and with them how their images were prepared, for fine-tuning."""
        from bench.training.dense import ImageLogits
        from zoo.pretrained import Preprocessing, save_weights

        data = self.environment["data"]
        mean, std = (tuple(value / 255 for value in data[name]) for name in ("mean", "std"))
        path = Path(self._stored("weights"))
        network = model.network if isinstance(model, ImageLogits) else model
        mode = self.resize.mode if self.resize is not None else "bilinear"
        save_weights(network, path, Preprocessing(mean, std, self.input_size, mode, 1.0))

    def _measure_speed(self, model: nn.Module, train: Stream) -> None:
        """Of the first rank alone, on its device, as of a run of one process; then of all ranks together."""
        from bench.runs.scaling import measure_scaling
        from bench.training.step import create_timed_step

        if self.ranks.rank == 0:
            self._measure(model, ("infer", "train"), functools.partial(create_timed_step, recipe=self.config.recipe))
        if self.ranks.size > 1:
            self.emit(Phase("measure_scaling"))
            metrics, samples, flags = measure_scaling(model, train, self.config, self.job, self.form, self.ranks)
            self.metrics |= metrics
            self.samples |= samples
            self.flags += flags
