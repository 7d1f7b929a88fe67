"""A plan to its runs: what it leaves open is resolved on this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from bench.config import Plan, Rates, Recipe, RunConfig
from bench.device import check_devices, multiplies_bfloat16, resolve_device
from bench.errors import ConfigError
from bench.events import Loading, OnEvent, ignore

if TYPE_CHECKING:
    from torch import nn

    from bench.data.sources import Dataset
    from zoo.pretrained import Preprocessing

T = TypeVar("T")
COUNTED_CLASSES = 10
"""A head's classes hardly matter for what a network costs."""
EVALUATION_BATCH_SIZE = 500
EVALUATION_PIXELS = EVALUATION_BATCH_SIZE * 64**2
"""Of the images in a step of evaluation, at most: on a CPU the system ends a process that asks for too much memory,
before anything can be raised and halved."""


def evaluation_batch_size(input_size: int) -> int:
    """Images in a step of evaluation: 500 up to 64 pixels a side, 80 at 160, 40 at 224."""
    return max(min(EVALUATION_BATCH_SIZE, EVALUATION_PIXELS // input_size**2), 1)


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


def count_of_run(run: RunConfig, count: Callable[[nn.Module, int], T]) -> T | None:
    """What ``count`` finds in a run's network and the side of its images; None where the network cannot be counted."""
    import zoo
    from bench.counting.shapes import count_by_shapes

    size = network_input_size(run)
    options = model_options(run.model, run.recipe)
    try:
        return count_by_shapes(
            lambda: zoo.create_model(run.model, COUNTED_CLASSES, size, 3, **options), lambda model: count(model, size)
        )
    except Exception:  # noqa: BLE001 - whatever a network raises, its run says so
        return None


def preprocessing_of(model: str, pretrained: bool | str) -> Preprocessing | None:
    """The preparation of images that belongs to the weights; None where it is the data set's own.

    A file may say so itself, as those do that a run has saved. A state dict for one of our networks that does not is
    taken to be trained on such images as it will see.
    """
    from zoo import model_info
    from zoo.pretrained import preprocessing, saved_preprocessing

    if isinstance(pretrained, str) and (saved := saved_preprocessing(Path(pretrained))) is not None:
        return saved
    return preprocessing(model_info(model)) if pretrained is True or (pretrained and "/" in model) else None


def network_input_size(run: RunConfig) -> int:
    """The side in pixels of the images that a run's network takes: as asked, of its weights, or as they are decoded."""
    prepared = preprocessing_of(run.model, run.pretrained)
    return run.network_input_size or (prepared.input_size if prepared else run.input_size)


REPRESENTATIVE = "@representative"


IMAGE_ONLY = (
    *("rotation", "color_jitter", "randaugment", "cutout", "mixup", "cutmix"),
    *("brightness", "contrast", "small_epochs", "test_shift"),
)
"""Options of a recipe that are made for whole images."""


def resolve_models(patterns: Iterable[str]) -> list[str]:
    """Names and wildcards to names, in the order given, each once. Raises `zoo.UnknownModelError`."""
    import zoo
    from zoo.registry import representative_models

    names: list[str] = []
    for pattern in patterns:
        if pattern == REPRESENTATIVE:
            names += representative_models()
        elif any(sign in pattern for sign in "*?["):
            found = zoo.list_models(pattern)
            if not found:
                raise ConfigError(f"no architecture matches {pattern!r}. `zoobench list` shows all names.")
            names += found
        else:
            names.append(zoo.model_info(pattern).name)
    return list(dict.fromkeys(names))


def resolve_plan(
    plan: Plan, *, data_dir: str | Path | None, on: OnEvent = ignore, share: int = 1, nodes: int = 1
) -> list[RunConfig]:
    """The plan's runs, with models, device, threads and data set resolved on this machine, one of ``nodes``.

    Threads that the plan leaves open are divided among the ``share`` runs that are done at the same time.

    Raises a `UserError` for whatever of it is not there.
    """
    from bench.data.sources import split_train

    device = resolve_device(plan.device)
    if device.startswith("cuda"):
        plan = plan.gpu or plan
    if plan.nproc % nodes:
        raise ConfigError(
            f"--nproc {plan.nproc} processes cannot be spread over --nodes {nodes} machines evenly: give a multiple of "
            f"{nodes}; --nproc counts the processes of all machines."
        )
    check_devices(device, plan.nproc // nodes)
    models = resolve_models(plan.models)
    _check_options(plan, models)
    rates = {model: _rates(plan.recipe, model) for model in models}
    weights_sha256 = _check_weights(plan.pretrained, models)

    prepared = [preprocessing_of(model, plan.pretrained) for model in models]
    input_size = _decoded_size(plan, prepared, data_dir)
    dataset = load_plan_dataset(plan, input_size, data_dir, on)
    split_train(dataset.train.labels, plan.limit_train, plan.val_fraction, needs_val=plan.target_top1 is not None)
    if dataset.mosaic is not None:
        _check_dense(plan, models)
    defaults = training_defaults(device)
    return plan.expand(
        models=rates,
        one_seed=resolve_models(plan.one_seed),
        data_sha256=dataset.sha256,
        input_size=input_size,
        network_input_size=_asked_size(plan, prepared, input_size, mosaic=dataset.mosaic is not None),
        pretrained_sha256=weights_sha256,
        device=device,
        threads=plan.threads or max(1, defaults.threads // (share * plan.nproc // nodes)),
        autocast=plan.autocast,
        channels_last=plan.channels_last,
    )


def count_train_images(run: RunConfig, data_dir: str | Path | None) -> int:
    """How many images a run trains on in an epoch."""
    from bench.data.sources import split_train

    dataset = load_plan_dataset(run, run.input_size, data_dir, ignore)
    return len(split_train(dataset.train.labels, run.limit_train, run.val_fraction)[0])


def load_plan_dataset(plan: Plan | RunConfig, input_size: int, data_dir: str | Path | None, on: OnEvent) -> Dataset:
    """The data set of a plan or a run, decoded at that size. Raises `DataError` where it is not here."""
    from bench.data.sources import load_dataset

    def progress(what: str, done: int, total: int) -> None:
        on(Loading(what, done, total))

    return load_dataset(
        plan.data,
        size=input_size,
        data_dir=data_dir,
        classes=plan.classes,
        label_column=plan.label_column,
        progress=progress,
    )


def _decoded_size(plan: Plan, prepared: list[Preprocessing | None], data_dir: str | Path | None) -> int:
    """The side in pixels at which the plan's images are decoded: as asked, or what its models' weights have use for."""
    from bench.data.sources import DECODED_SIZE, decoded_size

    if plan.input_size is not None:
        return plan.input_size
    largest = max((each.input_size for each in prepared if each is not None), default=DECODED_SIZE)
    return decoded_size(plan.data, largest, data_dir=data_dir, label_column=plan.label_column)


def _asked_size(plan: Plan, prepared: list[Preprocessing | None], input_size: int, *, mosaic: bool) -> int | None:
    """The side in pixels that networks are to take in place of their weights'; None where that changes nothing.

    So that the same training has one id.
    """
    asked = input_size if mosaic else plan.input_size
    return None if {input_size if each is None else each.input_size for each in prepared} == {asked} else asked


class TrainingDefaults(NamedTuple):
    """How a run trains on this machine where its plan leaves that open, before it has timed other ways."""

    threads: int
    autocast: bool
    channels_last: bool


def training_defaults(device: str) -> TrainingDefaults:
    """The defaults for a resolved device."""
    import torch

    autocast = device.startswith("cuda") and multiplies_bfloat16(device)
    return TrainingDefaults(torch.get_num_threads(), autocast, channels_last=device != "mps")


def _rates(recipe: Recipe, model: str) -> Rates:
    """The recipe's peak learning rate and weight decay, or the architecture's own."""
    from bench.training.optim import peak_lr, weight_decay
    from zoo import model_info

    hints = model_info(model).recipe
    return Rates(peak_lr(recipe, hints.get("lr"), recipe.batch_size), weight_decay(recipe, hints.get("weight_decay")))


def _check_options(plan: Plan, models: list[str]) -> None:
    """That the architectures have what the recipe asks of them."""
    for model in models:
        model_options(model, plan.recipe)


def _check_dense(plan: Plan, models: list[str]) -> None:
    """That every model labels pixels, and that the recipe asks for nothing that dense labels lack."""
    import zoo

    classifiers = [model for model in models if zoo.model_info(model).task != "segmentation"]
    if classifiers:
        possible = [name for name in zoo.list_models() if zoo.model_info(name).task == "segmentation"]
        raise ConfigError(
            f"the data set {plan.data!r} has a label for each pixel, and {', '.join(map(repr, classifiers))} "
            f"{'gives' if len(classifiers) == 1 else 'give'} one answer an image. "
            f"Choose models that segment: {', '.join(possible)}; or the data set {plan.data.partition(':')[2]!r}."
        )
    asked = [option for option in IMAGE_ONLY if getattr(plan.recipe, option)]
    if asked:
        raise ConfigError(
            f"the recipe {plan.recipe.name!r} asks for {', '.join(asked)}, which {plan.data!r} does not have: its "
            "canvases are new in every epoch, and their labels would have to change with the pixels. "
            f"Set {' and '.join(f'recipe.{option}' for option in asked)} to 0."
        )


def _check_weights(pretrained: bool | str, models: list[str]) -> str | None:
    """That each model has published weights, if they are wanted; or the hash of the file that holds them."""
    if isinstance(pretrained, str):
        try:
            return hashlib.sha256(Path(pretrained).read_bytes()).hexdigest()
        except OSError as error:
            raise ConfigError(
                f"the weights {pretrained!r} cannot be read: {error.strerror}. Name a state dict or a checkpoint."
            ) from error
    for model in models:
        preprocessing_of(model, pretrained)
    return None
