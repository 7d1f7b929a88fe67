"""SimpleCNN: three convolutions, global average pooling and a linear layer; the small reference of the benchmark.

No paper: the network that tutorials train first. Three stages of Conv-BN-ReLU-MaxPool with 32, 64 and 128 channels,
then dropout 0.5 and one linear layer. At 10 classes it has 94,986 parameters whatever the input size.
"""

import itertools

import torch
from torch import nn

from zoo.info import Published
from zoo.layers import ConvNormAct
from zoo.registry import register_model


class SimpleCNN(nn.Module):
    """Conv-BN-ReLU-Pool ×3, global average pooling, dropout, linear."""

    def __init__(
        self,
        num_classes: int,
        in_chans: int,
        widths: tuple[int, ...] = (32, 64, 128),
        drop_rate: float = 0.5,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        chans = [in_chans, *widths]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    ConvNormAct(before, after, kernel_size=3, bias=True, batch_norm=batch_norm), nn.MaxPool2d(2)
                )
                for before, after in itertools.pairwise(chans)
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(drop_rate)
        self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``N×C×H×W`` to logits ``N×num_classes``."""
        x = self.pool(self.stages(x)).flatten(1)
        logits: torch.Tensor = self.fc(self.dropout(x))
        return logits


@register_model(
    published=Published(params=94_986, num_classes=10, source="three biased 3×3 convolutions, batch norm and a head"),
    recipe={"lr": 0.3, "weight_decay": 5e-4},
    small_image="nothing changes: the global pooling takes any size of 8 pixels or more",
)
def simple_cnn(
    num_classes: int = 10,
    input_size: int = 32,
    in_chans: int = 3,
    drop_rate: float = 0.5,
    batch_norm: bool = True,
) -> SimpleCNN:
    """The reference network of 94,986 parameters."""
    del input_size  # fully convolutional
    return SimpleCNN(num_classes, in_chans, drop_rate=drop_rate, batch_norm=batch_norm)
