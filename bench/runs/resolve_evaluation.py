"""What is asked of an evaluation to what is evaluated: finds weights by path or run, and how their images are prepared.

Nothing is guessed in silence: where neither the file nor the user says how images were normalised, that is an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from bench.config import MeasureConfig, Recipe
from bench.device import resolve_device
from bench.errors import ConfigError, did_you_mean
from bench.events import Loading, OnEvent, ignore
from bench.records import ROOT, RunRecord, find_record, is_local, list_stored, plan_folders, stored_path
from bench.runs.evaluation import EvaluationConfig
from bench.runs.resolve import evaluation_batch_size, model_options, preprocessing_of, training_defaults

if TYPE_CHECKING:
    from bench.data.sources import Dataset

Statistics = tuple[float, float, float]

NORMALIZATIONS: dict[str, tuple[Statistics, Statistics]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}
"""Mean and standard deviation of the channels, scaled to [0, 1]: torchvision's of ImageNet, and those of CIFAR-10's
training pixels. ``data`` besides is the data set's own, of its training images."""


@dataclass(frozen=True)
class Weights:
    """A file of weights, and the record of the run that saved it; None for any other file."""

    path: Path
    record: RunRecord | None = None


@dataclass(frozen=True)
class EvaluationRequest:
    """What the user asks; None is left open. ``weights`` is a path or a run's id."""

    model: str
    weights: str
    data: str
    data_dir: str | Path | None = None
    classes: tuple[str, ...] = ()
    label_column: str | None = None
    split: Literal["test", "val"] = "test"
    limit_test: int | None = None
    input_size: int | None = None
    batch_size: int | None = None
    normalization: str | None = None
    mean: Statistics | None = None
    std: Statistics | None = None
    test_flip: bool | None = None
    corruptions: bool = False
    speed: bool = False
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    device: str = "auto"
    threads: int | None = None
    results: str = f"{ROOT}/evaluations"


def resolve_evaluation(
    request: EvaluationRequest, on: OnEvent = ignore
) -> tuple[EvaluationConfig, Dataset, tuple[str, ...]]:
    """The configuration, the data set, and notes for the user on what was assumed.

    Raises a `UserError` or `zoo.ZooError` for whatever is not there or contradicts.
    """
    import zoo
    from bench.data.sources import DECODED_SIZE, decoded_size, load_dataset
    from zoo.pretrained import saved_preprocessing

    model = zoo.model_info(request.model).name
    weights = find_weights(request.weights, request.results)
    trained = _Trained.of(weights.record, model) if weights.record is not None else _Trained()
    asks_normalization = request.normalization is not None or request.mean is not None or request.std is not None
    # What belongs to a library's published weights says nothing about others once the user has spoken.
    prepared = saved_preprocessing(weights.path) if asks_normalization else preprocessing_of(model, str(weights.path))
    own_size = prepared.input_size if prepared is not None else trained.input_size
    network_size = request.input_size or own_size or DECODED_SIZE
    input_size = (
        request.input_size
        or trained.input_size
        or decoded_size(request.data, network_size, data_dir=request.data_dir, label_column=request.label_column)
    )

    def progress(what: str, done: int, total: int) -> None:
        on(Loading(what, done, total))

    dataset = load_dataset(
        request.data,
        size=input_size,
        data_dir=request.data_dir,
        classes=request.classes,
        label_column=request.label_column,
        progress=progress,
    )
    if asks_normalization:
        name, mean, std = _asked_normalization(request, dataset)
    elif prepared is not None:
        name, mean, std = "of the weights", _three(prepared.mean), _three(prepared.std)
    else:
        raise ConfigError(
            f"the weights {str(weights.path)!r} do not say how their images were normalised, and accuracy depends on "
            "it. Say it with --normalization imagenet, cifar10 or data (this data set's own statistics), or with "
            "--mean and --std."
        )
    device = resolve_device(request.device)
    defaults = training_defaults(device)
    config = EvaluationConfig(
        model=model,
        options=trained.options,
        weights=str(weights.path),
        weights_sha256=hashlib.sha256(weights.path.read_bytes()).hexdigest(),
        normalization=name,
        mean=mean,
        std=std,
        interpolation=prepared.interpolation if prepared else "bilinear",
        data=request.data,
        data_sha256=dataset.sha256,
        classes=request.classes,
        label_column=request.label_column,
        split=request.split,
        val_fraction=trained.val_fraction,
        limit_train=trained.limit_train,
        limit_test=request.limit_test,
        input_size=input_size,
        network_input_size=network_size,
        batch_size=request.batch_size or evaluation_batch_size(network_size),
        test_flip=trained.test_flip if request.test_flip is None else request.test_flip,
        corruptions=request.corruptions,
        speed=request.speed,
        measure=request.measure,
        device=device,
        threads=request.threads or defaults.threads,
        channels_last=defaults.channels_last,
    )
    if request.corruptions and dataset.mosaic is not None:
        raise ConfigError(
            f"--corruptions is for labels of whole images, and {request.data!r} has a label for each pixel. Leave it "
            f"out, or use --data {request.data.partition(':')[2]}."
        )
    return config, dataset, tuple(_notes(config, dataset, trained))


