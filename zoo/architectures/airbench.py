"""The network of airbench94 (Jordan 2024, arXiv:2404.00498): CIFAR-10 in seconds, by a recipe made for speed.

Known for 94% on CIFAR-10 in 3.29 seconds on an A100, together with its recipe; it goes back to Page's ResNet-9 (2018).
A 2×2 convolution without padding, meant to whiten patches and to stay frozen; three blocks of two 3×3 convolutions with
64, 256 and 256 channels, each pooled after the first convolution; GELU; global max pooling; logits divided by 9.
Batch norms have no scale to train, and their statistics move fast (momentum 0.4 in PyTorch's sense).

Whitening, identities in the convolutions, 64 times the rate on norms' biases and lookahead are options of any recipe
here (`speedrun` has them), so that the builder draws what PyTorch draws. The paper pools 3×3 maps by a 3×3 window at 32
pixels; global pooling is the same there, and takes other sizes.
"""

import torch
from torch import nn

from zoo.info import Published
from zoo.registry import register_model

LOGIT_SCALE = 1 / 9


class _ScalelessBatchNorm(nn.BatchNorm2d):
    """Batch norm whose scale stays 1: a buffer, no parameter."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-12, momentum=0.4)
        del self.weight
        self.register_buffer("weight", torch.ones(channels))


class AirbenchBlock(nn.Sequential):
    """Conv, max-pool, norm, GELU, conv, norm, GELU: half the size, ``out_chans`` channels."""

    def __init__(self, in_chans: int, out_chans: int) -> None:
        super().__init__(
            nn.Conv2d(in_chans, out_chans, 3, padding=1, bias=False),
            nn.MaxPool2d(2),
            _ScalelessBatchNorm(out_chans),
            nn.GELU(),
            nn.Conv2d(out_chans, out_chans, 3, padding=1, bias=False),
            _ScalelessBatchNorm(out_chans),
            nn.GELU(),
        )


class Airbench(nn.Module):
    """A 2×2 stem, three blocks, global max pooling, linear."""

    def __init__(self, num_classes: int, in_chans: int, widths: tuple[int, int, int] = (64, 256, 256)) -> None:
        super().__init__()
        whitened = 2 * in_chans * 2 * 2  # each direction of a patch, and its negative
        self.stem = nn.Conv2d(in_chans, whitened, 2)
        chans = (whitened, *widths)
        self.blocks = nn.Sequential(*(AirbenchBlock(chans[i], chans[i + 1]) for i in range(len(widths))))
        self.act = nn.GELU()
        self.fc = nn.Linear(widths[-1], num_classes, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``N×C×H×W`` of at least 16 pixels to logits ``N×num_classes``."""
        x = self.blocks(self.act(self.stem(x))).amax((2, 3))
        logits: torch.Tensor = self.fc(x) * LOGIT_SCALE
        return logits


@register_model(
    paper="Jordan 2024, arXiv:2404.00498",
    year=2024,
    published=Published(
        params=1_971_640,
        gmacs=0.118,
        num_classes=10,
        source="arXiv:2404.00498, table 2 (1.97 M parameters; its 0.36 PFLOP are 9.9 epochs of this)",
    ),
    recipe={"lr": 0.19, "weight_decay": 1.3e-3},
    small_image="nothing changes: it is made for 32 pixels",
)
def airbench94(num_classes: int = 10, input_size: int = 32, in_chans: int = 3) -> Airbench:
    """Jordan's network: 1.97 million parameters, 118 million multiply-accumulates at 32 pixels."""
    del input_size  # fully convolutional
    return Airbench(num_classes, in_chans)
