import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bench.training.evaluation import evaluate


class Fixed(nn.Module):
    """Puts out given logits, in order."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.at = logits, 0

    def forward(self, x):
        self.at += len(x)
        return self.logits[self.at - len(x) : self.at]


class Pairs:
    def __init__(self, targets):
        self.targets = targets

    def in_order(self):
        for chunk in self.targets.split(7):
            yield torch.zeros(len(chunk), 1), chunk


def test_evaluation_equals_its_definitions():
    torch.manual_seed(0)
    logits, targets = 3 * torch.randn(200, 4), torch.randint(4, (200,))
    result = evaluate(Fixed(logits), Pairs(targets), 4)
    predicted = logits.argmax(1)
    assert result.top1 == (predicted == targets).double().mean().item()
    assert result.loss == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-6)
    confusion = torch.tensor(result.confusion)
    assert confusion.sum() == 200
    assert confusion[1, 2] == ((targets == 1) & (predicted == 2)).sum()
    assert confusion.diagonal().sum() / 200 == result.top1
    bins = torch.tensor(result.calibration)
    assert bins[:, 2].sum() == 200
    assert float((bins[:, 1] * bins[:, 2]).sum() / 200) == pytest.approx(result.top1)
    confidence = logits.softmax(1).max(1).values
    assert float((bins[:, 0] * bins[:, 2]).sum() / 200) == pytest.approx(float(confidence.mean()), rel=1e-5)
    last = confidence >= 14 / 15
    assert bins[14, 2] == last.sum()


class Reads(nn.Module):
    """Two classes: how bright the left half of the image is, and how bright the right half is."""

    def forward(self, x):
        return torch.stack([x[..., :2].mean((1, 2, 3)), x[..., 2:].mean((1, 2, 3))], dim=1)


class OneImage:
    def in_order(self):
        yield torch.tensor([[[[4.0, 4.0, 1.0, 1.0]]]]), torch.tensor([0])


def test_test_flip_averages_the_logits_of_the_mirrored_image():
    plain, flipped = (evaluate(Reads(), OneImage(), 2, test_flip=flip) for flip in (False, True))
    assert plain.loss == pytest.approx(math.log(1 + math.exp(-3)), rel=1e-5)
    assert flipped.loss == pytest.approx(math.log(2), rel=1e-5)  # 2.5 against 2.5


class Corner(nn.Module):
    """Two classes: how bright the upper left pixel is, and one half."""

    def forward(self, x):
        return torch.stack([x[:, 0, 0, 0], torch.full_like(x[:, 0, 0, 0], 0.5)], dim=1)


def test_shifted_views_count_half_and_only_those_of_the_least_certain_images():
    image = torch.arange(9.0).view(1, 1, 3, 3)

    class Images:
        def in_order(self):
            yield torch.cat([image, 100 * (image + 1)]), torch.tensor([0, 0])

    def logit_of(upper_left, up_left, down_right):
        return (upper_left + (up_left + down_right) / 2) / 2

    # Padded by reflection, what is up-left of pixel (0, 0) is pixel (1, 1); shifted the other way (1, 1) comes there.
    shifted = [logit_of(0, 4, 4), logit_of(100, 500, 500)]
    for share, expected in ((1.0, shifted), (0.5, [shifted[0], 100])):
        found = evaluate(Corner(), Images(), 2, test_shift=1, test_share=share)
        logits = torch.tensor([[logit, 0.5] for logit in expected])
        assert found.loss == pytest.approx(F.cross_entropy(logits, torch.tensor([0, 0])).item(), rel=1e-5)
        assert (found.top1, found.single_view_top1) == (1.0, 0.5)
    assert evaluate(Corner(), Images(), 2).single_view_top1 is None


class Halves(nn.Module):
    """As `Reads`, after it has changed its input in place."""

    def forward(self, x):
        return Reads()(x.mul_(0.5)) * 2


def test_each_pass_of_a_mirrored_test_gets_its_own_images():
    plain, in_place = (evaluate(model, OneImage(), 2, test_flip=True).loss for model in (Reads(), Halves()))
    assert in_place == pytest.approx(plain, rel=1e-6)


def test_logits_that_are_not_finite_are_counted_as_wrong_and_named():
    logits = torch.tensor([[2.0, 1.0], [math.nan, 1.0], [1.0, math.inf], [0.0, 1.0]])
    result = evaluate(Fixed(logits), Pairs(torch.tensor([0, 0, 1, 1])), 2)
    assert result.not_finite == 2
    assert result.top1 == 0.5
    assert math.isnan(result.loss)
    assert result.confusion == [[1, 0], [0, 1]]
    assert sum(row[2] for row in result.calibration) == 2
    assert evaluate(Fixed(logits[[0, 3]]), Pairs(torch.tensor([0, 1])), 2).not_finite == 0


class Maps(nn.Module):
    """A segmentation network that says what the pixels are."""

    def forward(self, x):
        return {"out": torch.stack([1 - x[:, 0], x[:, 0]], dim=1), "aux": None}


class Canvases:
    def in_order(self):
        images = torch.tensor([[[[0.0, 1.0], [1.0, 1.0]]]])
        yield images, torch.tensor([[[0, 1], [1, 0]]])
        yield images, torch.tensor([[[0, 1], [1, 1]]])


@pytest.mark.parametrize("test_flip", [False, True])
def test_dense_labels_are_evaluated_pixel_by_pixel(test_flip):
    result = evaluate(Maps(), Canvases(), 2, test_flip=test_flip)
    assert result.confusion == [[2, 1], [0, 5]]
    assert result.top1 == 7 / 8
    assert result.miou == pytest.approx((2 / 3 + 5 / 6) / 2)
