"""The registry: a decorator registers architectures, which are then found, listed and built by name.

A name is one of
- ``resnet18``: an architecture in ``zoo/architectures/``, or in another package that registers it through the
  entry-point group ``zoobench.models``;
- ``timm/NAME`` and ``torchvision/NAME``: a model of those libraries, as they build it;
- either of these with options of its builder: ``deeplab_resnet18,output_stride=8``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import functools
import importlib
import importlib.metadata
import inspect
import pkgutil
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, overload

from torch import nn

from zoo.info import (
    Builder,
    BuilderT,
    DuplicateModelError,
    ModelInfo,
    Published,
    Task,
    UnknownModelError,
    ZooError,
    did_you_mean,
)
from zoo.meta import build_on_meta

ENTRY_POINT_GROUP = "zoobench.models"

_builders: dict[str, ModelInfo] = {}
SETTING = ("num_classes", "input_size", "in_chans")
"""Arguments of builders that are no options of one model: a command, a plan or a caller gives them."""


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
    its own options. From each family (one file) the plan ``quick`` runs the builders marked ``representative``, or the
    first classifier if none is marked.

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
    _check_no_setting(name, named_options)
    options = named_options | options
    info = model_info(name)
    arguments: dict[str, Any] = {"num_classes": num_classes, "input_size": input_size, "in_chans": in_chans} | options
    if "/" in name:
        from zoo import external

        model = external.create_model(info, **arguments)
    else:
        if in_chans == 3 and not _takes(info.builder, "in_chans"):
            del arguments["in_chans"]
        check_options(name, arguments)
        model = _build(info, arguments)
    if pretrained:
        from zoo.pretrained import load_pretrained

        load_pretrained(model, info, pretrained, (in_chans, input_size, input_size), options)
    return model


def create_meta_model(
    name: str, num_classes: int = 10, input_size: int = 32, in_chans: int = 3, **options: Any
) -> nn.Module:
    """The same network on the meta device, without memory for its weights; on the CPU where it cannot be built there.

    Its parameters' device says which: `zoo.meta.device_of`. Arguments and errors are those of `create_model`.
    """
    return build_on_meta(lambda: create_model(name, num_classes, input_size, in_chans, **options))


def list_models(pattern: str | Iterable[str] = "*") -> list[str]:
    """Names that match a wildcard pattern or any of several, sorted; ``timm/*`` and ``torchvision/*`` list theirs."""
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

    Options in the name must be its builder's (`ZooError` otherwise); nothing is published for such a variant.
    """
    plain, options = split_options(name)
    if options:
        info = model_info(plain)
        _check_no_setting(plain, options)
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
            raise ZooError(f"{assignment!r} in {name!r} is not an option: expected NAME,OPTION=VALUE.")
        options[option] = _read_value(value)
    return plain, options


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise `ZooError` if the builder of ``name`` does not take one of the options, or no such value of it."""
    for option, value in options.items():
        if not takes_option(name, option):
            possible = inspect.signature(model_info(name).builder).parameters
            raise ZooError(
                f"{name!r} takes no argument {option!r}.{did_you_mean(option, possible)} "
                f"It takes {', '.join(possible)}."
            )
        if "/" not in name:
            _check_kind(name, option, value)


def _check_kind(name: str, option: str, value: Any) -> None:
    """A word would count as true, and true as 1."""
    parameter = inspect.signature(model_info(name).builder).parameters.get(option)
    default = None if parameter is None else parameter.default
    if isinstance(default, bool) and not isinstance(value, bool):
        raise ZooError(f"{option}={value} is not possible for {name!r}: expected true or false.")
    if isinstance(default, int | float) and not isinstance(default, bool) and isinstance(value, bool):
        raise ZooError(f"{option}={value} is not possible for {name!r}: expected a number.")


def _check_no_setting(name: str, options: Iterable[str]) -> None:
    for option in options:
        if option in SETTING:
            raise ZooError(
                f"{option} is no option in the name of {name!r}: counts and records would say otherwise. Give it as "
                f"--{option.replace('_', '-')}, in a plan as {option}, or as an argument of create_model."
            )


def _read_value(text: str) -> bool | int | float | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(text)
    return text


def takes_option(name: str, option: str) -> bool:
    """Whether the builder of ``name`` takes the option; True for other libraries' builders, which check themselves."""
    return "/" in name or _takes(model_info(name).builder, option)


def _build(info: ModelInfo, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        return info.builder(**arguments)
    except ZooError:
        raise
    except Exception as error:
        if info.builder.__module__.startswith("zoo."):
            asked = {k: v for k, v in arguments.items() if k not in SETTING}
            if not asked:
                raise
            given = ", ".join(f"{option}={value}" for option, value in asked.items())
            raise ZooError(f"{info.name!r} cannot be built with {given}: {error}.") from error
        raise ZooError(
            f"{info.name!r}, of another package, cannot be built ({type(error).__name__}: {error})."
        ) from error


def _takes(builder: Builder, argument: str) -> bool:
    parameters = inspect.signature(builder).parameters
    return argument in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def representative_models() -> list[str]:
    """One or two names of each family, by year: the ones marked ``representative``, else the family's first.

    Classifiers only, so that they can be compared with one another.
    """
    families: dict[str, list[ModelInfo]] = {}
    for info in _registered().values():
        if info.task == "classification":
            families.setdefault(info.family, []).append(info)
    chosen = [info for members in families.values() for info in _chosen(members)]
    return [info.name for info in sorted(chosen, key=lambda info: (info.year or 9999, info.name))]


def _chosen(members: list[ModelInfo]) -> list[ModelInfo]:
    return [info for info in members if info.representative] or members[:1]


@functools.cache
def _discover() -> None:
    """Import every architecture file once; importing registers."""
    package = importlib.import_module("zoo.architectures")
    for module in pkgutil.iter_modules(package.__path__, prefix="zoo.architectures."):
        importlib.import_module(module.name)
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            with contextlib.redirect_stdout(sys.stderr):  # what a package prints must not end up in our output
                _register_entry_point(entry_point.name, entry_point.load())
        except (Exception, SystemExit) as error:  # noqa: BLE001 - another package's fault must not take the zoo down
            warnings.warn(f"the model {entry_point.name!r} of {entry_point.value!r} is left out: {error}", stacklevel=2)


def _register_entry_point(name: str, target: Any) -> None:
    """Register a builder under the name that its package announces; a module has registered its own on import.

    Raises `DuplicateModelError` if another builder has the name: the first one keeps it.
    """
    if isinstance(target, types.ModuleType):
        return
    known = _builders.get(name)
    if known is not None and known.builder is target:
        return  # it has registered itself, with more facts
    same = next((info for info in _builders.values() if info.builder is target), None)
    if known is None and same is not None:
        _builders[name] = dataclasses.replace(same, name=name)
    else:
        register_model(name=name)(target)


def _registered() -> dict[str, ModelInfo]:
    _discover()
    return _builders


def _default(parameters: Mapping[str, inspect.Parameter], name: str, otherwise: int) -> int:
    default = parameters[name].default if name in parameters else otherwise
    return default if isinstance(default, int) else otherwise


def _origin(builder: Builder) -> str:
    return f"{builder.__module__}.{getattr(builder, '__qualname__', repr(builder))}"