def find_weights(name: str, results: str) -> Weights:
    """The file of that path, or the weights that a run of that id saved; with the run's record.

    Looks in the plans' folders of ``results/``, and in ``results`` itself. Raises `ConfigError`, which says what there
    is instead.
    """
    path = Path(name)
    if path.is_file():
        kept_in = path.resolve().parent
        return Weights(path, find_record(kept_in.parent, path.stem) if kept_in.name == "weights" else None)
    if "/" in name:
        raise ConfigError(
            f"there is no file {name!r} to load weights from. Name a state dict, a checkpoint or a run's id."
        )
    folders = [folder for folder in dict.fromkeys((*plan_folders(ROOT), *plan_folders(results))) if is_local(folder)]
    records = {folder: record for folder in folders if (record := find_record(folder, name)) is not None}
    for folder, record in records.items():
        kept = Path(stored_path(folder, "weights", name))
        if kept.is_file():
            return Weights(kept, record)
    if records:
        raise ConfigError(
            f"the run {name!r} in {next(iter(records))!r} kept no weights. Repeat it with --save-weights --force."
        )
    possible = sorted({run_id for folder in folders for run_id in list_stored(folder, "weights")})
    raise ConfigError(
        f"--weights {name!r} is neither a file nor a run.{did_you_mean(name, possible)} Runs that kept their weights: "
        f"{', '.join(possible[:8]) or 'none (zoobench run --save-weights keeps them)'}."
    )


def parse_statistics(text: str, option: str) -> Statistics:
    """``0.485,0.456,0.406``, or one number for all channels. Raises `ConfigError`."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    low_enough = all(0 <= value <= 1 for value in values) and (option != "--std" or 0 not in values)
    if len(values) not in (1, 3) or not low_enough:
        raise ConfigError(
            f"{option} {text!r} is not possible: expected a number for each of the three channels, of pixels scaled to "
            "[0, 1], as in --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225."
        )
    return _three(values * (3 // len(values)))


@dataclass(frozen=True)
class _Trained:
    """What the record of the run that trained the weights says of their evaluation."""

    options: dict[str, Any] = field(default_factory=dict)
    test_flip: bool = False
    test_shift: int = 0
    input_size: int | None = None
    val_fraction: float = 0.1
    limit_train: int | None = None
    classes: tuple[str, ...] = ()

    @classmethod
    def of(cls, record: RunRecord, model: str) -> _Trained:
        config = record.config
        if config.get("model") != model:
            raise ConfigError(
                f"the weights are those of {config.get('model')!r} (run {record.run_id}), and {model!r} was asked for. "
                f"Write zoobench evaluate {config.get('model')} --weights …"
            )
        try:
            recipe = Recipe.model_validate(config.get("recipe"))
        except ValidationError as error:
            raise ConfigError(f"the record of the run {record.run_id} has a recipe of another version.") from error
        return cls(
            options=model_options(model, recipe),
            test_flip=recipe.test_flip,
            test_shift=recipe.test_shift,
            input_size=config["input_size"],
            val_fraction=config["val_fraction"],
            limit_train=config["limit_train"],
            classes=tuple(record.environment.get("data", {}).get("classes", ())),
        )


def _asked_normalization(request: EvaluationRequest, dataset: Dataset) -> tuple[str, Statistics, Statistics]:
    import torch

    from bench.data.augment import Normalization

    if request.mean is not None and request.std is not None and request.normalization is None:
        return "given", request.mean, request.std
    if request.mean is not None or request.std is not None:
        raise ConfigError("--mean and --std are given together, and without --normalization.")
    name = request.normalization or ""
    if name == "data":
        own = Normalization.of(torch.tensor(dataset.train.images))
        mean, std = (_three([value / 255 for value in values]) for values in (own.mean, own.std))
        return name, mean, std
    if name not in NORMALIZATIONS:
        possible = [*NORMALIZATIONS, "data"]
        raise ConfigError(
            f"--normalization {name!r} is not known.{did_you_mean(name, possible)} Possible: {', '.join(possible)}."
        )
    return name, *NORMALIZATIONS[name]


def _notes(config: EvaluationConfig, dataset: Dataset, trained: _Trained) -> Iterable[str]:
    if trained.classes and trained.classes != dataset.classes:
        yield (
            f"the weights were trained for the classes {', '.join(trained.classes)}, and {config.data!r} has "
            f"{', '.join(dataset.classes)}"
        )
    if trained.test_shift:
        yield f"the run was also tested on views shifted by {trained.test_shift} pixels, which are left out here"
    if config.split == "val" and trained.input_size is None:
        yield (
            f"'val' is {config.val_fraction:.0%} of the training images as zoobench holds them out: another program "
            "has probably trained on them"
        )


def _three(values: Iterable[float]) -> Statistics:
    first, second, third = values
    return first, second, third
