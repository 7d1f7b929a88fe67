"""Load weights from timm, torchvision or a file; replace a head; the preprocessing that belongs to weights.

Names of parameters are torchvision's or timm's as they stand; where a family's differ, its class translates them by
``reference_keys``, regular expressions over their names.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.checkpoints import Checkpoint, read_checkpoint, separate
from zoo.conventions import adopt_conventions, saved_conventions, shortcut_hint
from zoo.info import SMALL_INPUT_SIZE, ModelInfo, ZooError
from zoo.matching import (
    Match,
    Misfit,
    listed,
    match_by_name,
    match_by_position,
    without_wrappers,
)
from zoo.structure import trace_structure

METADATA_KEY = "zoobench.preprocessing"
CONVENTIONS_KEY = "zoobench.conventions"

# Networks with more than one last layer, by the names of their classes.
HEADS = {"LRASPP": ("classifier.low_classifier", "classifier.high_classifier")}


@dataclass(frozen=True)
class LoadedWeights:
    """What `load_pretrained` did.

    ``loaded`` and ``fresh`` are our names: what came from ``source``, and what keeps its random values (the head,
    where the weights are for another number of classes or have another head). ``dropped`` are names of the file that
    the network has no place for. With ``by_position`` names differed, and layers were paired in their order. ``notes``
    are sentences on what was assumed.
    """

    source: str
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    dropped: tuple[str, ...] = ()
    by_position: bool = False
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """One paragraph for the user, in full sentences."""
        how = (
            "by position, as the names differ and the shapes agree; shapes do not show activations or padding, so "
            "check the accuracy with `zoobench evaluate`"
        )
        parts = [f"{len(self.loaded)} tensors of {self.source} loaded {how if self.by_position else 'by name'}"]
        if self.fresh:
            parts.append(f"{len(self.fresh)} left as initialised: {listed(self.fresh)}")
        if self.dropped:
            parts.append(f"{len(self.dropped)} of the file dropped: {listed(self.dropped)}")
        return " ".join(f"{part[0].upper()}{part[1:]}." for part in (*parts, *self.notes))


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


def load_pretrained(
    model: nn.Module,
    info: ModelInfo,
    source: bool | str | Path,
    image_shape: tuple[int, int, int],
    options: Mapping[str, Any] | None = None,
) -> LoadedWeights:
    """Load pretrained weights into ``model``; where they do not fit, it stays as it was.

    Args:
        model: built for the number of classes that is wanted; a head that differs from the source's stays fresh.
        info: the registry's entry, which names the published weights.
        source: ``True`` for those, or the path of a state dict or checkpoint (``.safetensors``, or what
            ``torch.load`` reads without running code).
        image_shape: the images ``C×H×W`` that the model was built for.
        options: those that the model was built with; what the user chose is not changed to suit the weights.

    Returns:
        What was done; `loaded_weights` finds it again.

    Raises:
        ZooError: there are no such weights, the file cannot be read, or the weights do not fit; the message lists
            missing, extra and wrongly shaped names.
    """
    checkpoint = _published(info) if source is True else read_checkpoint(Path(str(source)))
    own = model.state_dict()
    state = without_wrappers(checkpoint.tensors, own)
    heads = head_names(model)
    translation = getattr(type(model), "reference_keys", {})
    match = by_name = match_by_name(own, state, heads, translation)
    if isinstance(match, Misfit):
        match = match_by_position(own, state, heads, trace_structure(model, image_shape), checkpoint.ordered)
    if isinstance(match, Misfit):
        assert isinstance(by_name, Misfit)
        by_position = f" {match}" if by_name.missing or by_name.extra else ""
        hints = _stem_hint(own, state, by_name) + _quantisation_hint(by_name) + shortcut_hint(model, state)
        raise ZooError(f"the weights {checkpoint.source!r} do not fit {info.name!r}. {by_name}{by_position}{hints}")
    tensors, notes = _as_stored(own, match, checkpoint.source)
    saved = _stored_table((checkpoint.metadata or {}).get(CONVENTIONS_KEY, "{}"), checkpoint.source)
    notes += adopt_conventions(model, checkpoint, _classes(match, heads, state), options or {}, saved)
    merged = model.state_dict()  # with the versions that some of torchvision's classes ask for
    merged.update(tensors)
    model.load_state_dict(merged)
    report = LoadedWeights(
        checkpoint.source,
        tuple(name for name in own if name in tensors),
        match.fresh,
        match.dropped,
        match.by_position,
        (*checkpoint.notes, *match.notes, *notes),
    )
    object.__setattr__(model, "_loaded_weights", report)
    return report


def loaded_weights(model: nn.Module) -> LoadedWeights | None:
    """What was loaded into the model by `zoo.create_model` with ``pretrained``; None for a fresh one."""
    report = getattr(model, "_loaded_weights", None)
    return report if isinstance(report, LoadedWeights) else None


def _published(info: ModelInfo) -> Checkpoint:
    if info.weights is None:
        raise ZooError(
            f"there are no published weights of {info.name!r}. Pass the path of a state dict as `pretrained`, or "
            "choose a model that has some: `zoobench describe` says which."
        )
    from zoo import external

    return Checkpoint(info.weights, external.load_reference_weights(info.weights))


def _as_stored(own: Mapping[str, torch.Tensor], match: Match, source: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors in our kinds of numbers, and notes on what that changed. Raises `ZooError` for quantised weights."""
    tensors: dict[str, torch.Tensor] = {}
    converted: set[str] = set()
    for name, tensor in match.tensors.items():
        floating = own[name].is_floating_point()
        if floating and (not tensor.is_floating_point() or tensor.element_size() < 2):
            raise ZooError(
                f"the weights {source!r} are quantised: {name!r} is {_dtype(tensor)} in the file, "
                f"{_dtype(own[name])} in the model. Their scales are no part of a network of floating point numbers; "
                "use the weights from before the quantisation."
            )
        if not floating and tensor.is_floating_point():
            if not torch.equal(tensor, tensor.round()):
                raise ZooError(f"{name!r} in {source!r} holds fractions, where the model counts whole numbers.")
        elif floating and tensor.dtype != own[name].dtype:
            converted.add(f"{_dtype(tensor)}, loaded as {_dtype(own[name])}")
        tensors[name] = tensor.to(own[name].dtype)
    notes = [f"stored as {kinds}" for kinds in sorted(converted)]
    bad = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    return tensors, notes + ([f"{len(bad)} tensors hold values that are not finite: {listed(bad)}"] if bad else [])


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the layers that put out the classes: ``fc``, ``classifier.6``, a segmentation net's two.

    A class may name them itself by ``heads``. Raises `ZooError` if there is neither a linear layer nor a convolution.
    """
    named: tuple[str, ...] | None = getattr(type(model), "heads", HEADS.get(type(model).__name__))
    if named is not None:
        return named
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    classifier = (getattr(model, "pretrained_cfg", None) or {}).get("classifier")  # timm's say it themselves
    if classifier:
        named = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        distilled = [name.replace("head", "head_dist", 1) for name in named]
        named = (*named, *(name for name in distilled if name in layers and name not in named))
        if all(name in layers for name in named):
            return named
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


def preprocessing(info: ModelInfo) -> Preprocessing:
    """The preprocessing of a model's published weights: of ours, ``timm/NAME`` or ``torchvision/NAME``.

    Raises `ZooError` where there are no published weights.
    """
    weights = info.weights
    if weights is None:
        raise ZooError(
            f"there are no published weights of {info.name!r}, so there is no preprocessing that belongs to them."
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
    """Write a state dict as ``.safetensors``, atomically, with its preprocessing and conventions. Raises OSError."""
    from safetensors.torch import save

    state = separate({name: tensor.detach().cpu() for name, tensor in model.state_dict().items()})
    metadata = {
        METADATA_KEY: json.dumps(dataclasses.asdict(preprocessing)),
        CONVENTIONS_KEY: json.dumps(saved_conventions(model)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(save(state, metadata))
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def saved_preprocessing(path: Path) -> Preprocessing | None:
    """The preprocessing stored by `save_weights`; None for any other file."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            stored = (file.metadata() or {}).get(METADATA_KEY)
    except SafetensorError:
        return None  # `read_checkpoint` says what is wrong with it
    if stored is None:
        return None
    values = _stored_table(stored, str(path))
    try:
        return Preprocessing(**values | {"mean": tuple(values["mean"]), "std": tuple(values["std"])})
    except (KeyError, TypeError) as error:
        raise ZooError(f"the preprocessing in {str(path)!r} is damaged: {error}. Save the weights anew.") from error


