"""Weights from timm, torchvision or a file into one of our models; a new head; the preprocessing that goes with them.

Names of parameters are torchvision's or timm's as they stand; where a family's differ, its class translates them by
``reference_keys``, regular expressions over their names.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.registry import SMALL_INPUT_SIZE, ModelInfo, ZooError, model_info

# Checkpoints keep the state dict under one of these keys beside optimizer and epoch; averaged weights come first.
WRAPPERS = ("model_ema", "state_dict_ema", "state_dict", "model_state", "model_state_dict", "model", "weights", "net")
# What data-parallel training and compilation put before the names.
PREFIXES = ("module.", "_orig_mod.")
METADATA_KEY = "zoobench.preprocessing"
LISTED = 8
"""Keys that an error message lists of each kind."""


@dataclass(frozen=True)
class LoadedWeights:
    """What `load_pretrained` did: names of the parameters and buffers it ``loaded``, and those left ``fresh``.

    ``fresh`` is empty, or the head where the weights are for another number of classes or another head.
    """

    source: str
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]


@dataclass(frozen=True)
class Preprocessing:
    """How images were prepared for a set of weights.

    ``mean`` and ``std`` are of channels scaled to [0, 1]; ``input_size`` is in pixels; ``crop_pct`` is the side of the
    centre crop as a share of the resized image.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: int
    interpolation: str
    crop_pct: float


def load_pretrained(model: nn.Module, info: ModelInfo, source: bool | str | Path) -> LoadedWeights:
    """Load pretrained weights into ``model``, which is otherwise left as it was.

    Args:
        model: built for the number of classes that is wanted; a head that differs from the source's stays fresh.
        info: the registry's entry, which names the published weights.
        source: ``True`` for those, or the path of a state dict or checkpoint (``.safetensors``, or what
            ``torch.load`` reads without running code).

    Raises:
        ZooError: there are no such weights, the file cannot be read, or the weights do not fit; the message lists
            missing, extra and wrongly shaped keys.
    """
    if source is True:
        if info.weights is None:
            raise ZooError(
                f"there are no published weights of {info.name!r}. Give the path of a state dict as `pretrained`, or "
                "choose a model that has them: `zoobench describe` names them."
            )
        from zoo import external

        state, label = external.load_reference_weights(info.weights), info.weights
    else:
        path = Path(str(source))
        state, label = read_state_dict(path), str(path)

    own = model.state_dict()
    state = _translate(state, own, getattr(type(model), "reference_keys", {}))
    heads = head_names(model)
    fresh = [key for head in heads for key in _differing_head(head, own, state)]
    fresh_heads = {head for head in heads if any(_within(key, head) for key in fresh)}
    # A head of another make brings keys of its own; they are left out with it.
    state = {key: value for key, value in state.items() if not any(_within(key, head) for head in fresh_heads)}
    _check_fit(info.name, label, own, state, fresh)
    model.load_state_dict(own | state)
    return LoadedWeights(label, tuple(key for key in own if key in state), tuple(fresh))


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in a file, freed of a checkpoint's wrapping and of ``module.`` prefixes.

    Raises `ZooError` if the file is missing, damaged, or holds no state dict.
    """
    if not path.is_file():
        raise ZooError(f"there is no file {str(path)!r} to load weights from.")
    content: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - zip, pickle and format errors have no common base
        raise ZooError(
            f"{str(path)!r} cannot be read as weights ({type(error).__name__}). Expected a state dict of tensors, "
            "saved by torch.save or as .safetensors; the file is damaged, incomplete, of another format, or holds "
            "Python objects, which are refused because loading them runs code."
        ) from None
    for _ in range(2):  # {"model": {"state_dict": …}} occurs
        if isinstance(content, Mapping):
            content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        found = (
            f"a dict of {', '.join(map(str, list(content)[:LISTED]))}"
            if isinstance(content, Mapping)
            else type(content).__name__
        )
        raise ZooError(f"{str(path)!r} holds no state dict: expected names with tensors, found {found}.")
    state = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the layers that put out the classes: ``fc``, ``classifier.6``, a segmentation net's two.

    A class may name them itself by ``heads``. Raises `ZooError` if there is neither a linear layer nor a convolution.
    """
    named: tuple[str, ...] | None = getattr(type(model), "heads", None)
    if named is not None:
        return named
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    # An auxiliary head ends in a layer of its own; heads are the last layers of parts with such names.
    ends = {name.partition(".")[0]: name for name in layers}
    segmentation = [ends[part] for part in ("classifier", "aux_classifier") if part in ends]
    if len(segmentation) == 2 or (segmentation and isinstance(layers[segmentation[0]], nn.Conv2d)):
        return tuple(segmentation)
    linear = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]
    if not linear:
        if not layers:
            raise ZooError(f"{type(model).__name__} has no linear layer or convolution as its head.")
        return (list(layers)[-1],)
    return (linear[-1],)


