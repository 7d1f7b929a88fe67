"""Plan, recipe, budget and run configuration: frozen, validated; TOML in, list[RunConfig] out. Imports no torch."""

from __future__ import annotations

import copy
import tomllib
import typing
from collections.abc import Collection, Iterable, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from bench.errors import ConfigError, did_you_mean
from bench.identity import training_hash
from bench.recipe import Choice, Count, Fraction, Frozen, NotNegative, Positive
from bench.recipe import Recipe as Recipe

MAX_SEEDS = 100_000
SEED_DIGITS = 10
"""Of the largest seed."""

Folder = Literal["plans", "recipes", "studies"]


class Budget(Frozen):
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


class MeasureConfig(Frozen):
    """How speed is measured: in ``repeats``, between which the other quantities are measured.

    The 95% interval is that over the repeats. In each, blocks of at least ``block_seconds`` are timed until the
    repeat's own median is known to ``precision``, or its share of ``seconds`` is over. ``seconds`` limits each of
    inference and training; the sweep over ``batch_sizes`` has as many again, and ends where memory does.
    ``probes`` asks for what only the live network can tell: kernels, feature maps, Grad-CAM, the time of each layer.
    ``dtype`` is the precision of what is timed; left open, it is that of the run.
    """

    batch_size: Count = 128
    seconds: Positive = 10.0
    precision: Positive = 0.01
    block_seconds: Positive = 0.05
    repeats: Annotated[int, Field(ge=3, le=100)] = 5
    batch_sizes: tuple[Count, ...] = ()
    probes: bool = True
    dtype: Literal["float32", "bfloat16"] | None = None


class Rates(NamedTuple):
    """What a model is trained with: the peak learning rate, and the weight decay."""

    lr_peak: float
    weight_decay: float


class RunConfig(Frozen):
    """One run: a model, a seed and everything else that its result depends on.

    ``lr_peak`` and ``weight_decay`` are what the recipe or, where it leaves them open, the architecture says. Images
    are decoded at ``input_size`` pixels; the network takes them at ``network_input_size`` or, where that is None, at
    the size of its pretrained weights, without these as they are decoded.
    """

    model: str
    seed: int
    data: str
    data_sha256: str
    classes: tuple[str, ...] = ()
    label_column: str | None = None
    input_size: Count
    network_input_size: Count | None = None
    pretrained: bool | str
    pretrained_sha256: str | None
    val_fraction: Fraction
    limit_train: Count | None
    limit_test: Count | None
    recipe: Recipe
    lr_peak: Positive
    weight_decay: NotNegative
    budget: Budget
    target_top1: Fraction | None = None
    measure: MeasureConfig
    device: str
    threads: Count
    nproc: Count = 1
    autocast: Choice
    channels_last: Choice
    compile: Choice = False

    @property
    def run_id(self) -> str:
        """The model, the seed and a hash of what training depends on; see `bench.identity`."""
        return f"{self.model.replace('/', '-')}-s{self.seed}-{training_hash(self.model_dump(mode='json'))[:12]}"


