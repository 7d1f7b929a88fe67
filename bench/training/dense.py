"""Dense networks: their outputs, and how they learn from labels of whole images."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

Outputs = Tensor | dict[str, Tensor]
"""Logits ``B×K``, or a segmentation network's maps ``B×K×H×W``: ``out`` and, of an auxiliary head, ``aux``."""


def main_logits(outputs: Outputs) -> Tensor:
    """The logits of the main head, or the only ones."""
    return outputs["out"] if isinstance(outputs, dict) else outputs


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
        return main_logits(self.network(x)).mean((2, 3))


def mean_iou(confusion: Sequence[Sequence[float]]) -> float:
    """Mean over classes of intersection over union (Everingham et al. 2010, the PASCAL VOC challenge, §4.1.2).

    ``confusion[t][p]`` counts pixels of class t taken for p. Of a class the intersection is what was rightly taken for
    it, the union what is of it or was taken for it. A class that occurs in neither counts for nothing; one that was
    only taken for something counts with 0. NaN where there are no pixels at all.
    """
    shares = []
    for index, row in enumerate(confusion):
        hits = row[index]
        union = sum(row) + sum(other[index] for other in confusion) - hits
        if union > 0:
            shares.append(hits / union)
    return math.fsum(shares) / len(shares) if shares else math.nan
