"""Whole batches on the device: shuffle, flip, crop and normalise, as few operations on a uint8 tensor.

A crop of a mirrored image is a set of byte ranges of the stored data set, so that a batch is one gather of rows.
Every random draw of an epoch is a function of (seed, epoch) alone: an epoch can be replayed from any step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of each channel, in units of uint8 (0 to 255)."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, images: Tensor) -> Normalization:
        """The statistics of uint8 images ``N×C×H×W``; a channel without variation gets a deviation of 1."""
        count = images.numel() // images.shape[1]
        sums = squares = torch.zeros(images.shape[1], dtype=torch.float64, device=images.device)
        for chunk in torch.split(images, 2048):
            pixels = chunk.to(torch.float32)
            sums = sums + pixels.sum((0, 2, 3), dtype=torch.float64)
            squares = squares + pixels.square().sum((0, 2, 3), dtype=torch.float64)
        mean = sums / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt()
        std[std == 0] = 1.0
        return cls(tuple(mean.tolist()), tuple(std.tolist()))


@dataclass(frozen=True)
class Resize:
    """To what side, in pixels, images are resized on the device, and how: ``bilinear`` or ``bicubic``, antialiased."""

    size: int
    mode: str = "bilinear"


class BatchStream:
    """Batches of a split, normalised float32 images ``B×C×H×W`` and int64 labels ``B``, on the device.

    Args:
        images: uint8 ``N×C×H×W``, on any device.
        labels: int64 ``N``.
        batch_size: images a batch; at most N.
        normalization: what to subtract and divide by.
        device: where the batches are needed; the images are kept there.
        channels_last: the memory format of the batches.
        flip: mirror each image with probability one half.
        crop_padding: pad by that many black pixels and crop back to the size at a random place.
        resize: what the network's weights were made for, if that is not the images' own size.
        seed: of the order and of the draws.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        normalization: Normalization,
        *,
        device: torch.device,
        channels_last: bool = False,
        flip: bool = False,
        crop_padding: int = 0,
        resize: Resize | None = None,
        seed: int = 0,
    ) -> None:
        self.batch_size = min(batch_size, len(labels))
        self.labels = labels.to(device)
        self._seed, self._flip, self._padding = seed, flip, crop_padding
        self._channels, self._height, self._width = images.shape[1:]
        self._channels_last, self._resize = channels_last, resize
        self._mean = torch.tensor(normalization.mean, device=device)
        self._scale = torch.tensor(normalization.std, device=device).reciprocal()
        self._rows, self._row_offsets = self._store(images.to(device))

    def __len__(self) -> int:
        """Batches an epoch: full ones only, so that every step of a run has the same shape."""
        return len(self.labels) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The shuffled, augmented batches of an epoch, from the batch ``start`` on."""
        device, count = self.labels.device, len(self.labels)
        random = torch.Generator().manual_seed(_mix(self._seed, epoch))
        order = torch.randperm(count, generator=random)
        shifts = torch.randint(0, 2 * self._padding + 1, (2, count), generator=random)
        mirrored = torch.randint(0, 2 if self._flip else 1, (count,), generator=random)
        offsets = self._offsets(order, mirrored, shifts[0], shifts[1]).to(device)
        labels = self.labels[order.to(device)]
        for index in range(start, len(self)):
            batch = slice(index * self.batch_size, (index + 1) * self.batch_size)
            yield self._gather(offsets[batch]), labels[batch]

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in stored order, not augmented; the last batch may be smaller."""
        count = len(self.labels)
        centre = torch.full((count,), self._padding)
        offsets = self._offsets(torch.arange(count), torch.zeros_like(centre), centre, centre).to(self.labels.device)
        for batch in zip(torch.split(offsets, self.batch_size), torch.split(self.labels, self.batch_size), strict=True):
            yield self._gather(batch[0]), batch[1]

    def _store(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """All rows that a crop can consist of, as overlapping windows of the padded images' bytes.

        With ``flip`` the mirrored images follow the plain ones. A row is a line of pixels with its channels where
        channels come last, and a line of one channel otherwise.
        """
        padded = F.pad(images, [self._padding] * 4)
        if self._flip:
            padded = torch.cat([padded, padded.flip(3)])
        height, width = padded.shape[2:]
        self._image_stride = self._channels * height * width
        if self._channels_last:
            padded = padded.permute(0, 2, 3, 1)
            self._line, self._pixel = width * self._channels, self._channels
            row_offsets = torch.arange(self._height) * self._line
        else:
            self._line, self._pixel = width, 1
            planes = torch.arange(self._channels)[:, None] * (height * width)
            row_offsets = (planes + torch.arange(self._height) * self._line).flatten()
        flat = padded.contiguous().flatten()
        length = self._width * self._pixel
        return flat.as_strided((flat.numel() - length + 1, length), (1, 1)), row_offsets.to(images.device)

    def _offsets(self, order: Tensor, mirrored: Tensor, down: Tensor, right: Tensor) -> Tensor:
        """Where in the stored bytes the first pixel of each crop is."""
        images = order + mirrored * len(self.labels)
        return images * self._image_stride + down * self._line + right * self._pixel

    def _gather(self, offsets: Tensor) -> Tensor:
        rows = self._rows.index_select(0, (offsets[:, None] + self._row_offsets).flatten()).to(torch.float32)
        if self._resize is not None:
            size, mode = self._resize.size, self._resize.mode
            pixels = F.interpolate(self._as_images(rows), size=(size, size), mode=mode, antialias=True)
            return pixels.clamp_(0, 255).sub_(self._mean.view(-1, 1, 1)).mul_(self._scale.view(-1, 1, 1))
        if self._channels_last:
            # Whole lines against a line of statistics: along three channels alone the processor could not vectorise.
            return self._as_images(rows.sub_(self._mean.repeat(self._width)).mul_(self._scale.repeat(self._width)))
        return self._as_images(rows).sub_(self._mean.view(-1, 1, 1)).mul_(self._scale.view(-1, 1, 1))

    def _as_images(self, rows: Tensor) -> Tensor:
        """Rows as ``B×C×H×W``, in the memory format that they are stored in."""
        if self._channels_last:
            return rows.view(-1, self._height, self._width, self._channels).permute(0, 3, 1, 2)
        return rows.view(-1, self._channels, self._height, self._width)


def _mix(seed: int, epoch: int) -> int:
    """One generator seed from two numbers, such that neighbours share no stream."""
    return (seed * 1_000_003 + epoch) * 0x9E3779B97F4A7C15 % 2**63
