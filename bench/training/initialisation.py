"""How a network begins, beyond what its builder draws: a whitening first convolution, identities after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.config import Recipe
from bench.errors import ModelError

WHITENING_EPSILON = 5e-4
"""Added to the variances, so that directions in which patches hardly vary are not blown up to noise."""
WHITENED_IMAGES, PATCHES_AN_IMAGE = 4_000, 125
"""Half a million patches, enough for the covariance of a few hundred dimensions."""
UNFOLDED_IMAGES = 16
"""Of which all patches are in memory at a time: 7×7 patches of one at 224 pixels are 28 MB."""


class Sampled(Protocol):
    """Images without augmentation."""

    def sample(self, count: int) -> Iterator[Tensor]:
        """At most ``count`` images ``B×C×H×W``, from all over the split."""


def initialise(model: nn.Module, recipe: Recipe, batches: Sampled) -> None:
    """What the recipe asks for: `init_dirac`, and `whiten_stem` on images of these batches, not augmented."""
    if recipe.dirac:
        init_dirac(model)
    if recipe.whiten:
        whiten_stem(model, batches.sample(WHITENED_IMAGES))


def whiten_stem(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Make the first convolution whiten patches of images ``B×C×H×W``, and freeze its filters (Jordan 2024, §3.2).

    Its filters become the eigenvectors of the patches' covariance over the roots of their eigenvalues, the largest
    first, each followed in a second set by its negative as far as there is room; filters beyond that stay as they are.
    The bias, if it has one, begins at zero and is trained.

    Raises `ModelError` where the model has no convolution over all channels of the image.
    """
    convolution = _first_convolution(model)
    if convolution is None or convolution.groups != 1:
        raise ModelError(
            f"{type(model).__name__} has no convolution over the channels of the image to whiten patches with: set "
            "recipe.whiten to false."
        )
    values, vectors = torch.linalg.eigh(_patch_covariance(batches, convolution))
    filters = (vectors / (values + WHITENING_EPSILON).sqrt()).T.flip(0)
    filters = torch.cat([filters, -filters])[: convolution.out_channels]
    with torch.no_grad():
        shaped = filters.view(-1, *convolution.weight.shape[1:]).to(convolution.weight)
        convolution.weight[: len(shaped)] = shaped
        if convolution.bias is not None:
            convolution.bias.zero_()
    convolution.weight.requires_grad_(False)


def init_dirac(model: nn.Module) -> None:
    """Begin each convolution but the first as an identity, with what is drawn in further filters (Jordan 2024, §3.1).

    Only ungrouped ones with a kernel of more than one pixel and at least as many outputs as inputs.
    """
    first = _first_convolution(model)
    for module in model.modules():
        if (
            isinstance(module, nn.Conv2d)
            and module is not first
            and module.groups == 1
            and module.kernel_size != (1, 1)
            and module.out_channels >= module.in_channels
        ):
            nn.init.dirac_(module.weight.data[: module.in_channels])


def _first_convolution(model: nn.Module) -> nn.Conv2d | None:
    return next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)


def _patch_covariance(batches: Iterable[Tensor], convolution: nn.Conv2d) -> Tensor:
    """The covariance of patches of the kernel's size, dilated as it is, in float64 on the CPU.

    Of larger images some patches are taken, the same places for every call.
    """
    (height, width), (down, right) = convolution.kernel_size, convolution.dilation
    sums = products = torch.zeros((), dtype=torch.float64)
    count, random = 0, torch.Generator().manual_seed(0)
    for images in (part for batch in batches for part in torch.split(batch, UNFOLDED_IMAGES)):
        patches = F.unfold(images.float(), (height, width), dilation=(down, right))
        if patches.shape[2] > PATCHES_AN_IMAGE:
            chosen = torch.randperm(patches.shape[2], generator=random)[:PATCHES_AN_IMAGE]
            patches = patches[:, :, chosen.to(patches.device)]
        rows = patches.transpose(1, 2).flatten(0, 1).double().cpu()
        count, sums, products = count + len(rows), sums + rows.sum(0), products + rows.T @ rows
    mean = sums / count
    return products / count - mean[:, None] * mean
