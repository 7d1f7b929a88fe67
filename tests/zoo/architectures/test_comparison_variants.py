"""The variants that papers compare with, held against the counts that they print."""

import pytest
import torch

from bench.counting.complexity import count_macs, count_params
from zoo import create_model
from zoo.info import ZooError


def counts(name: str, num_classes: int, input_size: int) -> tuple[int, int]:
    with torch.device("meta"):
        model = create_model(name, num_classes, input_size)
    return count_params(model), count_macs(model, (3, input_size, input_size))


def test_mobilenet_of_standard_convolutions_has_the_counts_of_table_4():
    params, macs = counts("mobilenet_v1,separable=false", 1000, 224)
    assert round(params / 1e6, 1) == 29.3
    assert macs / 1e6 == pytest.approx(4866, rel=1e-3)


def test_a_width_is_what_the_named_widths_are():
    assert counts("mobilenet_v1,width=0.25", 10, 32) == counts("mobilenet_v1_025", 10, 32)


@pytest.mark.parametrize("name", ["vgg13", "vgg13_bn", "vgg19"])
def test_a_pair_of_3x3_becomes_one_5x5_that_sees_as_much(name):
    fields = []
    for kernel_size, count in ((3, 2), (5, 1)):
        model = create_model(f"{name},kernel_size={kernel_size},width=0.125", 10, 32)
        first_stage = []
        for layer in model.features:
            first_stage.append(layer)
            if isinstance(layer, torch.nn.MaxPool2d):
                break
        convs = [layer for layer in first_stage if isinstance(layer, torch.nn.Conv2d)]
        assert [conv.kernel_size for conv in convs] == [(kernel_size, kernel_size)] * count
        fields.append(sum(conv.kernel_size[0] - 1 for conv in convs) + 1)
    assert fields == [5, 5]


def test_the_last_stage_has_the_weights_that_the_paper_counts():
    """A stack of two 3×3 on C channels has 18C² weights; one 5×5 has 25C² (section 2.3)."""
    weights = []
    for kernel_size in (3, 5):
        with torch.device("meta"):
            model = create_model("vgg13", 10, 32, kernel_size=kernel_size)
        shapes = [p.shape for p in model.features.parameters() if p.dim() == 4 and p.shape[:2] == (512, 512)]
        weights.append(sum(shape.numel() for shape in shapes[-2 if kernel_size == 3 else -1 :]))
    assert weights == [18 * 512**2, 25 * 512**2]


@pytest.mark.parametrize(("name", "kernel_size"), [("vgg16", 5), ("vgg11_bn", 5), ("vgg13", 4)])
def test_a_kernel_that_replaces_no_pair_is_refused(name, kernel_size):
    with pytest.raises(ZooError, match=f"kernel_size={kernel_size} is not possible .* vgg13, vgg19"):
        create_model(name, 10, 32, kernel_size=kernel_size)