def _stored_table(stored: str, source: str) -> dict[str, Any]:
    """A JSON table of a file's metadata. Raises `ZooError` if it is damaged."""
    try:
        table = json.loads(stored)
    except (ValueError, RecursionError) as error:
        raise ZooError(f"the metadata of {source!r} is damaged, it is not JSON ({error}).") from error
    if not isinstance(table, dict):
        raise ZooError(f"the metadata of {source!r} is damaged: expected a table of values.")
    return table


def _side(size: Any) -> int:
    if size is None:
        return 0
    return int(size[0] if isinstance(size, list | tuple) else size)


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _classes(match: Match, heads: tuple[str, ...], state: Mapping[str, torch.Tensor]) -> int:
    """Outputs of the file's head, 0 where it has none under our name."""
    weight = f"{heads[-1]}.weight"
    if weight in match.tensors:
        return len(match.tensors[weight])
    return next((len(tensor) for name, tensor in state.items() if f".{name}".endswith(f".{weight}")), 0)


def _stem_hint(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], misfit: Misfit) -> str:
    first = next(name for name, tensor in own.items() if tensor.dim() > 1)
    if first not in (misfit.shapes or {}) or first not in state or len(state[first]) != len(own[first]):
        return ""
    return (
        f" The first layer differs: at {SMALL_INPUT_SIZE} pixels or less a model has its small-image stem, whose "
        f"weights are not those of the canonical form. Build it with input_size above {SMALL_INPUT_SIZE}, and with the "
        "in_chans of the weights, and let the images be resized."
    )


def _quantisation_hint(misfit: Misfit) -> str:
    if not any(name.endswith("zero_point") for name in misfit.extra):
        return ""
    return " The file is quantised: use the weights from before the quantisation."