class Plan(Frozen):
    """What to run: models × seeds × recipe, on one data set under one budget.

    ``name`` is also the folder of its results. ``models`` are names or wildcards, names perhaps with an option of the
    builder (``vgg16,batch_norm=true``); ``@representative`` stands for one or two of each family. ``one_seed`` names
    those of which only the first of ``seeds`` is run. ``classes`` takes only images of these; ``label_column`` chooses
    among several columns of labels in Parquet files. ``device`` is ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    ``autocast`` computes in bfloat16, ``channels_last`` is the memory layout, ``compile`` asks for torch.compile; each
    is true, false, or ``auto``: before training both ways are timed, and all seeds of a model train in the faster one.
    ``threads`` are all cores where left open. ``nproc`` processes train a network together, each on a device of its own
    (on a CPU, on its share of the cores); ``threads`` are then those of each. ``pretrained`` is true for the published
    weights, or the path of a state dict; networks then get images that are prepared as for their weights.
    ``input_size`` is the side of the images in pixels; where left open it is that of the weights, and without any 32.
    ``target_top1`` asks for the time and steps to that accuracy on ``val``, which is looked at after each
    epoch. ``published_top1`` is what others publish for some models, in words. ``gpu`` is the plan for a CUDA device;
    in a file, a table of what is different there.
    """

    name: Annotated[str, Field(pattern=r"^\w[\w.+ -]*$")]
    description: str = ""
    models: Annotated[tuple[str, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1)] = (0,)
    one_seed: tuple[str, ...] = ()
    data: str = "digits"
    classes: tuple[str, ...] = ()
    label_column: str | None = None
    input_size: Count | None = None
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
    nproc: Count = 1
    autocast: Choice = "auto"
    channels_last: Choice = "auto"
    compile: Choice = False
    published_top1: Mapping[str, str] = Field(default_factory=dict)
    gpu: Plan | None = None

    @model_validator(mode="after")
    def _target_is_looked_for(self) -> Self:
        if self.target_top1 is not None and self.val_fraction == 0:
            raise ValueError("target_top1 is looked for on val: it needs a val_fraction above 0")
        return self

    @model_validator(mode="after")
    def _statistics_to_keep(self) -> Self:
        if self.recipe.freeze_batch_norm and not self.pretrained:
            raise ValueError(
                f"the recipe {self.recipe.name!r} keeps the batch-norm statistics of pretrained weights "
                "(freeze_batch_norm), and the plan has none: set pretrained, or recipe.freeze_batch_norm=false"
            )
        return self

    @model_validator(mode="after")
    def _one_beginning(self) -> Self:
        if self.pretrained and (self.recipe.whiten or self.recipe.dirac):
            raise ValueError(
                f"the recipe {self.recipe.name!r} begins with filters of its own (whiten, dirac), which would replace "
                "the pretrained ones: set both to false, or leave pretrained out"
            )
        return self

    @model_validator(mode="after")
    def _small_images_fit_the_budget(self) -> Self:
        if self.recipe.small_epochs and self.budget is not None and self.budget.macs is not None:
            raise ValueError(
                "a budget in MACs counts images of full size, and the recipe's small_epochs have smaller ones: give "
                "the budget in epochs or seconds, or set recipe.small_epochs to 0"
            )
        epochs = self.recipe.epochs if self.budget is None else self.budget.epochs
        if self.recipe.small_epochs and epochs is not None and self.recipe.small_epochs >= epochs:
            raise ValueError(
                f"all of the {epochs} epochs would have small images (recipe.small_epochs = "
                f"{self.recipe.small_epochs}), and none of the size that is tested: set recipe.small_epochs to less"
            )
        return self

    @model_validator(mode="after")
    def _a_device_and_images_for_each(self) -> Self:
        if self.nproc > 1 and self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"nproc = {self.nproc} needs device = 'cuda' or 'cpu': device = {self.device!r} names one")
        if self.nproc > (size := self.recipe.batch_size):
            raise ValueError(f"nproc = {self.nproc} processes cannot share a batch of {size} images: set nproc to less")
        return self

    @field_validator("models", "seeds")
    @classmethod
    def _distinct(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(values))

    def expand(
        self,
        *,
        models: Mapping[str, Rates],
        one_seed: Collection[str] = (),
        data_sha256: str,
        input_size: int,
        network_input_size: int | None = None,
        pretrained_sha256: str | None = None,
        device: str,
        threads: int,
        autocast: Choice,
        channels_last: Choice,
    ) -> list[RunConfig]:
        """The runs, seed by seed, with the wildcards and open choices resolved as given: of each model its rates."""
        budget = self.budget or Budget(epochs=self.recipe.epochs)
        shared = {name: getattr(self, name) for name in RunConfig.model_fields.keys() & Plan.model_fields.keys()}
        resolved = {"budget": budget, "data_sha256": data_sha256, "device": device, "threads": threads}
        resolved |= {"autocast": autocast, "channels_last": channels_last, "pretrained_sha256": pretrained_sha256}
        resolved |= {"input_size": input_size, "network_input_size": network_input_size}
        return [
            RunConfig(**shared | resolved | {"model": model, "seed": seed} | rates._asdict())
            for seed in self.seeds
            for model, rates in models.items()
            if seed == self.seeds[0] or model not in one_seed
        ]


def load_plan(name_or_path: str, overrides: Mapping[str, Any] | None = None) -> Plan:
    """The plan of that name among those that ship, or in that TOML file, with ``{"recipe.lr": 0.05}`` laid over it.

    Raises `ConfigError`, which names the plan, the key and the remedy.
    """
    text, where = read_shipped("plans", "plan", name_or_path)
    return build_plan({"name": Path(name_or_path).stem} | parse_toml(text, where), where, overrides)


