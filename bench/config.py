"""Plan, recipe, budget and run configuration: frozen, validated; TOML in, list[RunConfig] out. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import tomllib
import typing
from collections.abc import Iterable, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bench.errors import ConfigError, did_you_mean

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Recipe(_Frozen):
    """How to train.

    Optimizer. ``lr`` is the peak learning rate at ``batch_size``; left open, the architecture's own is taken (given for
    SGD at batch 128) and scaled linearly with the batch size; an open ``weight_decay`` likewise. ``warmup`` is the
    share of the budget in which the learning rate rises linearly from zero, under any ``schedule``; ``linear`` then
    falls to zero (with a warm-up: triangular), ``one_cycle`` rises from 1/25 (Smith 2018), ``step`` is multiplied by
    ``step_factor`` at each of ``steps``, shares of the budget. ``ema`` is the decay, a step, of averaged weights, which
    are then what is evaluated and kept. ``drop_rate`` and ``batch_norm`` are the architecture's own where left open.

    Augmentation. ``flip`` mirrors images at random, or ``"alternating"``: each image every second epoch (airbench).
    ``crop_padding`` pixels of shift, filled with black or by reflection; ``rotation`` is in degrees; ``color_jitter``
    is the strength in brightness, contrast and saturation; ``randaugment`` is the number of operations on an image
    (Cubuk et al. 2019); ``cutout`` is the side in pixels of a square that is blanked out (DeVries and Taylor 2017);
    ``mixup`` (Zhang et al. 2017) and ``cutmix`` (Yun et al. 2019) are alpha, 0 for none. ``test_flip`` evaluates on an
    image and its mirror.

    Fine-tuning. For ``head_epochs`` the head trains alone, at ``head_lr``, with the backbone and its batch-norm
    statistics frozen; the rest of the budget trains everything under the schedule. ``epochs`` is the budget where a
    plan names none.
    """

    name: str = "custom"
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Positive | None = None
    weight_decay: NotNegative | None = None
    decay_norm_and_bias: bool = False
    momentum: Fraction = 0.9
    nesterov: bool = True
    batch_size: Count = 128
    schedule: Literal["cosine", "linear", "one_cycle", "step", "constant"] = "cosine"
    warmup: Fraction = 0.0
    steps: tuple[Fraction, ...] = (0.5, 0.75)
    step_factor: Fraction = 0.1
    label_smoothing: Fraction = 0.0
    clip_grad_norm: Positive | None = None
    ema: Fraction | None = None
    drop_rate: Fraction | None = None
    batch_norm: bool | None = None
    flip: bool | Literal["alternating"] = True
    test_flip: bool = False
    crop_padding: Annotated[int, Field(ge=0, le=16)] = 4
    crop_fill: Literal["black", "reflect"] = "black"
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    color_jitter: Fraction = 0.0
    randaugment: Annotated[int, Field(ge=0, le=10)] = 0
    cutout: Annotated[int, Field(ge=0)] = 0
    mixup: NotNegative = 0.0
    cutmix: NotNegative = 0.0
    head_epochs: Annotated[int, Field(ge=0)] = 0
    head_lr: Positive | None = None
    epochs: Count = 30

    @model_validator(mode="after")
    def _head_has_a_rate(self) -> Self:
        if self.head_epochs and self.head_lr is None:
            raise ValueError("head_epochs needs a head_lr, the learning rate of the head while it trains alone")
        return self

    @property
    def model_options(self) -> dict[str, Any]:
        """What the recipe asks of the architecture's builder."""
        options = {"drop_rate": self.drop_rate, "batch_norm": self.batch_norm}
        return {name: value for name, value in options.items() if value is not None}


class Budget(_Frozen):
    """When to stop: exactly one of epochs, seconds of training (evaluation and warm-up are off this clock), or MACs.

    A training step costs three times the forward pass's multiply-accumulates: the backward pass needs them once for
    the gradients of the activations and once for those of the weights.
    """

    epochs: Count | None = None
    seconds: Positive | None = None
    macs: Positive | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in Budget.model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a budget is exactly one of {', '.join(Budget.model_fields)}; given: {given or 'none'}")
        return self


class MeasureConfig(_Frozen):
    """How throughput is measured: until the 95% interval is within ``precision`` of the median, or for ``seconds``.

    ``seconds`` bounds each of inference and training; ``block_seconds`` is the least length of a timed block.
    ``batch_sizes`` are swept, smallest first, in as many seconds again; running out of memory ends the sweep.
    ``probes`` asks for what only the live network can tell: kernels, feature maps, Grad-CAM, the time of each layer.
    ``dtype`` is the precision of what is timed; left open, it is that of the run.
    """

    batch_size: Count = 128
    seconds: Positive = 10.0
    precision: Positive = 0.01
    block_seconds: Positive = 0.05
    batch_sizes: tuple[Count, ...] = ()
    probes: bool = True
    dtype: Literal["float32", "bfloat16"] | None = None


