"""Building blocks that two or more families share."""

from __future__ import annotations

import torch
from torch import nn


class ConvNormAct(nn.Sequential):
    """Convolution, batch norm, ReLU: the block of nearly every network since 2015 (Ioffe and Szegedy 2015).

    Padding keeps the size of the map (divided by ``stride``, rounded up) for odd kernels at any dilation.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel_size: int = 1,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        act: type[nn.Module] | None = nn.ReLU,
    ) -> None:
        padding = dilation * (kernel_size - 1) // 2
        layers: list[nn.Module] = [
            nn.Conv2d(in_chans, out_chans, kernel_size, stride, padding, dilation, groups, bias=bias),
            nn.BatchNorm2d(out_chans),
        ]
        if act is not None:
            layers.append(act(inplace=True))
        super().__init__(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``N×in_chans×H×W`` to ``N×out_chans×H/stride×W/stride``."""
        return super().forward(x)
