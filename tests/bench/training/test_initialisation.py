import pytest
import torch
from torch import nn
from torch.nn import functional as F

import zoo
from bench.config import Recipe
from bench.data.augment import BatchStream, Normalization
from bench.errors import ModelError
from bench.training.initialisation import init_dirac, initialise, whiten_stem


def correlated_images(count=64, size=12):
    """Smooth colours: neighbouring pixels and channels are alike, as in photographs."""
    torch.manual_seed(0)
    coarse = F.interpolate(torch.randn(count, 3, 4, 4), size=(size, size), mode="bilinear")
    return coarse + 0.5 * coarse.mean(1, keepdim=True) + 0.3 * torch.randn(count, 3, size, size)


@pytest.mark.parametrize("kernel", [2, 3])
def test_whitened_patches_have_unit_covariance(kernel):
    images, dimensions = correlated_images(), 3 * kernel**2
    conv = nn.Conv2d(3, 2 * dimensions + 3, kernel, padding=kernel // 2, bias=False)
    drawn = conv.weight.detach().clone()
    whiten_stem(nn.Sequential(conv), [images[:32], images[32:]])
    rows = F.conv2d(images, conv.weight[:dimensions]).transpose(0, 1).flatten(1)
    assert torch.allclose(torch.cov(rows), torch.eye(dimensions), atol=0.02)
    assert torch.equal(conv.weight[:dimensions], -conv.weight[dimensions : 2 * dimensions])
    assert torch.equal(conv.weight[2 * dimensions :], drawn[2 * dimensions :])
    assert not conv.weight.requires_grad


def test_fewer_filters_than_dimensions_take_the_directions_that_vary_most():
    images = correlated_images()
    conv = nn.Conv2d(3, 2, 3, bias=False)
    whiten_stem(nn.Sequential(conv), [images])
    patches = F.unfold(images, 3).transpose(1, 2).flatten(0, 1)
    top = torch.linalg.eigh(torch.cov(patches.T)).eigenvectors[:, -2:].T.flip(0)
    similarity = F.cosine_similarity(conv.weight.detach().flatten(1), top)
    assert torch.allclose(similarity.abs(), torch.ones(2), atol=1e-3)


@pytest.mark.parametrize("side", [6, 40])
def test_images_of_every_class_are_whitened_though_a_folder_has_them_class_by_class(side, monkeypatch):
    """Also of images with more patches than are taken of each."""
    monkeypatch.setattr("bench.training.initialisation.WHITENED_IMAGES", 400)
    generator = torch.Generator().manual_seed(0)
    grey = torch.randint(120, 130, (1000, 1, side, side), generator=generator).expand(-1, 3, -1, -1)
    coloured = torch.randint(0, 256, (1000, 3, side, side), generator=generator)
    images, labels = torch.cat([grey, coloured]).to(torch.uint8), torch.arange(2).repeat_interleave(1000)
    stream = BatchStream(images, labels, 100, Normalization.of(images), device=torch.device("cpu"))
    conv = nn.Conv2d(3, 24, 2)
    initialise(nn.Sequential(conv), Recipe(whiten=True), stream)
    whitened = torch.cat([F.conv2d(batch, conv.weight[:12]) for batch, _ in stream.in_order()])
    assert torch.allclose(torch.cov(whitened.transpose(0, 1).flatten(1)), torch.eye(12), atol=0.1)
    assert not conv.bias.any()


def test_a_network_without_such_a_convolution_is_told():
    with pytest.raises(ModelError, match=r"recipe\.whiten"):
        whiten_stem(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), [])


def test_dirac_convolutions_pass_their_input_on():
    first, second, grouped, point = (
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.Conv2d(6, 6, 3, groups=6),
        nn.Conv2d(6, 6, 1),
    )  # fmt: skip
    kept = [layer.weight.detach().clone() for layer in (first, grouped, point)]
    further = second.weight[4:].detach().clone()
    init_dirac(nn.Sequential(first, second, grouped, point))
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(second(x)[:, :4], x)
    assert torch.equal(second.weight[4:], further)
    for layer, before in zip((first, grouped, point), kept, strict=True):
        assert torch.equal(layer.weight, before)


def test_our_networks_begin_with_identities():
    net = zoo.create_model("resnet20")
    before = net.conv1.weight.detach().clone()
    init_dirac(net)
    assert torch.equal(net.conv1.weight, before)
    weight = net.layer1[0].conv1.weight
    assert torch.equal(weight[:, :, 1, 1], torch.eye(16))
    assert weight.abs().sum() == 16
