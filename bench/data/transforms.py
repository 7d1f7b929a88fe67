"""What an epoch's images go through beyond flip and crop: cutout, rotation, colour, RandAugment, Mixup and CutMix.

Cutout is our own, a whole batch at once. The rest is torchvision's v2, whose draws come from torch's global stream:
`drawing` lends it one of a known seed, so that a batch can be replayed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

ImageTransform = Callable[[Tensor], Tensor]
"""One uint8 image ``C×H×W`` to another, drawn from torch's global stream."""
Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Float images ``B×C×H×W`` and int64 labels ``B`` to mixed images and float32 labels ``B×K``."""


@dataclass(frozen=True)
class Augmentation:
    """How the images of an epoch differ from the stored ones; the fields are those of a recipe.

    Attributes:
        flip: mirror each image with probability one half; ``"alternating"``: a random half in the first epoch, and
            from then on each image in every second epoch (Jordan 2024, arXiv:2404.00498).
        crop_padding: pad by that many pixels and crop back to the size at a random place.
        crop_fill: what the padding is: black, or the image reflected at its edge.
        rotation: turn by up to that many degrees either way; the corners that come in have the mean colour.
        color_jitter: brightness, contrast and saturation, each by a factor of up to 1 ± that.
        randaugment: operations an image, at magnitude 9 of 30 (Cubuk et al. 2019, arXiv:1909.13719).
        cutout: side in pixels of a square of the mean colour, centred anywhere and clipped at the border
            (DeVries and Taylor 2017, arXiv:1708.04552).
        mixup: alpha of Mixup (Zhang et al. 2017, arXiv:1710.09412), 0 for none.
        cutmix: alpha of CutMix (Yun et al. 2019, arXiv:1905.04899), 0 for none; beside Mixup, one of the two a batch.
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

    @property
    def mixes(self) -> bool:
        """Whether images are mixed, so that labels are shares of classes."""
        return self.mixup > 0 or self.cutmix > 0


def create_image_transform(augmentation: Augmentation, mean: Sequence[float]) -> ImageTransform | None:
    """Rotation, colour jitter and RandAugment in this order, as far as asked for; None where none is.

    ``mean`` (of each channel, in units of uint8) fills what comes in from outside the image.
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
    """Mixup, CutMix or, a batch, one of them at random; None where neither is asked for."""
    if not augmentation.mixes:
        return None
    if num_classes is None:
        raise ValueError("mixup and cutmix give labels B×K: the stream must be told num_classes")
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


@contextlib.contextmanager
def drawing(seed: int) -> Iterator[None]:
    """What is drawn from torch's global stream of the CPU is that seed's; afterwards the stream is as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
