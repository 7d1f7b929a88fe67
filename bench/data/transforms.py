"""What an epoch's images go through beyond flip and crop: cutout, rotation, colour, RandAugment, Mixup and CutMix.

Cutout is our own and works on whole batches. The rest is torchvision's v2, which draws from torch's global generator:
`drawing` seeds that generator for a while, so that a batch can be replayed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

ImageTransform = Callable[[Tensor], Tensor]
"""One uint8 image ``C×H×W`` to another, drawing from torch's global generator."""
Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Float images ``B×C×H×W`` and int64 labels ``B`` to mixed images and float32 labels ``B×K``."""


@dataclass(frozen=True)
class Augmentation:
    """How training images are augmented; the fields are those of a recipe.

    Attributes:
        flip: mirror each image with probability one half; ``"alternating"``: a random half in the first epoch, and
            from then on each image in every second epoch (Jordan 2024, arXiv:2404.00498).
        crop_padding: pad by this many pixels, then crop at random to the original size.
        crop_fill: what the padding is: black, or the image reflected at its edge.
        rotation: rotate by up to this many degrees either way; the corners are filled with the mean colour.
        color_jitter: brightness, contrast and saturation, each by a factor within 1 ± this.
        randaugment: operations per image, at magnitude 9 of 30 (Cubuk et al. 2019, arXiv:1909.13719).
        cutout: side in pixels of a square of the mean colour, centred anywhere and clipped at the border
            (DeVries and Taylor 2017, arXiv:1708.04552).
        mixup: alpha of Mixup (Zhang et al. 2017, arXiv:1710.09412), 0 for none.
        cutmix: alpha of CutMix (Yun et al. 2019, arXiv:1905.04899), 0 for none; with Mixup, each batch gets one of
            the two.
        brightness: each image's normalised pixels are shifted by up to this, either way, the same in all channels.
        contrast: they are then multiplied by a factor within 1 ± this.
        small_size: the side in pixels of the images in the first ``small_epochs`` epochs.
        small_epochs: how many these are, 0 for none.
    """

    flip: bool | Literal["alternating"] = False
    crop_padding: int = 0
    crop_fill: Literal["black", "reflect"] = "black"
    rotation: float = 0.0
    color_jitter: float = 0.0
    randaugment: int = 0
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    small_size: int | None = None
    small_epochs: int = 0

    @property
    def mixes(self) -> bool:
        """Whether images are mixed, so that labels are class probabilities."""
        return self.mixup > 0 or self.cutmix > 0


def create_image_transform(augmentation: Augmentation, mean: Sequence[float]) -> ImageTransform | None:
    """Those of rotation, colour jitter and RandAugment that are asked for, in this order; None without any.

    ``mean`` (of each channel, 0 to 255) fills what comes from outside the image.
    """
    if not (augmentation.rotation or augmentation.color_jitter or augmentation.randaugment):
        return None
    from torchvision.transforms import v2  # a second of imports that most runs do without

    steps: list[ImageTransform] = []
    bilinear, strength = v2.InterpolationMode.BILINEAR, augmentation.color_jitter
    if augmentation.rotation:
        steps.append(v2.RandomRotation(augmentation.rotation, interpolation=bilinear, fill=list(mean)))
    if strength:
        steps.append(v2.ColorJitter(brightness=strength, contrast=strength, saturation=strength))
    if augmentation.randaugment:
        steps.append(v2.RandAugment(augmentation.randaugment, interpolation=bilinear, fill=list(mean)))
    return v2.Compose(steps)  # type: ignore[no-any-return]


def create_mixing(augmentation: Augmentation, num_classes: int | None) -> Mixing | None:
    """Mixup, CutMix, or one of the two at random for each batch; None if neither is asked for."""
    if not augmentation.mixes:
        return None
    if num_classes is None:
        raise ValueError("mixup and cutmix give labels B×K: num_classes is needed")
    from torchvision.transforms import v2

    # Beta in torchvision is that of the number's type, and there is none of integers.
    kinds = ((v2.MixUp, float(augmentation.mixup)), (v2.CutMix, float(augmentation.cutmix)))
    return v2.RandomChoice([kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds if alpha])  # type: ignore[no-any-return]


def cut_out(images: Tensor, centres: Tensor, side: int) -> Tensor:
    """Set to zero, in place, a square of ``side`` pixels of each of the images ``B×C×H×W``, clipped at the border.

    ``centres`` ``2×B`` are the row and the column of each square's middle, inside the image; of an even side, half of
    it comes before.
    """
    squares = []
    for axis, size in enumerate(images.shape[2:]):
        reach = min(side, 2 * size)
        lines = torch.arange(reach, device=images.device) - reach // 2
        # A clipped square reaches the border, so that its missing lines may as well fall on the border's own.
        squares.append((centres[axis, :, None] + lines).clamp(0, size - 1))
    rows, columns = squares
    batch = torch.arange(len(images), device=images.device)
    images.permute(0, 2, 3, 1)[batch[:, None, None], rows[:, :, None], columns[:, None, :]] = 0.0
    return images


def jitter(images: Tensor, brightness: float, contrast: float, seed: int) -> Tensor:
    """Shift and scale each of the normalised images ``B×C×H×W``, in place, by random amounts of its own."""
    random = torch.Generator().manual_seed(seed)
    shift, scale = (2 * torch.rand(2, len(images), 1, 1, 1, generator=random) - 1).to(images.device)
    return images.add_(brightness * shift).mul_(1 + contrast * scale)


@contextlib.contextmanager
def drawing(seed: int) -> Iterator[None]:
    """Seed torch's global CPU generator within the block, and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
