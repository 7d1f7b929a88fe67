"""``mosaic:DATA``: images of a data set scattered on larger canvases, with a label for each pixel; made on the fly.

For networks that label pixels, where a data set of that kind would first have to be downloaded. A pixel's label is the
class of the image that covers it, plus 1, or 0 for the background. Images may overlap, the later covers the earlier.
The background is noise with a natural image's spectrum and the data set's own colours (a grey one gets grey noise), so
that neither brightness nor colour gives away where an image lies, and only its content which one it is.

Training canvases are a function of (seed, epoch, index): no two epochs show the same ones. Those that are evaluated on
are a function of the split alone, the same for every seed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.data.augment import Normalization
from bench.data.sources import MosaicLayout

TEXTURE_SIDE = 4
"""The side of the texture that an epoch's backgrounds are cut from, in canvases."""
COARSEST = 8
"""Cells on a side of the texture's coarsest noise."""
COLOUR_SAMPLE = 1000
"""The colours of a split are estimated from at most this many of its images."""
_TRAINING, _FIXED, _HALF = 1, 2, 3
"""What a stream of random numbers is for; the first number of its seed."""


@dataclass(frozen=True)
class _Draws:
    """The random choices for C canvases of K images each."""

    members: Tensor
    """Which images, ``C×K``, in the order in which they are laid down."""
    mirrored: Tensor
    """Whether they are mirrored, ``C×K``, bool."""
    tops: Tensor
    """Rows of their first pixels, ``C×K``."""
    lefts: Tensor
    """Columns of them, ``C×K``."""
    cuts: Tensor
    """Row and column in the texture where the background begins, ``2×C``."""
    texture: Tensor
    """uint8 ``T×T×3``."""


