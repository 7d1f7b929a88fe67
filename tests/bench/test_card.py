import json
import resource
import subprocess
import sys

import pytest
from rich.console import Console

from bench.card import Card, describe, list_rows, render_card
from zoo import UnknownModelError, ZooError, list_models, model_info

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
        "11,689,512 parameters (equal)",
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


def test_most_expensive_layers_are_the_three_dearest() -> None:
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
from bench.card import describe
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
