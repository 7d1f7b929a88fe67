"""Whether a network can be trained and evaluated as asked, and the flags of a record that say otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.records import Flag

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bench.training.evaluation import Evaluation


def takes_layout(
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    num_classes: int,
    *,
    autocast: bool,
    channels_last: bool,
    flags: list[Flag],
    training: bool = True,
) -> bool:
    """Whether the model takes images in channels_last, if that is what they are in; flags that it does not.

    Raises `ModelError` where its outputs are no logits for these classes.
    """
    from bench.training.outputs import check_outputs, is_view_of_channels_last

    try:
        check_outputs(model, batch, num_classes, autocast, training=training)
    except RuntimeError as error:
        if not channels_last or not is_view_of_channels_last(error):
            raise
        message = (
            "the network calls view on features that do not lie together in channels_last: it was run in the "
            "contiguous format. Use reshape or flatten(1) in it, or set channels_last=false"
        )
        flags.append(Flag(kind="layout", phase="load", message=message))
        return False
    return True


def check_small_images(
    model: nn.Module, batch: tuple[Tensor, Tensor], num_classes: int, *, autocast: bool, size: int
) -> None:
    """Raise `ModelError` where the model does not take images of this size besides those of the batch."""
    from torch.nn import functional as F

    from bench.errors import ModelError
    from bench.training.outputs import check_outputs

    try:
        check_outputs(model, (F.interpolate(batch[0], size=(size, size)), batch[1]), num_classes, autocast)
    except RuntimeError as error:
        raise ModelError(
            f"the network takes images of {batch[0].shape[-1]} pixels but not of {size}, as the recipe's small_epochs "
            f"have them ({str(error).splitlines()[0]}). Set recipe.small_epochs to 0, or a larger recipe.small_size."
        ) from error


def has_finite_logits(evaluation: Evaluation, split: str, phase: str, flags: list[Flag]) -> bool:
    """Whether all logits were finite; flags the first time in a phase that they were not."""
    if evaluation.not_finite and not any(flag.kind == "not_finite" and flag.phase == phase for flag in flags):
        message = (
            f"the logits of {evaluation.not_finite} of the images or pixels of {split!r} hold NaN or infinity in "
            "evaluation mode, although the training loss was finite: look at the running statistics of the norms"
        )
        flags.append(Flag(kind="not_finite", phase=phase, message=message))
    return not evaluation.not_finite
