import json
import resource
import subprocess
import sys
from dataclasses import fields, replace

import pytest
import torch
from rich.console import Console
from torch import nn

from bench.cli.card_table import render_card
from bench.counting.card import Card, describe, list_rows
from bench.counting.complexity import Layer, count_complexity, count_macs
from bench.counting.shapes import count_by_shapes
from zoo import UnknownModelError, ZooError, create_model, list_models, model_info

MODELS = list_models()


def rendered(card: Card, depth: int = 1) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(render_card(card, depth))
    return console.export_text()


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_has_a_card(name: str) -> None:
    info = model_info(name)
    card = describe(name)
    assert (card.input_size, card.num_classes) == (info.input_size, info.num_classes)
    assert card.disagreements == ()
    assert card.macs == card.macs_torch > 0
    assert sum(layer.params for layer in card.layers) == card.params
    assert sum(layer.macs_share for layer in card.layers) == pytest.approx(1)
    assert card.receptive_field >= 1
    assert card.receptive_field_whole_input == any(layer.whole_input for layer in card.layers)
    for depth in (1, 2, 3):
        assert sum(stage.macs for stage in card.stages(depth)) == card.macs
    if card.published is not None and card.published.params is not None:
        assert card.published.counted_params == card.published.params
    plain = json.loads(json.dumps(card.to_dict()))
    assert {"params", "macs", "flops", "activations", "receptive_field", "layers", "stages", "paper", "year"} <= set(
        plain
    )
    assert {"published", "small_image", "most_expensive"} <= set(plain)
    assert plain["flops"] == 2 * plain["macs"]
    assert name in rendered(card)


def test_a_card_shows_what_is_known() -> None:
    text = rendered(describe("resnet18", 32, 10))
    for part in (
        "He et al. 2015",
        "11,173,962",
        "11,689,512 parameters (same as counted)",
        "109 pixels, stride 8",
        "3×3 convolution",
    ):
        assert part in text
    assert "layer1.0.conv1" in rendered(describe("resnet18", 32, 10), depth=3)


def test_stages_fold_by_depth() -> None:
    card = describe("resnet18", 32, 10)
    names = [stage.name for stage in card.stages(1)]
    assert names == ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc"]
    layer4 = card.stages(1)[names.index("layer4")]
    assert layer4.params == 8_393_728
    assert (layer4.receptive_field, layer4.receptive_field_stride, layer4.output_shape) == (109, 8, (512, 4, 4))
    assert [stage.name for stage in card.stages(2)][4:6] == ["layer1.0", "layer1.1"]
    assert len(card.to_dict(depth=9)["stages"]) == len(card.layers)


def test_most_expensive_layers_have_the_most_macs() -> None:
    card = describe("alexnet")
    macs = sorted((layer.macs for layer in card.layers), reverse=True)
    assert [layer.macs for layer in card.most_expensive()] == macs[:3]


@pytest.mark.parametrize("name", ["timm/efficientnet_b0", "torchvision/vit_b_16", "torchvision/deeplabv3_resnet50"])
def test_models_of_others_have_cards(name: str) -> None:
    card = describe(name)
    assert name in rendered(card)
    if card.published is not None:
        assert card.published.params == card.params
        assert card.published.gmacs == pytest.approx(card.macs / 1e9, rel=1e-3)


def test_options_of_the_builder_make_another_card() -> None:
    plain, narrow = describe("resnet20"), describe("resnet20", shortcut="projection")
    assert plain.params < narrow.params
    assert describe("resnet20,shortcut=projection").params == narrow.params
    with pytest.raises(ZooError, match="takes no argument"):
        describe("resnet20", shotcut="projection")


@pytest.mark.parametrize("name", ["torchvision/regnet_y_400mf", "torchvision/lraspp_mobilenet_v3_large"])
def test_networks_that_read_values_while_they_are_built_have_cards(name: str) -> None:
    card = describe(name)
    assert card.published is not None
    assert card.published.params == card.params
    assert card.published.gmacs == pytest.approx(card.macs / 1e9, rel=2e-3)


class ReadsValues(nn.Module):
    """Not for the meta device: the constructor reads a tensor's values, and so does the forward pass."""

    def __init__(self, in_forward: bool) -> None:
        super().__init__()
        self.in_forward = in_forward
        widths = [int(each.item()) for each in torch.linspace(4, 8, 2)]
        self.first, self.second = nn.Conv2d(3, widths[0], 3), nn.Conv2d(widths[0], widths[1], 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(x))
        return x * float(x.mean()) if self.in_forward else x


@pytest.mark.parametrize("in_forward", [False, True])
def test_networks_that_read_values_are_counted(in_forward: bool) -> None:
    devices = []

    def count(model: nn.Module) -> int:
        macs = count_macs(model, (3, 8, 8))
        devices.append(next(model.parameters()).device.type)
        return macs

    macs = count_by_shapes(lambda: ReadsValues(in_forward), count)
    assert macs == 36 * 27 * 4 + 16 * 36 * 8
    assert devices == (["cpu"] if in_forward else ["meta"])


def test_operators_that_are_not_counted_stand_on_the_card() -> None:
    card = describe("lenet5")
    assert card.uncounted == ()
    assert "aten._fft_c2c" in rendered(replace(card, uncounted=("aten._fft_c2c",)))
    unknown = replace(card, receptive_field=None, receptive_field_stride=None)
    assert "not known" in rendered(unknown)


def test_layers_are_those_of_the_counts() -> None:
    model = create_model("resnet20")
    layers = count_complexity(model, (3, 32, 32)).layers
    names = [each.name for each in fields(Layer)]
    card = describe("resnet20", 32, 10)
    assert [[getattr(each, name) for name in names] for each in card.layers] == [
        [getattr(each, name) for name in names] for each in layers
    ]


def test_what_cannot_be_described_is_named() -> None:
    with pytest.raises(UnknownModelError, match="resnet81"):
        describe("resnet81")
    with pytest.raises(ZooError, match="cannot take 3×32×32 images"):
        describe("torchvision/alexnet", 32, 10)


def test_the_list_holds_the_counts() -> None:
    rows = {row["name"]: row for row in list_rows()}
    assert set(rows) == set(MODELS)
    json.dumps(list(rows.values()))
    assert (rows["resnet18"]["params"], rows["resnet18"]["canonical_params"]) == (11_173_962, 11_689_512)
    assert rows["resnet18"]["macs"] == pytest.approx(1e9 * rows["resnet18"]["gmacs"])
    assert rows["resnet18"]["gmacs"] == pytest.approx(0.5554, abs=1e-4)
    assert rows["resnet18"]["canonical_gmacs"] == pytest.approx(1.814, abs=1e-3)
    for row in rows.values():
        if row["published_params"] is not None:
            assert row["canonical_params"] == row["published_params"], row["name"]


def test_the_list_of_others_counts_nothing() -> None:
    (row,) = list_rows("torchvision/resnet50")
    assert (row["published_params"], row["params"]) == (25_557_032, None)


DESCRIBE_LARGE = """
import resource
from bench.counting.card import describe
describe("resnet18")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in ("vgg19", "deeplabv3_resnet101", "resnet152"):
    describe(name)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.skipif(not hasattr(resource, "RUSAGE_SELF"), reason="no memory accounting")
def test_no_real_weights_are_allocated() -> None:
    done = subprocess.run([sys.executable, "-c", DESCRIBE_LARGE], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100e6  # their weights are 1.06e9 bytes
