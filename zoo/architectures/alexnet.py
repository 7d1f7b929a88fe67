"""AlexNet: the network that won ImageNet 2012 and started deep learning's decade.

Known for: ReLU, dropout, training on GPUs, and 60 million parameters, 59 million of them in three linear layers.

`alexnet` is the one-column network of Krizhevsky 2014 (arXiv:1404.5997) as torchvision has it: no groups, no
normalisation, average pooling to 6×6 before the head. Parts are named as in torchvision, so its state dicts load.

`alexnet_2012` is the network of Krizhevsky, Sutskever, Hinton 2012 (NeurIPS): convolutions 2, 4 and 5 in two groups
(the two GPUs), local response normalisation, overlapping pooling, 227×227 images (the paper prints 224, its
arithmetic needs 227). Normalisation follows the paper's formula, which does not divide by the window as torch does.

Small images (64 pixels or less): the form of bearpaw/pytorch-classification, about 2.5 million parameters at ten
classes: first convolution 11×11 with stride 4 and padding 5, 2×2 pooling, one linear layer on 256 features. Both have
it; `alexnet_2012` keeps its groups and its normalisation, but is initialised after He et al.: the paper's standard
deviation of 0.01 suits its own widths, here the signal would vanish. (torchvision's network cannot take 32×32 images.)
"""

import torch
from torch import nn

from zoo.info import SMALL_INPUT_SIZE, Published
from zoo.layers import drop_rate_of_head, init_kaiming
from zoo.registry import register_model

SMALL_IMAGE = "the first convolution pads by 5, pooling is 2×2, and the head is one linear layer on 256 features"


def _mlp(in_features: int, num_classes: int, drop_rate: float) -> nn.Sequential:
    """The three linear layers of the head."""
    return nn.Sequential(
        nn.Dropout(drop_rate),
        nn.Linear(in_features, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(drop_rate),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
        nn.Linear(4096, num_classes),
    )


class AlexNet(nn.Module):
    """Five convolutions, then the head; the 2014 network or its small-image form."""

    def __init__(self, num_classes: int, input_size: int, in_chans: int, drop_rate: float | None) -> None:
        super().__init__()
        small = input_size <= SMALL_INPUT_SIZE
        drop_rate = drop_rate_of_head(drop_rate, small)
        pool = 2 if small else 3
        self.features = nn.Sequential(
            nn.Conv2d(in_chans, 64, 11, stride=4, padding=5 if small else 2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(pool, 2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(pool, 2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(pool, 2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1 if small else 6)
        self.classifier = nn.Linear(256, num_classes) if small else _mlp(256 * 6 * 6, num_classes, drop_rate)
        init_kaiming(self)  # from PyTorch's default, which torchvision keeps, the network takes epochs to start

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``N×C×H×W`` to logits ``N×num_classes``."""
        logits: torch.Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits


@register_model(
    paper="Krizhevsky 2014, One weird trick for parallelizing convolutional neural networks, arXiv:1404.5997",
    year=2014,
    published=Published(params=61_100_840, gmacs=0.714, source="torchvision weights metadata"),
    weights="torchvision/alexnet",
    recipe={"lr": 0.01, "weight_decay": 5e-4},
    small_image=SMALL_IMAGE,
    representative=True,
)
def alexnet(
    num_classes: int = 1000, input_size: int = 224, in_chans: int = 3, drop_rate: float | None = None
) -> AlexNet:
    """The one-column network."""
    return AlexNet(num_classes, input_size, in_chans, drop_rate)


class AlexNet2012(nn.Module):
    """Five convolutions in two columns with local response normalisation, then the head."""

    def __init__(self, num_classes: int, input_size: int, in_chans: int, drop_rate: float | None) -> None:
        super().__init__()
        small = input_size <= SMALL_INPUT_SIZE
        drop_rate = drop_rate_of_head(drop_rate, small)
        pool = 2 if small else 3
        self.features = nn.Sequential(
            nn.Conv2d(in_chans, 96, 11, stride=4, padding=5 if small else 0),
            nn.ReLU(inplace=True),
            self._normalisation(),
            nn.MaxPool2d(pool, 2),
            nn.Conv2d(96, 256, 5, padding=2, groups=2),
            nn.ReLU(inplace=True),
            self._normalisation(),
            nn.MaxPool2d(pool, 2),
            nn.Conv2d(256, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 384, 3, padding=1, groups=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1, groups=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(pool, 2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1 if small else 6)  # 6×6 already at 227 pixels
        self.classifier = nn.Linear(256, num_classes) if small else _mlp(256 * 6 * 6, num_classes, drop_rate)
        if small:
            init_kaiming(self)
        else:
            self._init_weights()

    @staticmethod
    def _normalisation() -> nn.LocalResponseNorm:
        # The paper's alpha of 1e-4 multiplies the sum over 5 channels, torch's their mean.
        return nn.LocalResponseNorm(size=5, alpha=5 * 1e-4, beta=0.75, k=2.0)

    def _init_weights(self) -> None:
        """Section 5: weights normal with deviation 0.01; biases 1 where they feed a ReLU early, else 0.

        Biases of 1 go to the second, fourth and fifth convolutions and the hidden linear layers.
        """
        layers = [layer for layer in self.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
        ones = {layers[1], layers[3], layers[4], *layers[5:-1]}
        for layer in layers:
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.constant_(layer.bias, 1.0 if layer in ones else 0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``N×C×H×W`` to logits ``N×num_classes``."""
        logits: torch.Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits


@register_model(
    paper="Krizhevsky, Sutskever, Hinton 2012, ImageNet classification with deep convolutional neural networks",
    year=2012,
    published=Published(params=60_965_224, source="the paper's layers, section 3.5, summed (it says 60 million)"),
    recipe={"lr": 0.03, "weight_decay": 5e-4},
    small_image=SMALL_IMAGE,
)
def alexnet_2012(
    num_classes: int = 1000, input_size: int = 227, in_chans: int = 3, drop_rate: float | None = None
) -> AlexNet2012:
    """The network of the paper: groups and local response normalisation."""
    return AlexNet2012(num_classes, input_size, in_chans, drop_rate)
