"""The registry: architectures register themselves by a decorator and are found, listed and built by name.

A name is one of
- ``resnet18``: an architecture of ``zoo/architectures/``, or of another package that
  announces it through the entry-point group ``zoobench.models``;
- ``timm/NAME`` and ``torchvision/NAME``: a model of those libraries, as they build it;
- either of these with options of its builder: ``deeplab_resnet18,output_stride=8``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import fnmatch
import functools
import importlib
import importlib.metadata
import inspect
import pkgutil
import types
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from torch import nn

ENTRY_POINT_GROUP = "zoobench.models"
SMALL_INPUT_SIZE = 64
"""At this input size or less, in pixels, an architecture takes its small-image form."""

Task = Literal["classification", "segmentation"]
Builder = Callable[..., nn.Module]
BuilderT = TypeVar("BuilderT", bound=Builder)


class ZooError(ValueError):
    """A request to the zoo that cannot be met; the message names it, what was expected and the remedy."""


class UnknownModelError(ZooError):
    """No architecture has this name."""


class DuplicateModelError(ZooError):
    """Two builders claim one name."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """What the literature or a reference implementation states of an architecture.

    ``params`` counts trainable parameters and ``gmacs`` the multiply-accumulates, in 10^9, of one forward pass,
    both at ``num_classes``, ``input_size`` (pixels; the builder's own default if None) and ``in_chans``.
    """

    params: int | None = None
    gmacs: float | None = None
    source: str
    num_classes: int = 1000
    input_size: int | None = None
    in_chans: int = 3


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What the registry knows of an architecture without building it.

    ``input_size`` and ``num_classes`` are the canonical ones, the builder's defaults. ``small_image`` says in a
    sentence what changes at 64 pixels or less. ``weights`` names the model of timm or torchvision whose pretrained
    weights fit. ``recipe`` holds what a recipe takes from the architecture where it leaves the value open:
    ``lr`` (peak, of SGD at batch 128) and ``weight_decay``. ``representative`` marks those of a family that stand for
    it in the plan ``quick``.
    """

    name: str
    family: str
    builder: Builder = field(repr=False, compare=False)
    paper: str = ""
    year: int | None = None
    task: Task = "classification"
    input_size: int = 224
    num_classes: int = 1000
    published: Published | None = None
    small_image: str = ""
    weights: str | None = None
    recipe: Mapping[str, float] = field(default_factory=dict)
    representative: bool = False


_builders: dict[str, ModelInfo] = {}


@overload
def register_model(builder: BuilderT, /) -> BuilderT: ...
@overload
def register_model(
    *,
    name: str | None = None,
    paper: str = "",
    year: int | None = None,
    task: Task = "classification",
    published: Published | None = None,
    small_image: str = "",
    weights: str | None = None,
    recipe: Mapping[str, float] | None = None,
    representative: bool = False,
) -> Callable[[BuilderT], BuilderT]: ...
def register_model(
    builder: Any = None,
    /,
    *,
    name: str | None = None,
    recipe: Mapping[str, float] | None = None,
    **facts: Any,
) -> Any:
    """Register a builder under its function's name (or ``name``); see `ModelInfo` for the facts.

    The builder takes ``num_classes`` and ``input_size``, and ``in_chans`` if it can; further keyword arguments are
    its own options. Of each family (one file) the plan ``quick`` benchmarks the builders marked ``representative``,
    or the first classifier where none is marked.

    Raises `DuplicateModelError` if another builder has the name.
    """

    def register(builder: BuilderT) -> BuilderT:
        model = name or builder.__name__
        parameters = inspect.signature(builder).parameters
        known = _builders.get(model)
        # A module that is reloaded registers the same function again: only another one is a clash.
        if known is not None and _origin(known.builder) != _origin(builder):
            raise DuplicateModelError(
                f"two architectures are named {model!r}: {_origin(known.builder)} and {_origin(builder)}. "
                "Rename one of them; a name belongs to one builder."
            )
        _builders[model] = ModelInfo(
            name=model,
            family=builder.__module__.rpartition(".")[2],
            builder=builder,
            recipe=types.MappingProxyType(dict(recipe or {})),
            input_size=_default(parameters, "input_size", 224),
            num_classes=_default(parameters, "num_classes", 1000),
            **facts,
        )
        return builder

    return register if builder is None else register(builder)


def create_model(
    name: str,
    num_classes: int = 10,
    input_size: int = 32,
    in_chans: int = 3,
    pretrained: bool | str | Path = False,
    **options: Any,
) -> nn.Module:
    """Build the architecture ``name`` with freshly initialised or pretrained weights.

    Args:
        name: a registered name, ``timm/NAME`` or ``torchvision/NAME``; with options, as ``resnet18,option=value``.
        num_classes: outputs of the head.
        input_size: side of the square input images in pixels; at most 64 chooses the small-image form.
        in_chans: channels of the input images.
        pretrained: ``True`` for the published weights (downloaded by timm or torchvision), or the path of a state
            dict or checkpoint. A head for another number of classes is left freshly initialised.
        options: further keyword arguments of the builder, such as ``drop_rate`` or ``output_stride``.

    Returns:
        A module that maps float images ``N×in_chans×input_size×input_size`` to logits ``N×num_classes``.

    Raises:
        UnknownModelError: nothing is registered under the name.
        ZooError: an argument that the architecture does not take, or weights that do not fit.
    """
    for argument, value in {"num_classes": num_classes, "input_size": input_size, "in_chans": in_chans}.items():
        if value < 1:
            raise ZooError(f"{argument}={value} is not possible for {name!r}: expected an integer of at least 1.")
    name, named_options = split_options(name)
    options = named_options | options
    if "/" in name:
        from zoo import external

        return external.create_model(name, num_classes, input_size, in_chans, pretrained, **options)

    info = model_info(name)
    arguments: dict[str, Any] = {"num_classes": num_classes, "input_size": input_size, "in_chans": in_chans} | options
    if in_chans == 3 and not _takes(info.builder, "in_chans"):
        del arguments["in_chans"]
    check_options(name, arguments)
    model = info.builder(**arguments)
    if pretrained:
        from zoo.pretrained import load_pretrained

        load_pretrained(model, info, pretrained)
    return model


def list_models(pattern: str | Iterable[str] = "*") -> list[str]:
    """Names that match a wildcard pattern (or any of several), sorted; ``timm/*`` and ``torchvision/*`` ask those."""
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    names: set[str] = set()
    for each in patterns:
        if "/" in each:
            from zoo import external

            names.update(external.list_models(each))
        else:
            names.update(fnmatch.filter(_registered(), each))
    return sorted(names)


def model_info(name: str) -> ModelInfo:
    """The registry's entry for ``name``. Raises `UnknownModelError`, with the nearest names.

    With options in the name they must be its builder's, and nothing is published of that form: `ZooError` otherwise.
    """
    plain, options = split_options(name)
    if options:
        info = model_info(plain)
        check_options(plain, options)
        return dataclasses.replace(info, name=name, published=None)
    if "/" in name:
        from zoo import external

        return external.model_info(name)
    models = _registered()
    if name not in models:
        raise UnknownModelError(
            f"no architecture is named {name!r}.{did_you_mean(name, models)} "
            "`zoobench list` shows all names; timm/NAME and torchvision/NAME name those libraries' models."
        )
    return models[name]


def split_options(name: str) -> tuple[str, dict[str, Any]]:
    """``resnet18,width=2,act=relu`` to ``("resnet18", {"width": 2, "act": "relu"})``.

    Values are numbers, ``true``, ``false``, or words. Raises `ZooError` for a part without ``=``.
    """
    plain, *assignments = (part.strip() for part in name.split(","))
    options: dict[str, Any] = {}
    for assignment in assignments:
        option, equals, value = (part.strip() for part in assignment.partition("="))
        if not equals or not option.isidentifier():
            raise ZooError(f"{assignment!r} in {name!r} is no option: expected NAME,OPTION=VALUE.")
        options[option] = _read_value(value)
    return plain, options


def check_options(name: str, options: Iterable[str]) -> None:
    """Raise `ZooError` if the builder of ``name`` does not take one of the options."""
    for option in options:
        if not takes_option(name, option):
            possible = inspect.signature(model_info(name).builder).parameters
            raise ZooError(
                f"{name!r} takes no argument {option!r}.{did_you_mean(option, possible)} "
                f"It takes {', '.join(possible)}."
            )


def _read_value(text: str) -> bool | int | float | str:
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(text)
    return text


def takes_option(name: str, option: str) -> bool:
    """Whether the builder of ``name`` takes the option; of other libraries' builders it is supposed."""
    return "/" in name or _takes(model_info(name).builder, option)


def _takes(builder: Builder, argument: str) -> bool:
    parameters = inspect.signature(builder).parameters
    return argument in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def representative_models() -> list[str]:
    """One or two names of each family, by year: the ones marked ``representative``, else the family's first.

    Only classifiers: they are to be compared with one another.
    """
    families: dict[str, list[ModelInfo]] = {}
    for info in _registered().values():
        if info.task == "classification":
            families.setdefault(info.family, []).append(info)
    chosen = [info for members in families.values() for info in _chosen(members)]
    return [info.name for info in sorted(chosen, key=lambda info: (info.year or 9999, info.name))]


def did_you_mean(word: str, possible: Iterable[str]) -> str:
    """`` Did you mean 'x' or 'y'?``, or nothing where no possible word is near."""
    near = difflib.get_close_matches(word, list(possible), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def _chosen(members: list[ModelInfo]) -> list[ModelInfo]:
    return [info for info in members if info.representative] or members[:1]


@functools.cache
def _discover() -> None:
    """Import every architecture file once; importing registers."""
    from zoo import architectures

    for module in pkgutil.iter_modules(architectures.__path__, prefix="zoo.architectures."):
        importlib.import_module(module.name)
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            target = entry_point.load()
        except Exception as error:  # noqa: BLE001 - another package's fault must not take the zoo down
            warnings.warn(f"the architectures of {entry_point.value!r} cannot be imported: {error!r}", stacklevel=2)
            continue
        if callable(target) and target not in {info.builder for info in _builders.values()}:
            register_model(name=entry_point.name)(target)


def _registered() -> dict[str, ModelInfo]:
    _discover()
    return _builders


def _default(parameters: Mapping[str, inspect.Parameter], name: str, otherwise: int) -> int:
    default = parameters[name].default if name in parameters else otherwise
    return default if isinstance(default, int) else otherwise


def _origin(builder: Builder) -> str:
    return f"{builder.__module__}.{builder.__qualname__}"