def build_plan(table: dict[str, Any], where: str, overrides: Mapping[str, Any] | None = None) -> Plan:
    """The plan of a table as TOML has it, with overrides laid over it; ``where`` names it in errors.

    Raises `ConfigError`.
    """
    table, overrides = copy.deepcopy(table), dict(overrides or {})
    recipe, tables = overrides.pop("recipe", None), [table]
    if isinstance(on_gpu := table.get("gpu"), dict):
        table["gpu"] = {key: value for key, value in table.items() if key != "gpu"} | on_gpu
        if isinstance(measure := table.get("measure"), dict) and isinstance(on_gpu.get("measure"), dict):
            table["gpu"]["measure"] = measure | on_gpu["measure"]
        tables.append(table["gpu"])
    for each in tables:
        each["recipe"] = _resolve_recipe(each.get("recipe", {}) if recipe is None else recipe, where)
        for key, value in overrides.items():
            if each is table or not key.startswith("gpu."):
                _lay_over(each, key, value)
    return validate(Plan, table, where)


def load_recipe(name_or_path: str) -> Recipe:
    """The recipe of that name among those that ship, or in that TOML file. Raises `ConfigError`."""
    return validate(Recipe, _resolve_recipe(name_or_path, "the recipe"), f"recipe {name_or_path!r}")


def list_plans() -> list[str]:
    """Names of the plans that ship."""
    return sorted(shipped("plans"))


def list_recipes() -> list[str]:
    """Names of the recipes that ship."""
    return sorted(shipped("recipes"))


def parse_override(assignment: str) -> tuple[str, Any]:
    """``recipe.lr=0.05`` to ``("recipe.lr", 0.05)``: the value is read as TOML, and as a bare word where it is none."""
    key, equals, value = assignment.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {assignment!r} is not KEY=VALUE. Write, for example, --set recipe.lr=0.05.")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
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
        is_number = [each.isdecimal() and len(each) <= SEED_DIGITS for each in (first, last or first)]
        if not all(is_number) or (dash and not last) or int(last or first) < int(first):
            raise ConfigError(
                f"--seeds {text[:80]!r} is not a list of seeds. Write, for example, --seeds 0,1,2 or 0-4."
            )
        if int(last or first) - int(first) >= MAX_SEEDS:
            raise ConfigError(f"--seeds {text!r} are more than {MAX_SEEDS:,} seeds. Give fewer, or several plans.")
        seeds.extend(range(int(first), int(last or first) + 1))
    return tuple(seeds)


def shipped(folder: Folder) -> dict[str, Traversable]:
    """The files of that folder by the names of what is in them."""
    return {
        file.name.removesuffix(".toml"): file
        for file in files("bench").joinpath(folder).iterdir()
        if file.name.endswith(".toml")
    }


def read_shipped(folder: Folder, kind: str, name: str) -> tuple[str, str]:
    """The text of a plan, recipe or study that ships or lies in a file, and how to call it in an error.

    Raises `ConfigError`.
    """
    known = shipped(folder)
    if name in known:
        return known[name].read_text(encoding="utf-8"), f"{kind} {name!r}"
    path = Path(name)
    if path.suffix != ".toml" and not path.is_file():
        raise ConfigError(
            f"no {kind} is named {name!r}.{did_you_mean(name, known)} "
            f"Those that ship: {', '.join(sorted(known))}; the path of a TOML file does as well."
        )
    try:
        return path.read_text(encoding="utf-8"), f"{kind} {name!r}"
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(
            f"the {kind} {name!r} cannot be read: {reason}. Name a TOML file or one of {', '.join(sorted(known))}."
        ) from error


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """The table in a text, of ``where``. Raises `ConfigError`."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also of numbers too long, and of nesting too deep, to be read
        raise ConfigError(f"{where} is not valid TOML: {error}. See bench/plans/quick.toml for a model.") from error


def _resolve_recipe(recipe: Any, where: str) -> dict[str, Any]:
    """A recipe's name, or a table that may build on one (``base = "fast"``), to the full table."""
    if isinstance(recipe, str):
        text, where = read_shipped("recipes", "recipe", recipe)
        return {"name": Path(recipe).stem} | _resolve_recipe(parse_toml(text, where), where)
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


def validate(model: type[Model], table: Mapping[str, Any], where: str) -> Model:
    """The model that a table of ``where`` is. Raises `ConfigError`, which explains each key that is not possible."""
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
