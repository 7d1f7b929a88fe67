"""Whole batches on the device: shuffle, flip, crop and normalise, as few operations on a uint8 tensor.

A crop of a mirrored image is a set of byte ranges of the stored data set, so that a batch is one gather of rows.
Every random draw of an epoch is a function of (seed, epoch), and within a batch of its index: an epoch can be replayed
from any step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.data.transforms import Augmentation, create_image_transform, create_mixing, cut_out, drawing, jitter
from bench.errors import ConfigError

DEVICE_SHARE = 0.5
"""The share of a GPU's free memory that a split may take; the network needs the rest."""


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
    """The side in pixels that images are resized to on the device; ``bilinear`` or ``bicubic``, antialiased."""

    size: int
    mode: str = "bilinear"


NO_AUGMENTATION = Augmentation()


class BatchStream:
    """Batches of a split, normalised float32 images ``B×C×H×W`` and labels, on the device.

    Labels are int64 ``B``; training batches with Mixup or CutMix have class probabilities instead, float32 ``B×K``.

    The images are kept on the device as well, unless they would take more than half of a GPU's free memory, or are
    rotated, jittered or given RandAugment, which go image by image: then the CPU prepares batches while the GPU works.

    Args:
        images: uint8 ``N×C×H×W``, on any device.
        labels: int64 ``N``.
        batch_size: images per batch, at most N.
        normalization: what to subtract and divide by.
        device: of the batches.
        channels_last: the memory format of the batches.
        augmentation: what an epoch does to the images, in pixels of the images as given.
        resize: what the network's weights were made for, if that is not the images' own size.
        num_classes: K, needed for Mixup and CutMix.
        seed: of the order and the augmentation.

    Raises `ConfigError` if the images are too small to be padded with their reflection.
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
        augmentation: Augmentation = NO_AUGMENTATION,
        resize: Resize | None = None,
        num_classes: int | None = None,
        seed: int = 0,
    ) -> None:
        self.batch_size = min(batch_size, len(labels))
        self.labels = labels.to(device)
        self._seed, self._augmentation, self._padding = seed, augmentation, augmentation.crop_padding
        self._channels, self._height, self._width = images.shape[1:]
        self._channels_last, self._resize = channels_last, resize
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._mean = torch.tensor(normalization.mean, device=device)
        self._scale = torch.tensor(normalization.std, device=device).reciprocal()
        self._transform = create_image_transform(augmentation, normalization.mean)
        self._mixing = create_mixing(augmentation, num_classes)
        self._rows, self._row_offsets = self._store(images.cpu())

    def __len__(self) -> int:
        """Batches per epoch: only full ones, so that every step of a run has the same shape."""
        return len(self.labels) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The shuffled, augmented batches of an epoch, from the batch ``start`` on."""
        count, epoch_seed = len(self.labels), _mix(self._seed, epoch)
        random = torch.Generator().manual_seed(epoch_seed)
        order = torch.randperm(count, generator=random)
        shifts = torch.randint(0, 2 * self._padding + 1, (2, count), generator=random)
        mirrored = self._mirrored(epoch, order, random)
        offsets = self._offsets(order, mirrored, shifts[0], shifts[1]).to(self._rows.device)
        holes = self._holes(count, random)
        labels = self.labels[order.to(self.labels.device)]
        small = self._augmentation.small_size if epoch < self._augmentation.small_epochs else None
        for index in range(start, len(self)):
            batch = slice(index * self.batch_size, (index + 1) * self.batch_size)
            yield self._augmented(offsets[batch], labels[batch], holes[:, batch], _mix(epoch_seed, index), small)

    def sample(self, count: int) -> Iterator[Tensor]:
        """At most ``count`` images ``B×C×H×W`` from all over the split, since a folder's lie class by class."""
        for images, _ in self.in_order(every=math.ceil(len(self.labels) / count)):
            yield images

    def in_order(self, every: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Each ``every``-th image once, in stored order, not augmented; the last batch may be smaller."""
        chosen, labels = torch.arange(0, len(self.labels), every), self.labels[::every]
        centre = torch.full((len(chosen),), self._padding)
        offsets = self._offsets(chosen, torch.zeros_like(centre), centre, centre).to(self._rows.device)
        for batch in zip(torch.split(offsets, self.batch_size), torch.split(labels, self.batch_size), strict=True):
            yield self._resized(self._normalize(self._on_device(self._gather(batch[0])))), batch[1]

    def _mirrored(self, epoch: int, order: Tensor, random: torch.Generator) -> Tensor:
        """Which images of an epoch are mirrored, 0 or 1, in the epoch's order."""
        if self._augmentation.flip == "alternating":
            # The same half in every epoch, so not from the epoch's own stream.
            half = torch.randint(0, 2, order.shape, generator=torch.Generator().manual_seed(_mix(self._seed, -1)))
            return (half[order] + epoch) % 2
        return torch.randint(0, 2 if self._augmentation.flip else 1, order.shape, generator=random)

    def _holes(self, count: int, random: torch.Generator) -> Tensor:
        """The centres ``2×count`` of the squares that cutout blanks."""
        if not self._augmentation.cutout:
            return torch.empty((2, 0), dtype=torch.int64)
        centres = [torch.randint(0, size, (count,), generator=random) for size in (self._height, self._width)]
        return torch.stack(centres).to(self.labels.device)

    def _augmented(
        self, offsets: Tensor, labels: Tensor, holes: Tensor, seed: int, small: int | None
    ) -> tuple[Tensor, Tensor]:
        images = self._gather(offsets)
        if self._transform is not None:
            # torchvision draws once a call: an image at a time, for each to have its own.
            with drawing(seed):
                images = torch.stack([self._transform(image) for image in images]).contiguous(
                    memory_format=self._format
                )
        images = self._normalize(self._on_device(images))
        if self._augmentation.brightness or self._augmentation.contrast:
            jitter(images, self._augmentation.brightness, self._augmentation.contrast, _mix(seed, 2))
        if self._augmentation.cutout:
            cut_out(images, holes, self._augmentation.cutout)
        images = self._resized(images)
        if small is not None:
            images = F.interpolate(images, size=(small, small), mode="bilinear", antialias=True)
            images = images.contiguous(memory_format=self._format)
        if self._mixing is not None:
            with drawing(_mix(seed, 1)):
                images, labels = self._mixing(images, labels)
            images = images.contiguous(memory_format=self._format)
        return images, labels

    def _store(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """All rows that a crop can consist of, as overlapping windows of the padded images' bytes.

        With ``flip`` the mirrored images follow the plain ones. A row is a line of pixels with its channels where
        channels come last, and a line of one channel otherwise.
        """
        padded = self._pad(images)
        if self._augmentation.flip:
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
        home = _choose_home(self.labels.device, padded.numel(), one_by_one=self._transform is not None)
        flat = padded.contiguous().flatten().to(home)
        length = self._width * self._pixel
        return flat.as_strided((flat.numel() - length + 1, length), (1, 1)), row_offsets.to(home)

    def _pad(self, images: Tensor) -> Tensor:
        if not self._padding:
            return images
        if self._augmentation.crop_fill == "black":
            return F.pad(images, [self._padding] * 4)
        side = min(self._height, self._width)
        if self._padding >= side:
            raise ConfigError(
                f"crop_padding = {self._padding} with crop_fill = 'reflect' is not possible for images of "
                f"{self._height}×{self._width} pixels: a reflection is one pixel narrower than the image. "
                f"Set crop_padding to {side - 1} or less, or crop_fill to 'black'."
            )
        return F.pad(images, [self._padding] * 4, mode="reflect")

    def _offsets(self, order: Tensor, mirrored: Tensor, down: Tensor, right: Tensor) -> Tensor:
        """Where in the stored bytes the first pixel of each crop is."""
        images = order + mirrored * len(self.labels)
        return images * self._image_stride + down * self._line + right * self._pixel

    def _gather(self, offsets: Tensor) -> Tensor:
        """The crops as uint8 ``B×C×H×W`` where the images are kept, in the memory format of the batches."""
        rows = self._rows.index_select(0, (offsets[:, None] + self._row_offsets).flatten())
        if self._channels_last:
            return rows.view(-1, self._height, self._width, self._channels).permute(0, 3, 1, 2)
        return rows.view(-1, self._channels, self._height, self._width)

    def _on_device(self, images: Tensor) -> Tensor:
        if images.device == self.labels.device:
            return images
        # From pinned memory a copy runs beside the CPU; PyTorch reuses the memory only once the copy is done.
        return images.pin_memory().to(self.labels.device, non_blocking=True)

    def _normalize(self, images: Tensor) -> Tensor:
        """uint8 images to float32, less the mean, over the deviation."""
        pixels = images.to(torch.float32)
        if self._channels_last:
            # Whole lines against a line of statistics: along three channels alone the processor could not vectorise.
            lines = pixels.permute(0, 2, 3, 1).view(-1, self._width * self._channels)
            lines.sub_(self._mean.repeat(self._width)).mul_(self._scale.repeat(self._width))
        else:
            pixels.sub_(self._mean.view(-1, 1, 1)).mul_(self._scale.view(-1, 1, 1))
        return pixels

    def _resized(self, images: Tensor) -> Tensor:
        """Normalised images at the wanted size, clamped to the range of normalised pixels, since bicubic overshoots."""
        if self._resize is None:
            return images
        size, mode = self._resize.size, self._resize.mode
        low, high = (((level - self._mean) * self._scale).view(-1, 1, 1) for level in (0, 255))
        return F.interpolate(images, size=(size, size), mode=mode, antialias=True).clamp_(low, high)


def _choose_home(device: torch.device, stored_bytes: int, *, one_by_one: bool) -> torch.device:
    """Where to keep a split: on the device, or on the CPU where that serves a GPU better."""
    if device.type == "cuda" and (one_by_one or stored_bytes > DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]):
        return torch.device("cpu")
    return device


def _mix(seed: int, epoch: int) -> int:
    """One generator seed from two numbers, so that neighbouring pairs do not share a stream."""
    return (seed * 1_000_003 + epoch) * 0x9E3779B97F4A7C15 % 2**63
