"""Dense networks under image labels."""

from __future__ import annotations

from torch import Tensor, nn


class ImageLogits(nn.Module):
    """Averages a segmentation network's maps over space: one vector of logits an image.

    So that it can be trained and ranked beside classifiers (global average pooling, Lin et al. 2013,
    arXiv:1312.4400). Its auxiliary head, if it has one, is not trained.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Images ``N×C×H×W`` to logits ``N×num_classes``."""
        maps: Tensor = self.network(x)["out"]
        return maps.mean((2, 3))
