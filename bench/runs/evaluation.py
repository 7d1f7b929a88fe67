"""Evaluating weights that exist: accuracy, confusion, calibration and speed of a checkpoint, without training."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from bench.config import MeasureConfig
from bench.data.corruptions import CORRUPTIONS, SEVERITIES, VERSION, corrupt
from bench.errors import ConfigError
from bench.events import Emit, ignore
from bench.recipe import Count, Fraction
from bench.records import Status, find_intact_record
from bench.runs.network_run import NetworkRun

if TYPE_CHECKING:
    from bench.data.images import Images
    from bench.data.sources import Dataset, Split
    from zoo.pretrained import LoadedWeights, Preprocessing

NOT_OF_THE_RESULT = frozenset({"weights", "measure", "speed", "corruptions"})
"""Fields of `EvaluationConfig` that a record's name does not depend on."""


class EvaluationConfig(BaseModel):
    """What is evaluated: a model with weights on a split of a data set, and how its images are prepared.

    ``weights`` is a path, known by the hash of its content. ``mean`` and ``std`` are of channels scaled to [0, 1];
    ``normalization`` says where they are from. Images are decoded at ``input_size`` pixels and resized to
    ``network_input_size`` where that differs. ``val`` is what `bench.data.sources.split_train` holds out of
    ``limit_train`` images. ``options`` are those of the model's builder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    options: dict[str, bool | float] = {}
    weights: str
    weights_sha256: str
    normalization: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bilinear"
    data: str
    data_sha256: str
    classes: tuple[str, ...] = ()
    label_column: str | None = None
    split: Literal["test", "val"] = "test"
    val_fraction: Fraction = 0.1
    limit_train: Count | None = None
    limit_test: Count | None = None
    input_size: Count = 32
    network_input_size: Count = 32
    batch_size: Count = 500
    test_flip: bool = False
    corruptions: bool = False
    speed: bool = False
    measure: MeasureConfig = MeasureConfig()
    budget: None = None
    device: str
    threads: Count
    autocast: bool = False
    channels_last: bool
    compile: bool = False

    def prepared(self) -> Preprocessing:
        """How images are prepared for the weights."""
        from zoo.pretrained import Preprocessing

        return Preprocessing(self.mean, self.std, self.network_input_size, self.interpolation, 1.0)

    @property
    def run_id(self) -> str:
        """The model and a hash of what the result depends on."""
        options = {name: value for name, value in self.model_dump(mode="json").items() if name not in NOT_OF_THE_RESULT}
        digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()
        return f"{self.model.replace('/', '-')}-evaluated-{digest[:12]}"


class EvaluationRun(NetworkRun):
    """The stages of an evaluation: load, test, test under corruptions, measure, probe."""

    config: EvaluationConfig

    def __init__(
        self, config: EvaluationConfig, dataset: Dataset, results: str, emit: Emit = ignore, command: str = ""
    ) -> None:
        super().__init__(config, results, emit)
        self.dataset, self.input_size = dataset, config.network_input_size
        self.environment |= {"plan": "evaluations", "command": command}

    def model_options(self) -> dict[str, Any]:
        """What the run that trained the weights asked of the builder."""
        return dict(self.config.options)

    def load(self, *, allow_fresh_head: bool) -> LoadedWeights:
        """Load the weights and check what the network puts out.

        Raises `ConfigError` where a part of the network keeps its random values, `zoo.ZooError` where the weights do
        not fit, and `ModelError` where the outputs are no logits for the data set's classes.
        """
        import torch

        from zoo.pretrained import loaded_weights

        config, dataset = self.config, self.dataset
        self._use_device(config.device, config.threads)
        with self._phase("load"):
            torch.manual_seed(0)  # a fresh head is the same each time
            self.split, indices = chosen_images(dataset, config)
            self.images = self.split.images[indices]
            self.labels = torch.tensor(self.split.labels[indices])
            chosen: dict[str, Any] = {config.split: (torch.tensor(self.images), self.labels)}
            self._prepare_images(dataset, chosen, config.prepared())
            model = self._create_model(dataset, config.weights)
            loaded = loaded_weights(getattr(model, "network", model))
            assert loaded is not None
            if loaded.fresh and not allow_fresh_head:
                raise ConfigError(
                    f"{loaded.summary()} What is left as initialised would answer at random: evaluate weights for the "
                    f"{len(dataset.classes)} classes of {config.data!r}, or pass --allow-fresh-head."
                )
            if not self._takes_layout(model, self._stream(self.images), len(dataset.classes), training=False):
                self.form = dataclasses.replace(self.form, channels_last=False)
                model = model.to(memory_format=self._memory_format())
        self.model = model
        return loaded

    def execute(self) -> Status:
        """Evaluate what `load` has loaded. Returns the record's status: ``diverged`` if logits are not finite."""
        config, num_classes = self.config, len(self.dataset.classes)
        self._count(num_classes)
        evaluation = self._evaluate(
            self.model, self._stream(self.images), num_classes, (config.test_flip, 0, 1.0), config.split
        )
        if evaluation is None:
            return "diverged"
        if config.split == "test":
            self._save_predictions(evaluation, self.images)
        if config.corruptions:
            self._evaluate_corruptions(num_classes)
        else:
            self._keep_corruptions()
        if config.speed or config.measure.probes:
            with self._alone():
                if config.speed:
                    self._measure(self.model, ("infer",))
                if config.measure.probes:
                    self._probe(self.model, self.dataset, self._stream(self.images), self.images, self.labels)
        return "completed"

    def _stream(self, images: Images) -> Any:
        import torch

        pair = (torch.tensor(images), self.labels)
        return self._evaluation_batches(self.dataset, pair, self.config.batch_size)

    def _keep_corruptions(self) -> None:
        """What an earlier evaluation of these weights on these images found: the same would come out."""
        before = find_intact_record(self.results, self.config.run_id)
        found = None if before is None else before.environment.get("corruptions")
        if before is not None and isinstance(found, dict) and found.get("version") == VERSION:
            self.samples["corruption_top1"] = before.samples["corruption_top1"]
            self.metrics["corruption_top1"] = before.metrics["corruption_top1"]
            self.environment["corruptions"] = found

    def _evaluate_corruptions(self, num_classes: int) -> None:
        """Accuracy under each corruption at each severity, and their mean."""
        from bench.training.evaluation import evaluate

        config = self.config
        selection: list[Any] = [config.split, config.limit_test]
        if config.split == "val":
            selection += [config.limit_train, config.val_fraction]
        content = f"{config.data_sha256} {json.dumps(selection)}"
        rows, hashes = [], {}
        for name in CORRUPTIONS:
            with self._phase(f"corrupt_{name}"):
                corrupted = corrupt(self.images, name, content)
            hashes[name] = corrupted.sha256
            with self._phase(f"test_{name}"):
                rows.append(
                    [
                        evaluate(self.model, self._stream(images), num_classes, config.autocast, config.test_flip).top1
                        for images in corrupted.by_severity
                    ]
                )
        self.samples["corruption_top1"] = rows
        self.metrics["corruption_top1"] = sum(map(sum, rows)) / (len(rows) * len(SEVERITIES))
        self.environment["corruptions"] = {"version": VERSION, "names": list(CORRUPTIONS), "sha256": hashes}


def chosen_images(dataset: Dataset, config: EvaluationConfig) -> tuple[Split, Any]:
    """The split that the images are from, and their indices. Raises `ConfigError` where ``val`` is empty."""
    from bench.data.sources import limit, split_train

    if config.split == "test":
        return dataset.test, limit(len(dataset.test), config.limit_test)
    _, val = split_train(dataset.train.labels, config.limit_train, config.val_fraction)
    if not len(val):
        raise ConfigError(
            f"the split 'val' of {config.data!r} is empty: nothing is held out of 'train'. Use --split test."
        )
    return dataset.train, val[limit(len(val), config.limit_test)]
