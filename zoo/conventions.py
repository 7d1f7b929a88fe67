"""What state dicts do not say: networks of the same names and shapes that compute something else.

Each convention is an option of a builder. Loading takes the one that the weights are known to need, unless the user has
chosen; where the file does not tell, a note says that there is a choice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from zoo.checkpoints import Checkpoint
from zoo.info import ZooError
from zoo.layers import ZeroPadShortcut

PADDING = "shortcut_padding"
INPUT = "transform_input"


def saved_conventions(model: nn.Module) -> dict[str, str]:
    """The conventions of a network, to be stored beside its weights."""
    shortcuts, transforms = _zero_pad_shortcuts(model), getattr(model, INPUT, None)
    saved: dict[str, str] = {PADDING: shortcuts[0].padding} if shortcuts else {}
    return saved | ({INPUT: str(transforms).lower()} if isinstance(transforms, bool) else {})


def adopt_conventions(
    model: nn.Module, checkpoint: Checkpoint, classes: int, chosen: Mapping[str, Any], saved: Mapping[str, str]
) -> list[str]:
    """Make the network compute what the weights were trained for; returns notes for the user.

    Args:
        model: the network, which is changed.
        checkpoint: the weights as they came.
        classes: outputs of the file's head, 0 where it is not known.
        chosen: options that the user gave; these are never changed.
        saved: `saved_conventions` of the network that wrote the file, where it was ours.

    Raises:
        ZooError: the user chose what the file contradicts.
    """
    return [
        *_shortcut_padding(model, checkpoint, chosen, saved),
        *_transform_input(model, checkpoint.tensors, classes, chosen, saved),
    ]


def shortcut_hint(model: nn.Module, names: Collection[str]) -> str:
    """What to do where the file's shortcuts have weights and ours have none."""
    with_weights = any(".downsample." in name or ".shortcut." in name for name in names)
    if with_weights and _zero_pad_shortcuts(model):
        return " The shortcuts of the file are convolutions: build the model with shortcut=projection."
    return ""


def _shortcut_padding(
    model: nn.Module, checkpoint: Checkpoint, chosen: Mapping[str, Any], saved: Mapping[str, str]
) -> list[str]:
    """Of shortcuts without parameters: zero channels after the old ones, or half before and half after.

    akamaster/pytorch_resnet_cifar10 and what derives from it pad on both sides. No tensor shows it, but the layout of
    its files does: a data-parallel network's names under ``state_dict``, with a head named ``linear``.
    """
    shortcuts = _zero_pad_shortcuts(model)
    if not shortcuts:
        return []
    ours = shortcuts[0].padding
    names = checkpoint.tensors
    is_akamasters = checkpoint.wrappers == ("state_dict",) and all(name.startswith("module.") for name in names)
    needed = saved.get(PADDING) or ("both" if is_akamasters and "module.linear.weight" in names else None)
    if chosen.get(PADDING) is not None:
        if saved.get(PADDING, ours) != ours:
            raise ZooError(
                f"the weights were trained with {PADDING}={saved[PADDING]}, but the model was built with "
                f"{PADDING}={ours}: the shapes agree and the outputs would not. Leave the option out."
            )
        return []
    if needed is None:
        return [
            f"the shortcuts pad new channels at the end, which the file does not confirm; weights of "
            f"akamaster/pytorch_resnet_cifar10 and its descendants need {PADDING}=both"
        ]
    for shortcut in shortcuts:
        shortcut.padding = "both" if needed == "both" else "end"
    if PADDING in saved:
        return []
    return [
        f"the file has the layout of akamaster/pytorch_resnet_cifar10, whose shortcuts pad new channels on both sides: "
        f"the option {PADDING}=both was taken; {PADDING}=end chooses the other"
    ]


def _transform_input(
    model: nn.Module, names: Collection[str], classes: int, chosen: Mapping[str, Any], saved: Mapping[str, str]
) -> list[str]:
    """torchvision's GoogLeNet and Inception v3: the official weights expect images scaled to [-1, 1].

    ``transform_input`` rescales images that were normalised by ImageNet's statistics. The official files are known by
    their auxiliary heads and thousand classes.
    """
    ours = getattr(model, INPUT, None)
    if not isinstance(ours, bool):
        return []
    if INPUT in chosen:
        if saved.get(INPUT, str(ours).lower()) != str(ours).lower():
            raise ZooError(
                f"the weights were trained with {INPUT}={saved[INPUT]}, but the model was built with "
                f"{INPUT}={str(ours).lower()}: the shapes agree and the outputs would not. Leave the option out."
            )
        return []
    if INPUT in saved:
        model.transform_input = saved[INPUT] == "true"  # type: ignore[assignment]
        return []
    if classes == 1000 and any(_is_part(name, part) for name in names for part in ("aux1", "AuxLogits")):
        model.transform_input = True  # type: ignore[assignment]
        return [
            f"the option {INPUT}=true was taken, as torchvision's official weights need it; {INPUT}=false leaves it out"
        ]
    return [f"weights that derive from torchvision's official ones need {INPUT}=true"]


def _is_part(name: str, part: str) -> bool:
    return part in name.split(".")[:-1]


def _zero_pad_shortcuts(model: nn.Module) -> list[ZeroPadShortcut]:
    return [module for module in model.modules() if isinstance(module, ZeroPadShortcut)]
