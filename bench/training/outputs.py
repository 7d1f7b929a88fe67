"""What a network must put out to be trained and evaluated: looked at before training, and at each evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bench.errors import ModelError
from bench.training.step import leaving_no_trace

CHECKED_IMAGES = 2
"""Batch norm cannot train on a single value."""


def check_outputs(
    model: nn.Module, batch: tuple[Tensor, Tensor], num_classes: int, autocast: bool = False, *, training: bool = True
) -> None:
    """That the network puts out logits for these classes, in evaluation mode and, for `training`, in training mode.

    The first two images of the batch are passed through it, which leaves no trace in it: weights,
    statistics and random streams are as before, and it is in training mode.

    Args:
        model: on the device of the batch.
        batch: images ``B×C×H×W`` and labels, ``B`` or dense ``B×H×W``.
        num_classes: K, of the data set.
        autocast: as it is to be run.
        training: whether it is to be trained.

    Raises `ModelError`, which names what it puts out and what to do.
    """
    images, targets = (each[:CHECKED_IMAGES] for each in batch)
    with torch.no_grad(), leaving_no_trace(model, images.device):
        for mode in ("evaluation", "training") if training else ("evaluation",):
            model.train(mode == "training")
            with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
                outputs = model(images.clone())  # a network may change its input
            checked_logits(outputs, len(images), num_classes, targets.shape[1:], f" in {mode} mode")


def checked_logits(
    outputs: object, images: int, num_classes: int, pixels: Sequence[int] = (), where: str = ""
) -> Tensor:
    """The logits ``B×K``, or ``B×K×H×W`` where ``pixels`` are H and W, among a network's outputs.

    Raises `ModelError` where there are none of that shape.
    """
    wanted = (images, num_classes, *pixels)
    expected = f"Expected a tensor of logits, {_shape(wanted)} for {images} images and {num_classes} classes"
    if isinstance(outputs, Mapping):
        if "out" not in outputs:
            keys = ", ".join(map(repr, outputs))
            raise ModelError(
                f"the network returns a dictionary{where}, with the keys {keys}. {expected}, alone or under the key "
                "'out': let its forward return that."
            )
        outputs = outputs["out"]
    if not isinstance(outputs, Tensor):
        size = f" of {len(outputs)}" if isinstance(outputs, tuple | list) else ""
        raise ModelError(
            f"the network returns a {type(outputs).__name__}{size}{where}. {expected}: let its forward return that "
            "alone, without auxiliary outputs or features."
        )
    shape = tuple(outputs.shape)
    found = f"the network returns {outputs.dtype} of {_shape(shape)}{where}"
    if not outputs.is_floating_point():
        raise ModelError(f"{found}. {expected}, before softmax or argmax.")
    if shape == wanted:
        return outputs
    if not pixels and shape == (*wanted, 1, 1):
        remedy = "flatten(1) it at the end of its forward."
    elif not pixels and len(shape) == 4 and shape[:2] == wanted:
        remedy = "average the maps over space, mean((2, 3)), at the end of its forward."
    elif len(shape) == len(wanted) and shape[1] != num_classes and (shape[0], *shape[2:]) == (images, *pixels):
        remedy = f"build it with num_classes={num_classes}, or choose data of {shape[1]} classes."
    elif len(shape) == len(wanted) and shape[:2] == wanted[:2]:
        remedy = "resize its maps to the size of its input at the end of its forward."
    else:
        remedy = "let its forward return that."
    raise ModelError(f"{found}. {expected}: {remedy}")


def is_view_of_channels_last(error: RuntimeError) -> bool:
    """Whether a network failed since it calls ``view`` on features in channels_last, where rows do not lie together."""
    return "view size is not compatible with input tensor's size and stride" in str(error)


def _shape(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes)) or "a single number"