class RunConfig(_Frozen):
    """One run: a model, a seed and everything else that its result depends on."""

    model: str
    seed: int
    data: str
    data_sha256: str
    classes: tuple[str, ...] = ()
    input_size: Count
    pretrained: bool | str
    pretrained_sha256: str | None
    val_fraction: Fraction
    limit_train: Count | None
    limit_test: Count | None
    recipe: Recipe
    budget: Budget
    target_top1: Fraction | None = None
    measure: MeasureConfig
    device: str
    threads: Count
    autocast: bool
    channels_last: bool
    compile: bool = False

    @property
    def run_id(self) -> str:
        """The model, the seed and a hash of the whole configuration: equal for equal runs, and only for those.

        What is left at its default is not hashed, so that an option added later changes no id.
        """
        canonical = json.dumps(self.model_dump(mode="json", exclude_defaults=True), sort_keys=True).encode()
        return f"{self.model.replace('/', '-')}-s{self.seed}-{hashlib.sha256(canonical).hexdigest()[:12]}"


class Plan(_Frozen):
    """What to run: models × seeds × recipe, on one data set under one budget.

    ``models`` are names or wildcards, names perhaps with an option of the builder (``vgg16,batch_norm=true``);
    ``@representative`` stands for one or two of each family. ``classes`` takes only images of these. ``device`` is
    ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``. ``threads`` and the two options left open are chosen for the
    device; ``compile`` asks for torch.compile.
    ``pretrained`` is true for the published weights, or the path of a state dict; networks then get images of the size
    and preparation that belong to their weights. ``target_top1`` asks for the time and steps to that
    accuracy on ``val``, which is looked at after each epoch.
    """

    name: str
    description: str = ""
    models: Annotated[tuple[str, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1)] = (0,)
    data: str = "digits"
    classes: tuple[str, ...] = ()
    input_size: Count = 32
    pretrained: bool | str = False
    val_fraction: Fraction = 0.1
    limit_train: Count | None = None
    limit_test: Count | None = None
    recipe: Recipe = Recipe()
    budget: Budget | None = None
    target_top1: Fraction | None = None
    measure: MeasureConfig = MeasureConfig()
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    threads: Count | None = None
    autocast: bool | None = None
    channels_last: bool | None = None
    compile: bool = False

    @model_validator(mode="after")
    def _target_is_looked_for(self) -> Self:
        if self.target_top1 is not None and self.val_fraction == 0:
            raise ValueError("target_top1 is looked for on val: it needs a val_fraction above 0")
        return self

    @field_validator("models", "seeds")
    @classmethod
    def _distinct(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(values))

    def expand(
        self,
        *,
        models: Iterable[str],
        data_sha256: str,
        pretrained_sha256: str | None = None,
        device: str,
        threads: int,
        autocast: bool,
        channels_last: bool,
    ) -> list[RunConfig]:
        """The runs, seed by seed, with the wildcards and open choices resolved as given."""
        budget = self.budget or Budget(epochs=self.recipe.epochs)
        shared = {name: getattr(self, name) for name in RunConfig.model_fields.keys() & Plan.model_fields.keys()}
        resolved = {"budget": budget, "data_sha256": data_sha256, "device": device, "threads": threads}
        resolved |= {"autocast": autocast, "channels_last": channels_last, "pretrained_sha256": pretrained_sha256}
        return [
            RunConfig(**shared | resolved | {"model": model, "seed": seed}) for seed in self.seeds for model in models
        ]


def load_plan(name_or_path: str, overrides: Mapping[str, Any] | None = None) -> Plan:
    """The plan of that name among those that ship, or in that TOML file, with ``{"recipe.lr": 0.05}`` laid over it.

    Raises `ConfigError`, which names the plan, the key and the remedy.
    """
    text, where = _read("plans", "plan", name_or_path)
    table = {"name": Path(name_or_path).stem} | _parse(text, where)
    overrides = dict(overrides or {})
    table["recipe"] = _resolve_recipe(overrides.pop("recipe", table.get("recipe", {})), where)
    for key, value in overrides.items():
        _lay_over(table, key, value)
    return _validate(Plan, table, where)


