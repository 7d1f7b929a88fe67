"""What networks put out, before training and at evaluation: logits, or an error that names the remedy."""

import copy
from collections import OrderedDict, namedtuple

import pytest
import torch
from torch import nn

import zoo
from bench.errors import ModelError
from bench.training.evaluation import evaluate
from bench.training.outputs import check_outputs

Named = namedtuple("Named", "logits aux")
BATCH = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
DENSE = torch.rand(4, 3, 8, 8), torch.zeros(4, 8, 8, dtype=torch.int64)


class Returns(nn.Module):
    """A linear network whose logits ``N×K`` go through ``then``; only in training mode where ``trained`` is given."""

    def __init__(self, then=lambda logits: logits, classes=3, trained=None):
        super().__init__()
        self.fc, self.then, self.trained = nn.Linear(3, classes), then, trained

    def forward(self, x):
        logits = self.fc(x.mean((2, 3)))
        return (self.trained if self.training and self.trained else self.then)(logits)


def maps(logits, size):
    return logits[:, :, None, None].expand(-1, -1, size, size)


def test_logits_pass():
    check_outputs(Returns(), BATCH, 3)
    check_outputs(Returns(lambda logits: {"out": logits}), BATCH, 3)
    check_outputs(Returns(lambda logits: OrderedDict(out=maps(logits, 8), aux=None)), DENSE, 3)
    check_outputs(Returns().to(torch.bfloat16), (BATCH[0].bfloat16(), BATCH[1]), 3)


@pytest.mark.parametrize(
    ("then", "message"),
    [
        (lambda y: (y, y), "returns a tuple of 2 in evaluation mode.*alone, without auxiliary outputs"),
        (lambda y: [y], "returns a list of 1"),
        (lambda y: Named(y, y), "returns a Named of 2"),
        (lambda y: None, "returns a NoneType"),
        (lambda y: {"logits": y, "features": y}, "the keys 'logits', 'features'.*under the key 'out'"),
        (lambda y: {"out": (y,)}, "returns a tuple of 1"),
        (lambda y: y.argmax(1), "torch.int64 of 2.*before softmax or argmax"),
        (lambda y: y[:, :, None, None], r"float32 of 2×3×1×1.*flatten\(1\) it"),
        (lambda y: maps(y, 4), r"2×3×4×4.*average the maps over space, mean\(\(2, 3\)\)"),
        (lambda y: y.T, "3×2.*let its forward return that"),
        (lambda y: y[:1], "1×3"),
        (lambda y: y.flatten(), "float32 of 6"),
        (lambda y: y.sum(), "a single number"),
    ],
)
def test_anything_else_is_an_error_that_says_what_to_do(then, message):
    with pytest.raises(ModelError, match=message):
        check_outputs(Returns(then), BATCH, 3)


def test_what_a_network_returns_in_training_mode_counts_as_well():
    with pytest.raises(ModelError, match="returns a tuple of 2 in training mode"):
        check_outputs(Returns(trained=lambda y: (y, y)), BATCH, 3)


@pytest.mark.parametrize("outputs", [1, 2, 5, 1000])
def test_as_many_outputs_as_classes(outputs):
    with pytest.raises(ModelError, match=f"2×{outputs} in.*2×3 for 2 images and 3 classes.*num_classes=3"):
        check_outputs(Returns(classes=outputs), BATCH, 3)


def test_maps_have_the_size_of_the_labels():
    with pytest.raises(ModelError, match=r"2×3×4×4.*2×3×8×8.*resize its maps to the size of its input"):
        check_outputs(Returns(lambda y: {"out": maps(y, 4)}), DENSE, 3)
    with pytest.raises(ModelError, match=r"2×3 in.*2×3×8×8"):
        check_outputs(Returns(), DENSE, 3)


def test_the_check_leaves_no_trace():
    model = zoo.create_model("simple_cnn")
    before, images = copy.deepcopy(model.state_dict()), torch.randn(4, 3, 32, 32)
    original, state = images.clone(), torch.get_rng_state()
    check_outputs(nn.Sequential(nn.ReLU(inplace=True), model), (images, BATCH[1]), 10)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(images, original)
    assert all(parameter.grad is None for parameter in model.parameters())


class Always(nn.Module):
    """As many outputs as asked for, of which one is always the largest."""

    def __init__(self, outputs, answer):
        super().__init__()
        self.logits = torch.eye(outputs)[answer]

    def forward(self, x):
        return self.logits.expand(len(x), -1)


class Images:
    def __init__(self, targets):
        self.targets = torch.tensor(targets)

    def in_order(self):
        yield torch.zeros(len(self.targets), 3, 4, 4), self.targets


def test_an_answer_that_is_no_class_is_an_error_and_never_right():
    # Class 1 does not occur: in a flat table of 3×3, an answer of 4 for class 0 was one of 1 for class 1.
    with pytest.raises(ModelError, match=r"4×5.*4×3"):
        evaluate(Always(5, 4), Images([0, 2, 0, 2]), 3)
    assert evaluate(Always(3, 2), Images([0, 2, 0, 2]), 3).top1 == 0.5


def test_a_batch_of_one_that_loses_its_dimension_is_named_at_evaluation():
    with pytest.raises(ModelError, match=r"float32 of 3\. Expected"):
        evaluate(Returns(lambda y: y.squeeze()), Images([1]), 3)
