"""Every registered architecture, whatever they are: counts, small images, one training step.

The names come from the registry: an architecture that is added is tested here without a change.
"""

import inspect

import pytest
import torch
import torch.nn.functional as F
from shallow import shallow_models
from torch import nn

from bench.counting.complexity import count_macs, count_params
from zoo import create_model, list_models, model_info
from zoo.registry import representative_models

MODELS = list_models()

# What the project promises: name -> (parameters, GMACs or None, classes, pixels, channels).
GOLDEN = {
    "lenet5": (62_006, 0.000652, 10, 32, 3),
    "lenet5_1998": (60_000, None, 10, 32, 1),
    "simple_cnn": (94_986, None, 10, 32, 3),
    "alexnet": (61_100_840, 0.714, 1000, 224, 3),
    "alexnet_2012": (60_965_224, None, 1000, 227, 3),
    "vgg16": (138_357_544, 15.470, 1000, 224, 3),
    "vgg19": (143_667_240, 19.632, 1000, 224, 3),
    "resnet18": (11_689_512, 1.814, 1000, 224, 3),
    "resnet50": (25_557_032, 4.089, 1000, 224, 3),
    "resnet101": (44_549_160, 7.801, 1000, 224, 3),
    "mobilenet_v1": (4_231_976, 0.569, 1000, 224, 3),
    "mobilenet_v2": (3_504_872, 0.301, 1000, 224, 3),
    "xception": (22_855_952, 8.357, 1000, 299, 3),
    "deeplabv3_resnet50": (42_004_074, 178.722, 21, 520, 3),
    "fcn_resnet50": (35_322_218, 152.717, 21, 520, 3),
}
# The small-image forms at 32×32 and 10 classes: (parameters, MACs in millions).
SMALL = {
    "resnet18": (11_173_962, 555.4),
    "resnet50": (23_520_842, 1_297.8),
    "vgg16": (14_719_818, 313.2),
    "mobilenet_v1": (3_217_226, 46.4),
    "mobilenet_v2": (2_236_682, 88.0),
    "alexnet": (2_472_266, 15.0),
    "xception": (20_827_442, 1_129.7),
    "deeplab_resnet18": (15_893_578, 1_251.8),
}


def on_meta(name: str, num_classes: int = 10, input_size: int = 32, in_chans: int = 3, **options: int) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, num_classes, input_size, in_chans, **options)


def outputs(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    output = model(images)
    return list(output.values()) if isinstance(output, dict) else [output]


def loss_of(model: nn.Module, images: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Cross-entropy against class 1, of every image or pixel, summed over the heads."""
    losses = []
    for logits in outputs(model, images):
        labels = torch.ones(logits.shape[:1] + logits.shape[2:], dtype=torch.long, device=logits.device)
        assert logits.shape[1] == num_classes
        losses.append(F.cross_entropy(logits, labels))
    return torch.stack(losses).sum()


@pytest.mark.parametrize("name", GOLDEN)
def test_counts_are_the_promised_ones(name: str) -> None:
    params, gmacs, num_classes, input_size, in_chans = GOLDEN[name]
    model = on_meta(name, num_classes, input_size, in_chans)
    assert count_params(model) == params
    if gmacs is not None:
        assert count_macs(model, (in_chans, input_size, input_size)) / 1e9 == pytest.approx(gmacs, rel=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_counts_equal_the_published_ones(name: str) -> None:
    info = model_info(name)
    if info.published is None:
        pytest.skip("nothing is published")
    published = info.published
    size = published.input_size or info.input_size
    model = on_meta(name, published.num_classes, size, published.in_chans)
    if published.params is not None:
        assert count_params(model) == published.params
    if published.gmacs is not None:
        gmacs = count_macs(model, (published.in_chans, size, size)) / 1e9
        assert gmacs == pytest.approx(published.gmacs, rel=2e-3, abs=5e-4)


@pytest.mark.parametrize("name", SMALL)
def test_small_image_form_is_the_customary_one(name: str) -> None:
    params, millions = SMALL[name]
    model = on_meta(name)
    assert count_params(model) == params
    assert count_macs(model, (3, 32, 32)) / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize(("output_stride", "millions"), [(8, 4_146), (16, 1_252)])
def test_deeplab_output_stride_sets_the_cost_and_no_parameter(output_stride: int, millions: float) -> None:
    model = on_meta("deeplab_resnet18", output_stride=output_stride)
    assert count_params(model) == SMALL["deeplab_resnet18"][0]
    assert count_macs(model, (3, 32, 32)) / 1e6 == pytest.approx(millions, abs=0.5)


@pytest.mark.parametrize("name", MODELS)
def test_trains_a_step_on_32_pixels_channels_last(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=5, input_size=32).to(memory_format=torch.channels_last)
    images = torch.rand(2, 3, 32, 32).to(memory_format=torch.channels_last)
    before = {key: value.clone() for key, value in model.named_parameters() if value.dim() > 1}
    loss = loss_of(model, images, 5)
    assert loss.isfinite()
    loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        if parameter.dim() > 1:  # a bias before a norm has none but rounding
            assert parameter.grad.abs().sum() > 0, key
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert any(not torch.equal(value, before[key]) for key, value in model.named_parameters() if key in before)


@pytest.mark.parametrize("name", shallow_models())
def test_trains_a_step_on_64_pixels(name: str) -> None:
    model = on_meta(name, num_classes=7, input_size=64)
    loss_of(model, torch.empty(2, 3, 64, 64, device="meta"), 7).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", shallow_models())
def test_takes_images_of_one_channel(name: str) -> None:
    if "in_chans" not in inspect.signature(model_info(name).builder).parameters:
        pytest.skip("the builder is for three channels")
    logits = outputs(on_meta(name, 10, 32, in_chans=1).eval(), torch.empty(2, 1, 32, 32, device="meta"))
    assert logits[0].shape[:2] == (2, 10)


@pytest.mark.parametrize("name", representative_models())
def test_same_seed_same_weights_and_logits_in_eval(name: str) -> None:
    images = torch.rand(2, 3, 32, 32)
    logits = []
    for _ in range(2):
        torch.manual_seed(3)
        model = create_model(name).eval()
        with torch.no_grad():
            logits.append(outputs(model, images)[0])
    assert torch.equal(*logits)
    assert not torch.equal(logits[0][0], logits[0][1])  # the images differ, so must what is said of them
