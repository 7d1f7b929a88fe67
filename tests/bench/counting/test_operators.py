"""Closed-form counts of every kind of layer and product, on the meta device and on the CPU alike."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.counting.complexity import Complexity, count_complexity, count_macs
from bench.counting.shapes import count_by_shapes
from zoo import create_model

CHANS, HEIGHT, WIDTH = 8, 4, 6
SHAPE = (CHANS, HEIGHT, WIDTH)
STEPS = HEIGHT * WIDTH


class Network(nn.Module):
    """A forward pass written as a function of the image and of the layers."""

    def __init__(self, run: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.run, self.layers = run, nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> Any:
        return self.run(x, *self.layers)


def tokens(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(2).transpose(1, 2)


def counted(run: Callable[..., Any], *layers: nn.Module, shape: tuple[int, ...] = SHAPE) -> Complexity:
    """The counts, which must not depend on the device nor on the batch."""
    model = Network(run, *layers).eval()
    on_cpu = count_complexity(model, shape)
    on_meta = count_complexity(model.to("meta"), shape)
    assert (on_cpu.macs, on_cpu.uncounted) == (on_meta.macs, on_meta.uncounted)
    assert count_macs(model, shape) == count_macs(model, (2, *shape)) == on_meta.macs
    return on_meta


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("depth", [1, 2])
def test_recurrent_layers(kind: type[nn.RNNBase], gates: int, directions: int, depth: int) -> None:
    hidden = 5
    layer = kind(CHANS, hidden, depth, bidirectional=directions == 2, batch_first=True)
    counts = counted(lambda x, layer: layer(tokens(x))[0], layer)
    inputs = [CHANS, *[directions * hidden] * (depth - 1)]
    assert counts.macs == STEPS * directions * sum(gates * hidden * (each + hidden) for each in inputs)
    assert counts.activations == STEPS * directions * depth * 2 * gates * hidden
    assert counts.uncounted == ()


def test_a_recurrent_layer_with_a_projection() -> None:
    layer = nn.LSTM(CHANS, 5, proj_size=3, batch_first=True)
    counts = counted(lambda x, layer: layer(tokens(x))[0], layer)
    assert counts.macs == STEPS * (4 * 5 * (CHANS + 3) + 5 * 3)


def test_a_fused_recurrent_layer_counts_its_activations_as_the_unfused_one() -> None:
    model = Network(lambda x, layer: layer(tokens(x))[0], nn.LSTM(CHANS, 5, batch_first=True))
    fused = count_complexity(model, SHAPE)
    assert "aten.mkldnn_rnn_layer" in fused.operators
    assert fused.activations == count_complexity(model.to("meta"), SHAPE).activations


def test_a_deformable_convolution_with_its_offsets() -> None:
    offsets, layer = nn.Conv2d(CHANS, 18, 3, padding=1), torchvision.ops.DeformConv2d(CHANS, 16, 3, padding=1, groups=2)
    counts = counted(lambda x, offsets, layer: layer(x, offsets(x)), offsets, layer)
    assert counts.macs == STEPS * (9 * CHANS * 18 + 9 * CHANS // 2 * 16)
    assert counts.disagreements == (
        f"torchvision.deform_conv2d: here {STEPS * 9 * CHANS // 2 * 16:,}, torch 0 multiply-accumulates",
    )


def test_a_bilinear_layer() -> None:
    counts = counted(lambda x, layer: layer(tokens(x), tokens(x)[..., :3]), nn.Bilinear(CHANS, 3, 5))
    assert counts.macs == STEPS * CHANS * 3 * 5


@pytest.mark.parametrize("need_weights", [False, True])
def test_multi_head_attention(need_weights: bool) -> None:
    layer = nn.MultiheadAttention(CHANS, 2, batch_first=True)
    counts = counted(lambda x, layer: layer(*[tokens(x)] * 3, need_weights=need_weights)[0], layer)
    assert counts.macs == 4 * STEPS * CHANS**2 + 2 * STEPS**2 * CHANS


def test_a_transformer_layer_which_has_a_fast_path() -> None:
    layer = nn.TransformerEncoderLayer(CHANS, 2, 16, batch_first=True)
    counts = counted(lambda x, layer: layer(tokens(x)), layer)
    assert counts.macs == STEPS * (4 * CHANS**2 + 2 * CHANS * 16) + 2 * STEPS**2 * CHANS
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_alone(is_causal: bool) -> None:
    def run(x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
        query = tokens(layer(x))[:, None]
        return F.scaled_dot_product_attention(query, query[:, :, :10], query[:, :, :10, :3], is_causal=is_causal)

    products = STEPS * CHANS**2
    assert counted(run, nn.Conv2d(CHANS, CHANS, 1)).macs == products + STEPS * 10 * (CHANS + 3)


LINEAR = nn.Linear(CHANS, 5)
PRODUCTS: dict[str, tuple[Callable[..., Any], int]] = {
    "linear of two dimensions": (lambda x, layer: layer(x.mean((2, 3))), 5 * CHANS),
    "linear of four dimensions": (lambda x, layer: layer(x.permute(0, 2, 3, 1)), STEPS * 5 * CHANS),
    "matmul": (lambda x, layer: tokens(x) @ layer.weight.mT, STEPS * 5 * CHANS),
    "einsum": (lambda x, layer: torch.einsum("nchw,kc->nkhw", x, layer.weight), STEPS * 5 * CHANS),
    "tensordot": (lambda x, layer: torch.tensordot(x, layer.weight, ([1], [1])), STEPS * 5 * CHANS),
    "bmm": (lambda x, layer: torch.bmm(tokens(x), x.flatten(2)), STEPS * CHANS * STEPS),
    "baddbmm": (lambda x, layer: torch.baddbmm(tokens(x)[..., :1], tokens(x), x.flatten(2)), STEPS * CHANS * STEPS),
    "addbmm": (
        lambda x, layer: torch.addbmm(tokens(x)[0, :, :1], tokens(x), x.flatten(2))[None].expand(len(x), -1, -1),
        STEPS * CHANS * STEPS,
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name: str) -> None:
    run, macs = PRODUCTS[name]
    counts = counted(run, LINEAR)
    assert counts.macs == macs
    assert counts.uncounted == ()


def test_products_with_vectors() -> None:
    def run(x: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
        vector = x[0, :, 0, 0]
        out = torch.mv(layer.weight, vector) + torch.addmv(layer.bias, layer.weight, vector)
        return out + torch.dot(vector, vector) + torch.vdot(vector, vector)

    # Of the first image alone, whatever the batch: counted with one image.
    model = Network(run, nn.Linear(CHANS, 5)).to("meta")
    counts = count_complexity(model, SHAPE)
    assert (counts.macs, counts.uncounted) == (2 * 5 * CHANS + 2 * CHANS, ())


CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "same": (lambda: nn.Conv2d(CHANS, 5, 3, padding="same"), STEPS * 5 * 9 * CHANS),
    "same, even": (lambda: nn.Conv2d(CHANS, 5, 2, padding="same"), STEPS * 5 * 4 * CHANS),
    "grouped": (lambda: nn.Conv2d(CHANS, 4, 3, padding=1, groups=4), STEPS * 4 * 9 * 2),
    "depthwise": (lambda: nn.Conv2d(CHANS, CHANS, 3, padding=1, groups=CHANS), STEPS * CHANS * 9),
    "dilated": (lambda: nn.Conv2d(CHANS, 5, 3, padding=2, dilation=2), STEPS * 5 * 9 * CHANS),
    "strided": (lambda: nn.Conv2d(CHANS, 5, 2, stride=2), STEPS // 4 * 5 * 4 * CHANS),
    "transposed": (lambda: nn.ConvTranspose2d(CHANS, 5, 3, stride=2), STEPS * 5 * 9 * CHANS),
    "reflected": (lambda: nn.Conv2d(CHANS, 5, 3, padding=1, padding_mode="reflect"), STEPS * 5 * 9 * CHANS),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(CHANS, 5, 1)), STEPS * 5 * CHANS),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str) -> None:
    create, macs = CONVOLUTIONS[name]
    counts = counted(lambda x, layer: layer(x), create())
    assert counts.macs == counts.macs_torch == macs
    assert counts.uncounted == ()


def test_operators_in_inference_mode_are_counted_too() -> None:
    def run(x: torch.Tensor, *layers: nn.Module) -> torch.Tensor:
        with torch.inference_mode():
            for layer in layers:
                x = layer(x)
            return x

    layers = nn.Conv2d(CHANS, 4, 3, padding="same"), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * STEPS, 10)
    counts = counted(run, *layers)
    assert counts.macs == counts.macs_torch == STEPS * 4 * 9 * CHANS + 4 * STEPS * 10
    assert counts.uncounted == ()


def test_parameters_that_reach_a_layer_as_views_are_counted() -> None:
    class ClassToken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.norm = nn.Parameter(torch.zeros(1, 1, CHANS)), nn.LayerNorm(CHANS)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            normed: torch.Tensor = self.norm(self.token.expand(len(x), -1, -1))
            return normed

    counts = counted(lambda x, layer: layer(x), ClassToken())
    assert (counts.params, counts.macs) == (3 * CHANS, 0)


NOT_COUNTED: dict[str, Callable[..., Any]] = {
    "aten._cdist_forward": lambda x, layer: torch.cdist(tokens(x), layer.weight.expand(len(x), -1, -1)),
    "aten._fft_c2c": lambda x, layer: torch.fft.fft2(layer.weight + 0j) + x.mean(),
    "aten.linalg_inv_ex": lambda x, layer: torch.linalg.inv(layer.weight[:, :5]) + x.mean(),
}


@pytest.mark.parametrize("operator", NOT_COUNTED)
def test_an_operator_that_reads_a_parameter_and_is_not_counted_is_named(operator: str) -> None:
    torch.manual_seed(0)
    counts = count_complexity(Network(NOT_COUNTED[operator], nn.Linear(CHANS, 5)), SHAPE)
    assert operator in counts.uncounted


def test_what_is_free_is_not_named() -> None:
    def run(x: torch.Tensor, norm: nn.Module, table: nn.Module) -> torch.Tensor:
        x = F.interpolate(F.hardswish(norm(x)), scale_factor=2.0, mode="bilinear")
        x = F.max_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 2) + F.avg_pool2d(x, 2).mean()
        x = torch.cat([x, x.flip(3), x.roll(1, 2)], 1).softmax(1).sort(1).values
        return x.amax((2, 3)).cumsum(1) + table.weight[torch.arange(1, device=x.device)].sum()

    counts = counted(run, nn.GroupNorm(2, CHANS), nn.Embedding(3, 4))
    assert (counts.macs, counts.uncounted) == (0, ())


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "deeplab_resnet18", "torchvision/swin_t"])
def test_torch_s_own_counter_agrees(name: str) -> None:
    size = 224 if "/" in name else 64
    with torch.device("meta"):
        model = create_model(name, 10, size).eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, size, size, device="meta"))
    counts = count_complexity(model, (3, size, size))
    assert 2 * counts.macs_torch == counter.get_total_flops()
    assert counts.macs == counts.macs_torch


def published_macs(name: str) -> int:
    return count_by_shapes(lambda: create_model(name, 1000, 224), lambda model: count_macs(model, (3, 224, 224)))


# Trockman and Kolter 2022 (arXiv:2201.09792) and Tatsunami and Taki 2022 (arXiv:2205.01972); fvcore's front end misses
# ConvMixer's convolutions with padding="same" and Sequencer2D's LSTMs.
@pytest.mark.parametrize(("name", "gmacs"), [("sequencer2d_s", 8.4), ("sequencer2d_m", 11.1), ("sequencer2d_l", 16.6)])
def test_published_counts_of_recurrent_networks(name: str, gmacs: float) -> None:
    assert published_macs(f"timm/{name}") / 1e9 == pytest.approx(gmacs, rel=0.01)


def test_convmixer_is_counted_with_its_depthwise_convolutions() -> None:
    dim, depth, kernel, patch = 768, 32, 7, 7
    positions = (224 // patch) ** 2
    expected = positions * dim * (3 * patch**2 + depth * (kernel**2 + dim)) + dim * 1000
    assert published_macs("timm/convmixer_768_32") == expected
