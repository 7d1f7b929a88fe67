import math

import pytest
import torch
from torch import nn

from bench.training.dense import ImageLogits, mean_iou


def test_mean_iou_of_an_example_made_by_hand():
    # Of 10 background pixels 2 are taken for a cat; of 6 cat pixels 1 for background, 2 for a dog; no dog occurs.
    confusion = [[8.0, 2.0, 0.0], [1.0, 3.0, 2.0], [0.0, 0.0, 0.0]]
    assert mean_iou(confusion) == pytest.approx((8 / 11 + 3 / 8 + 0 / 2) / 3)


def test_mean_iou_is_torchvisions_where_every_class_occurs():
    generator = torch.Generator().manual_seed(0)
    for classes in (2, 11):
        labels, predicted = torch.randint(classes, (2, 5000), generator=generator)
        hist = torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes).float()
        # references/segmentation/utils.py, ConfusionMatrix.compute
        iu = torch.diag(hist) / (hist.sum(1) + hist.sum(0) - torch.diag(hist))
        assert mean_iou(hist.tolist()) == pytest.approx(iu.mean().item())


def test_classes_that_do_not_occur_count_for_nothing():
    assert mean_iou([[4.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]) == 1.0
    assert math.isnan(mean_iou([[0.0, 0.0], [0.0, 0.0]]))


def test_an_image_s_logits_are_the_mean_of_its_map():
    class Maps(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"out": x, "aux": -x}

    images = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(ImageLogits(Maps())(images), images.mean((2, 3)))