def load_recipe(name_or_path: str) -> Recipe:
    """The recipe of that name among those that ship, or in that TOML file. Raises `ConfigError`."""
    return _validate(Recipe, _resolve_recipe(name_or_path, "the recipe"), f"recipe {name_or_path!r}")


def list_plans() -> list[str]:
    """Names of the plans that ship."""
    return sorted(_shipped("plans"))


def list_recipes() -> list[str]:
    """Names of the recipes that ship."""
    return sorted(_shipped("recipes"))


def parse_override(assignment: str) -> tuple[str, Any]:
    """``recipe.lr=0.05`` to ``("recipe.lr", 0.05)``: the value is read as TOML, and as a bare word where it is none."""
    key, equals, value = assignment.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {assignment!r} is not KEY=VALUE. Write, for example, --set recipe.lr=0.05.")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def parse_models(text: str) -> tuple[str, ...]:
    """``lenet5,resnet18,drop_rate=0.1`` to two names: an assignment belongs to the name before it."""
    names: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if "=" in part and names:
            names[-1] += f",{part}"
        else:
            names.append(part)
    return tuple(names)


def parse_seeds(text: str) -> tuple[int, ...]:
    """``0,1,2`` or ``0-4`` to the seeds. Raises `ConfigError`."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise ConfigError(f"--seeds {text!r} is not a list of seeds. Write, for example, --seeds 0,1,2 or 0-4.")
        seeds.extend(range(int(first), int(last or first) + 1))
    return tuple(seeds)


def _shipped(folder: Literal["plans", "recipes"]) -> dict[str, Traversable]:
    return {
        file.name.removesuffix(".toml"): file
        for file in files("bench").joinpath(folder).iterdir()
        if file.name.endswith(".toml")
    }


def _read(folder: Literal["plans", "recipes"], kind: str, name: str) -> tuple[str, str]:
    """The text of a plan or recipe, and how to call it in an error."""
    shipped = _shipped(folder)
    if name in shipped:
        return shipped[name].read_text(encoding="utf-8"), f"{kind} {name!r}"
    path = Path(name)
    if path.suffix != ".toml" and not path.is_file():
        raise ConfigError(
            f"no {kind} is named {name!r}.{did_you_mean(name, shipped)} "
            f"Those that ship: {', '.join(sorted(shipped))}; the path of a TOML file does as well."
        )
    try:
        return path.read_text(encoding="utf-8"), f"{kind} {name!r}"
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(
            f"the {kind} {name!r} cannot be read: {reason}. Name a TOML file or one of {', '.join(sorted(shipped))}."
        ) from error


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} is not valid TOML: {error}. See bench/plans/quick.toml for a model.") from error


def _resolve_recipe(recipe: Any, where: str) -> dict[str, Any]:
    """A recipe's name, or a table that may build on one (``base = "fast"``), to the full table."""
    if isinstance(recipe, str):
        text, where = _read("recipes", "recipe", recipe)
        return {"name": Path(recipe).stem} | _resolve_recipe(_parse(text, where), where)
    if not isinstance(recipe, dict):
        raise ConfigError(f"{where}: recipe = {recipe!r} is neither a recipe's name nor a table.")
    table = dict(recipe)
    base = table.pop("base", None)
    return (_resolve_recipe(base, where) | {"name": "custom"} if base is not None else {}) | table


def _lay_over(table: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        inner = table.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {key}: {parent!r} is a value, not a table.")
        table = inner
    table[last] = value


Model = typing.TypeVar("Model", bound=BaseModel)


def _validate(model: type[Model], table: Mapping[str, Any], where: str) -> Model:
    try:
        return model.model_validate(table)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(model, where, problem) for problem in error.errors())) from error


def _explain(model: type[BaseModel], where: str, problem: Any) -> str:
    """One validation error in words: which key of which file, what was given, what is possible."""
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        fields = _fields_at(model, problem["loc"][:-1])
        hint = did_you_mean(str(problem["loc"][-1]), fields)
        return f"{where} has no key {key!r}.{hint} Possible here: {', '.join(fields)}"
    if problem["type"] == "missing":
        return f"{where} lacks the key {key!r}"
    given = f" = {problem['input']!r}" if not isinstance(problem["input"], dict) else ""
    return f"{where}: {key}{given} is not possible: {problem['msg'].removeprefix('Value error, ')}"


def _fields_at(model: type[BaseModel], location: Iterable[str | int]) -> list[str]:
    for part in location:
        annotation: Any = model.model_fields[str(part)].annotation
        options = typing.get_args(annotation) or (annotation,)  # a table, or a table or nothing
        model = next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
    return list(model.model_fields)