def replace_head(model: nn.Module, num_classes: int) -> nn.Module:
    """Give the model a fresh head for ``num_classes``, on the same device; returns the model.

    Segmentation nets get both heads replaced. Raises `ZooError` where the head is fixed, as in LeNet-5 of 1998.
    """
    for name in head_names(model):
        old = model.get_submodule(name)
        if not isinstance(old, nn.Linear | nn.Conv2d):
            raise ZooError(f"the head of {type(model).__name__}, {name!r}, is fixed: build the model for the classes.")
        new: nn.Module
        if isinstance(old, nn.Linear):
            new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
        elif old.kernel_size == (1, 1):
            new = nn.Conv2d(old.in_channels, num_classes, 1, bias=old.bias is not None)
        else:
            raise ZooError(f"the last layer of {type(model).__name__}, {name!r}, is no head that can be replaced.")
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, new.to(old.weight))
    return model


def preprocessing(name: str) -> Preprocessing:
    """The preprocessing of the published weights of ``name``: of ours, ``timm/NAME`` or ``torchvision/NAME``.

    Raises `ZooError` where there are no published weights.
    """
    weights = model_info(name).weights
    if weights is None:
        raise ZooError(
            f"there are no published weights of {name!r}, so there is no preprocessing that belongs to them."
        )
    library, _, model = weights.partition("/")
    if library == "timm":
        import timm

        config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(model).to_dict())
        return Preprocessing(
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            input_size=int(config["input_size"][-1]),
            interpolation=str(config["interpolation"]),
            crop_pct=float(config["crop_pct"]),
        )
    import torchvision

    entries = torchvision.models.get_model_weights(model)
    if not len(entries):
        raise ZooError(f"torchvision has no pretrained weights of {model!r}, so there is no preprocessing.")
    preset = entries.DEFAULT.transforms()
    resize = _side(preset.resize_size)
    crop = _side(getattr(preset, "crop_size", None)) or resize
    return Preprocessing(
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        input_size=crop,
        interpolation=str(preset.interpolation.value),
        crop_pct=crop / resize,
    )


def save_weights(model: nn.Module, path: Path, preprocessing: Preprocessing) -> None:
    """Write a state dict as ``.safetensors``, atomically, with the preparation of its images. Raises OSError."""
    from safetensors.torch import save

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(save(state, {METADATA_KEY: json.dumps(dataclasses.asdict(preprocessing))}))
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def saved_preprocessing(path: Path) -> Preprocessing | None:
    """What a file of `save_weights` says of its images; None for any other file."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            stored = (file.metadata() or {}).get(METADATA_KEY)
    except SafetensorError:
        return None  # `read_state_dict` says what is wrong with it
    if stored is None:
        return None
    values = json.loads(stored)
    return Preprocessing(**values | {"mean": tuple(values["mean"]), "std": tuple(values["std"])})


def _side(size: Any) -> int:
    if size is None:
        return 0
    return int(size[0] if isinstance(size, list | tuple) else size)


def _within(key: str, module: str) -> bool:
    return key.startswith(f"{module}.")


def _translate(
    state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], names: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """Their names to ours; a name that is ours already stays, so our own checkpoints load as well."""
    translated = {}
    for key, value in state.items():
        name = key
        if key not in own or not names:
            for pattern, replacement in names.items():
                name = re.sub(pattern, replacement, name)
        translated[name] = value
    return translated


def _differing_head(head: str, own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> list[str]:
    """Our keys of the head if the weights bring another one there: for another number of classes, or of other layers.

    A head of which keys are merely lacking is no other head, and neither is one that reads other features.
    """
    ours = {key: value.shape for key, value in own.items() if _within(key, head)}
    theirs = {key: value.shape for key, value in state.items() if _within(key, head)}
    if not ours or not theirs:
        return []
    another_make = not ours.keys() & theirs.keys()
    other_classes = ours.keys() == theirs.keys() and all(
        ours[key][0] != theirs[key][0] and ours[key][1:] == theirs[key][1:] for key in ours
    )
    return list(ours) if another_make or other_classes else []


def _check_fit(
    name: str, label: str, own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], fresh: Iterable[str]
) -> None:
    """Raise `ZooError` unless ``state`` has exactly our keys, but the fresh ones, in our shapes."""
    # Counters of batch norm are missing in files older than they are; they only matter without a momentum.
    missing = [
        key for key in own if key not in state and key not in set(fresh) and not key.endswith("num_batches_tracked")
    ]
    extra = [key for key in state if key not in own]
    shapes = [
        f"{key} is {_shape(state[key])} in the file, {_shape(own[key])} in the model"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if not (missing or extra or shapes):
        return
    parts = [
        f"{len(keys)} {kind}: {', '.join(keys[:LISTED])}{', …' if len(keys) > LISTED else ''}."
        for kind, keys in (("missing", missing), ("extra", extra), ("wrongly shaped", shapes))
        if keys
    ]
    message = f"the weights {label!r} do not fit {name!r}. {' '.join(parts)}"
    first = next(key for key, value in own.items() if value.dim() > 1)
    if any(entry.startswith(f"{first} ") for entry in shapes):
        message += (
            f" The first layer differs: at {SMALL_INPUT_SIZE} pixels or less a model has its small-image stem, whose "
            f"weights are others than those of the canonical form. Build it with input_size above {SMALL_INPUT_SIZE}, "
            "and with the in_chans of the weights, and let the images be resized."
        )
    raise ZooError(message)


def _shape(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"