class MosaicStream:
    """Batches of canvases: normalised float32 ``B×3×S×S`` and int64 labels ``B×S×S``, on the device.

    An epoch has enough canvases to use each image once; if the numbers do not divide, a few images are used twice.

    Args:
        images: uint8 ``N×3×s×s``, those of one split.
        labels: int64 ``N``, classes from 0.
        batch_size: canvases per batch, at most all of them.
        normalization: what to subtract and divide by.
        layout: sides of canvas and images, and images per canvas.
        device: of the batches; the images are kept there.
        channels_last: the memory format of the batches.
        flip: mirror each image with probability one half; ``"alternating"``: each image in every second epoch.
        seed: of the training canvases.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        normalization: Normalization,
        *,
        layout: MosaicLayout,
        device: torch.device,
        channels_last: bool = False,
        flip: bool | Literal["alternating"] = False,
        seed: int = 0,
    ) -> None:
        self.layout, self.labels = layout, labels.to(device)
        self.canvases = -(-len(labels) // layout.images_per_canvas)
        """Canvases per epoch."""
        self.batch_size = min(batch_size, self.canvases)
        self._flip, self._seed, self._channels_last = flip, seed, channels_last
        self._images = images.to(device).permute(0, 2, 3, 1).contiguous()
        self._colours = _colours(images)
        self._mean = torch.tensor(normalization.mean, device=device)
        self._scale = torch.tensor(normalization.std, device=device).reciprocal()

    def __len__(self) -> int:
        """Batches per epoch: only full ones, so that every step of a run has the same shape."""
        return self.canvases // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The training batches of an epoch, from the batch ``start`` on."""
        draws = self._draw(_random(_TRAINING, self._seed, epoch), epoch)
        for index in range(start, len(self)):
            canvases, labels = self._compose(draws, slice(index * self.batch_size, (index + 1) * self.batch_size))
            yield self._normalize(canvases), labels

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The split's fixed canvases, each once; the last batch may be smaller."""
        for canvases, labels in self.fixed_canvases():
            yield self._normalize(canvases), labels

    def sample(self, count: int) -> Iterator[Tensor]:
        """About ``count`` of the fixed canvases, whose images are drawn from all over the split."""
        for canvases, _ in itertools.islice(self.in_order(), math.ceil(count / self.batch_size)):
            yield canvases

    def fixed_canvases(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The same before normalisation: uint8 ``B×S×S×3`` and labels."""
        draws = self._draw(_random(_FIXED), None)
        for start in range(0, self.canvases, self.batch_size):
            yield self._compose(draws, slice(start, start + self.batch_size))

    def _draw(self, random: torch.Generator, epoch: int | None) -> _Draws:
        """All draws of an epoch, or of the fixed canvases, whose images are not mirrored."""
        layout, device, count = self.layout, self.labels.device, len(self.labels)
        size = (self.canvases, layout.images_per_canvas)
        order = torch.randperm(count, generator=random)
        members = order[torch.arange(self.canvases * layout.images_per_canvas) % count].view(size)
        side = layout.canvas_size - layout.image_size + 1
        places = _distinct(*size, side * side, random)
        texture_side = TEXTURE_SIDE * layout.canvas_size
        cuts = torch.randint(texture_side - layout.canvas_size + 1, (2, self.canvases), generator=random)
        texture = _texture(texture_side, self._colours, random)
        mirrored = torch.zeros(size, dtype=torch.bool)
        if epoch is not None and self._flip == "alternating":
            half = torch.randint(2, (count,), generator=_random(_HALF, self._seed))
            mirrored = (half[members] + epoch) % 2 == 1
        elif epoch is not None and self._flip:
            mirrored = torch.randint(2, size, generator=random) == 1
        drawn = (members, mirrored, places // side, places % side, cuts, texture)
        return _Draws(*(each.to(device) for each in drawn))

    def _compose(self, draws: _Draws, chosen: slice) -> tuple[Tensor, Tensor]:
        """uint8 canvases ``B×S×S×3`` and their labels ``B×S×S``."""
        device, side = self.labels.device, self.layout.canvas_size
        pixels = torch.arange(side, device=device)
        down, right = draws.cuts[:, chosen, None, None]
        canvases = draws.texture[down + pixels[:, None], right + pixels]
        labels = torch.zeros(canvases.shape[:3], dtype=torch.int64, device=device)
        canvas = torch.arange(len(canvases), device=device)[:, None, None]
        inside = pixels[: self.layout.image_size]
        for layer in range(self.layout.images_per_canvas):
            members, mirrored, top, left = (
                each[chosen, layer] for each in (draws.members, draws.mirrored, draws.tops, draws.lefts)
            )
            where = (canvas, top[:, None, None] + inside[:, None], left[:, None, None] + inside)
            images = self._images[members]
            canvases[where] = torch.where(mirrored[:, None, None, None], images.flip(2), images)
            labels[where] = self.labels[members, None, None] + 1
        return canvases, labels

    def _normalize(self, canvases: Tensor) -> Tensor:
        side = self.layout.canvas_size
        # Whole lines against a line of statistics: along three channels alone the processor could not vectorise.
        lines = canvases.to(torch.float32).view(-1, side * 3)
        lines.sub_(self._mean.repeat(side)).mul_(self._scale.repeat(side))
        images = lines.view(-1, side, side, 3).permute(0, 3, 1, 2)
        return images if self._channels_last else images.contiguous()


def _random(*entropy: int) -> torch.Generator:
    """A generator of its own for each tuple of numbers."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))


def _distinct(rows: int, columns: int, possible: int, random: torch.Generator) -> Tensor:
    """``rows×columns`` numbers below ``possible``, uniform, and distinct within each row."""
    chosen = torch.empty((rows, 0), dtype=torch.int64)
    for taken in range(columns):
        number = torch.randint(possible - taken, (rows,), generator=random)
        for earlier in chosen.sort(1).values.T:
            number += number >= earlier  # counts over what is taken
        chosen = torch.cat([chosen, number[:, None]], dim=1)
    return chosen


def _colours(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``3`` of the pixels of uint8 images, and the symmetric root ``3×3`` of their covariance."""
    sample = images[:: -(-len(images) // COLOUR_SAMPLE)].to("cpu", torch.float64).transpose(0, 1).flatten(1)
    values, vectors = torch.linalg.eigh(torch.cov(sample))
    root = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    return sample.mean(1).float(), root.float()


def _texture(side: int, colours: tuple[Tensor, Tensor], random: torch.Generator) -> Tensor:
    """uint8 noise ``side×side×3`` of the given colours, as strong in every octave of scale: 1/f, as natural images.

    Source: Field 1987, Relations between the statistics of natural images and the response properties of cortical
    cells, JOSA A 4(12).
    """
    noise = torch.zeros(1, 3, side, side)
    cells = COARSEST
    while cells <= side:
        octave = torch.randn(1, 3, cells, cells, generator=random)
        noise += F.interpolate(octave, size=(side, side), mode="bilinear", align_corners=False)
        cells *= 2
    noise = (noise - noise.mean((2, 3), keepdim=True)) / noise.std((2, 3), keepdim=True)
    mean, root = colours
    pixels = noise[0].permute(1, 2, 0) @ root + mean
    return pixels.round().clamp(0, 255).to(torch.uint8)
