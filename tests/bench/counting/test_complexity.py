import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import register_flop_formula

from bench.counting.complexity import count_complexity, count_macs, count_params
from zoo import create_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    from fvcore.nn import FlopCountAnalysis


class Toy(nn.Module):
    """A convolution, a shared linear layer that is called twice, and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.shared = nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 2).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.conv(x))).mean((2, 3))
        out: torch.Tensor = self.frozen(self.shared(self.shared(x)))
        return out


def test_toy_is_counted_by_hand() -> None:
    counts = count_complexity(Toy(), (3, 8, 8))
    conv, linear, frozen = 27 * 4 * 64, 16, 8
    assert counts.params == (27 * 4 + 4) + 8 + (16 + 4)
    assert counts.buffers == 4 + 4 + 1
    assert counts.macs == counts.macs_torch == conv + 2 * linear + frozen
    assert counts.flops == 2 * counts.macs
    assert counts.activations == 4 * 64 + 2 * 4 + 2
    assert counts.output_shape == (2,)
    assert counts.disagreements == ()
    rows = {row.name: row for row in counts.layers}
    assert rows["conv"].output_shape == (4, 8, 8)
    assert (rows["shared"].params, rows["shared"].macs, rows["frozen"].params) == (20, 2 * linear, 0)
    assert (rows["norm"].params, rows["norm"].macs) == (8, 0)
    assert counts.operators[0] == "aten.convolution"


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", 64), ("mobilenet_v2", 32), ("lenet5", 32), ("deeplab_resnet18", 32), ("alexnet_2012", 97)],
)
def test_equals_fvcore_s_own_analysis(name: str, size: int) -> None:
    model = create_model(name, input_size=size).eval()
    theirs = FlopCountAnalysis(model, torch.zeros(1, 3, size, size))
    theirs.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    uncounted = {"batch_norm", "adaptive_avg_pool2d", "upsample_bilinear2d"}
    expected = {
        module: sum(count for operator, count in operators.items() if operator not in uncounted)
        for module, operators in theirs.by_module_and_operator().items()
    }
    ours = count_complexity(model, (3, size, size))
    assert ours.macs == expected[""] > 0
    assert {row.name: row.macs for row in ours.layers} == {row.name: expected[row.name] for row in ours.layers}


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v1_025", "lenet5_1998"])
def test_meta_counts_what_the_processor_counts(name: str) -> None:
    real = create_model(name)
    with torch.device("meta"):
        meta = create_model(name)
    counts = [count_complexity(model, (3, 32, 32)) for model in (real, meta)]
    # Operators are what a device runs; all else is the network's.
    assert replace(counts[0], operators=()) == replace(counts[1], operators=())


def test_batch_changes_nothing() -> None:
    model = create_model("resnet20")
    one, four = count_complexity(model, (3, 32, 32)), count_complexity(model, (4, 3, 32, 32))
    assert replace(one, operators=()) == replace(four, operators=())
    assert count_macs(model, (3, 32, 32)) == count_macs(model, (4, 3, 32, 32)) == one.macs


@pytest.mark.parametrize("name", ["resnet50", "xception", "timm/vit_tiny_patch16_224", "torchvision/vit_b_32"])
def test_layers_sum_to_the_total(name: str) -> None:
    size = 32 if "/" not in name else 224
    with torch.device("meta"):
        model = create_model(name, 10, size)
    counts = count_complexity(model, (3, size, size))
    assert sum(row.params for row in counts.layers) == counts.params == count_params(model)
    assert sum(row.macs for row in counts.layers) == counts.macs == count_macs(model, (3, size, size))
    assert sum(row.activations for row in counts.layers) == counts.activations
    assert counts.disagreements == ()


def test_a_published_transformer_is_counted_with_its_attention() -> None:
    with torch.device("meta"):
        model = create_model("torchvision/vit_b_16", 1000, 224)
    assert count_macs(model, (3, 224, 224)) / 1e9 == pytest.approx(17.564, rel=1e-3)
    real = nn.MultiheadAttention(8, 2, batch_first=True)  # on the processor attention runs fused

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = real

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = x.flatten(2).transpose(1, 2)
            out: torch.Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0]
            return out

    tokens, width = 16, 8
    counts = count_complexity(Attention(), (8, 4, 4))
    products, attention = 4 * tokens * width**2, 2 * tokens**2 * width
    assert counts.macs == products + attention
    if counts.macs_torch != counts.macs:  # torch's counter passes over the processor's fused attention: it is said
        assert counts.macs_torch == products
        assert "attention" in counts.disagreements[0]


def test_the_model_is_left_as_it_was() -> None:
    model = Toy().train()
    model.norm.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    count_complexity(model, (3, 8, 8))
    assert model.training
    assert model.conv.training
    assert not model.norm.training
    assert not model.conv._forward_hooks
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_operators_are_the_same_every_time_and_tell_networks_apart() -> None:
    runs = [count_complexity(create_model(name), (3, 32, 32)).operators for name in ("resnet20", "resnet20", "plain20")]
    assert runs[0] == runs[1] != runs[2]


@torch.library.custom_op("zoobench_tests::double", mutates_args=())
def double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@double.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def test_counters_that_disagree_name_the_operator() -> None:
    # torch's formulas know an operator of which fvcore's know nothing.
    if torch.ops.zoobench_tests.double not in torch.utils.flop_counter.flop_registry:

        @register_flop_formula(torch.ops.zoobench_tests.double)
        def formula(shape: torch.Size, out_shape: torch.Size | None = None, **_: object) -> int:
            return 2 * shape.numel()

    class Doubling(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return double(super().forward(x))

    counts = count_complexity(Doubling(nn.Conv2d(3, 4, 1)), (3, 8, 8))
    assert (counts.macs, counts.macs_torch) == (768, 768 + 256)
    assert counts.uncounted == ("zoobench_tests.double",)
    assert counts.disagreements == ("zoobench_tests.double: here 0, torch 256 multiply-accumulates",)


def test_input_that_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"AlexNet cannot take input of shape 3×8×8"):
        count_complexity(create_model("torchvision/alexnet", 10, 224), (3, 8, 8))


@settings(max_examples=40, deadline=None)
@given(
    groups=st.integers(1, 3),
    wide=st.integers(1, 3),
    out=st.integers(1, 3),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    size=st.integers(4, 12),
    transposed=st.booleans(),
)
def test_a_convolution_costs_its_formula(
    groups: int, wide: int, out: int, kernel: int, stride: int, size: int, transposed: bool
) -> None:
    chans, out_chans = groups * wide, groups * out
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = kind(chans, out_chans, kernel, stride, groups=groups, device="meta")
    counts = count_complexity(layer, (chans, size, size))
    side = size if transposed else counts.output_shape[-1]  # a transposed one applies its kernel at every input
    assert counts.macs == counts.macs_torch == kernel**2 * wide * out_chans * side**2
    assert counts.activations == out_chans * counts.output_shape[-1] ** 2
