"""Weights out of real files, as torchvision and timm save them, and every way in which a file does not fit."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from zoo import ZooError, create_model, model_info
from zoo.pretrained import (
    Preprocessing,
    head_names,
    load_pretrained,
    preprocessing,
    replace_head,
    save_weights,
    saved_preprocessing,
)

CLASSES = 7


def logits(model: nn.Module, size: int = 96) -> torch.Tensor:
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = model.eval()(images)
    return output["out"] if isinstance(output, dict) else output


@pytest.fixture
def resnet18() -> nn.Module:
    torch.manual_seed(1)
    model: nn.Module = torchvision.models.resnet18(num_classes=CLASSES)
    return model


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("resnet18", lambda: torchvision.models.resnet18(num_classes=CLASSES)),
        ("mobilenet_v2", lambda: torchvision.models.mobilenet_v2(num_classes=CLASSES)),
        ("mobilenet_v1", lambda: timm.create_model("mobilenetv1_100", num_classes=CLASSES)),
        ("xception", lambda: timm.create_model("legacy_xception", num_classes=CLASSES)),
        ("timm/mobilenetv1_100", lambda: timm.create_model("mobilenetv1_100", num_classes=CLASSES)),
        ("torchvision/squeezenet1_1", lambda: torchvision.models.squeezenet1_1(num_classes=CLASSES)),
    ],
)
def test_a_file_of_theirs_gives_their_logits(name: str, make: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = make()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = create_model(name, CLASSES, input_size=224, pretrained=tmp_path / "weights.pth")
    torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", ["safetensors", "state_dict", "model", "module.", "nested"])
def test_the_usual_wrappings_are_taken_off(form: str, resnet18: nn.Module, tmp_path: Path) -> None:
    state = resnet18.state_dict()
    path = tmp_path / f"file.{'safetensors' if form == 'safetensors' else 'pt'}"
    if form == "safetensors":
        save_file(state, path)
    elif form == "module.":
        torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    elif form == "nested":
        torch.save({"model": {"state_dict": state}, "optimizer": {}}, path)
    else:
        torch.save({form: state, "optimizer": {"lr": 0.1}}, path)
    ours = create_model("resnet18", CLASSES, 224, pretrained=str(path))
    torch.testing.assert_close(logits(ours), logits(resnet18), atol=1e-5, rtol=0)


def test_our_own_state_dict_loads_again(tmp_path: Path) -> None:
    saved = create_model("mobilenet_v1_025", CLASSES)  # of a family whose names are not its reference's
    torch.save(saved.state_dict(), tmp_path / "own.pt")
    loaded = create_model("mobilenet_v1_025", CLASSES, pretrained=tmp_path / "own.pt")
    assert torch.equal(logits(loaded), logits(saved))


def test_a_head_for_other_classes_stays_fresh(resnet18: nn.Module, tmp_path: Path) -> None:
    torch.save(resnet18.state_dict(), tmp_path / "seven.pt")
    model = create_model("resnet18", 4, 224)
    head = model.fc.weight.clone()
    report = load_pretrained(model, model_info("resnet18"), tmp_path / "seven.pt", (3, 224, 224))
    assert report.fresh == ("fc.weight", "fc.bias")
    assert set(report.loaded) == set(model.state_dict()) - set(report.fresh)
    assert torch.equal(model.fc.weight, head)
    assert torch.equal(model.layer4[1].conv2.weight, resnet18.layer4[1].conv2.weight)


def test_a_head_of_another_make_stays_fresh(tmp_path: Path) -> None:
    state = {key: value for key, value in create_model("vgg11").state_dict().items() if key.startswith("features")}
    for index, shape in ((0, (4, 9)), (3, (4, 4)), (6, (10, 4))):  # as torchvision's, in small
        state |= {f"classifier.{index}.weight": torch.zeros(shape), f"classifier.{index}.bias": torch.zeros(shape[0])}
    torch.save(state, tmp_path / "vgg.pt")
    report = load_pretrained(create_model("vgg11"), model_info("vgg11"), tmp_path / "vgg.pt", (3, 32, 32))
    assert report.fresh == ("classifier.weight", "classifier.bias")


def test_both_heads_of_a_segmentation_net_stay_fresh(tmp_path: Path) -> None:
    torch.save(create_model("deeplabv3_resnet50", 3, 96).state_dict(), tmp_path / "three.pt")
    model = create_model("deeplabv3_resnet50", 5, 96)
    report = load_pretrained(model, model_info("deeplabv3_resnet50"), tmp_path / "three.pt", (3, 96, 96))
    assert set(report.fresh) == {
        f"{head}.4.{part}" for head in ("classifier", "aux_classifier") for part in ("weight", "bias")
    }


def changed(state: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    state = dict(state)
    if kind in ("missing", "all"):
        del state["layer1.0.conv1.weight"]
        del state["fc.bias"]
    if kind in ("extra", "all"):
        state["layer9.0.weight"] = torch.zeros(1)
    if kind in ("wrongly shaped", "all"):
        state["layer2.0.conv1.weight"] = torch.zeros(128, 64, 5, 5)
    return state


@pytest.mark.parametrize(
    ("kind", "listed"),
    [
        ("missing", ["2 missing: layer1.0.conv1.weight, fc.bias"]),
        ("extra", ["1 extra: layer9.0.weight"]),
        ("wrongly shaped", ["layer2.0.conv1.weight is 128×64×5×5 in the file, 128×64×3×3 in the model"]),
        ("all", ["2 missing", "1 extra", "1 wrongly shaped"]),
    ],
)
def test_an_error_lists_what_does_not_fit(kind: str, listed: list[str], resnet18: nn.Module, tmp_path: Path) -> None:
    torch.save(changed(resnet18.state_dict(), kind), tmp_path / "changed.pt")
    model = create_model("resnet18", CLASSES, 224)
    before = model.conv1.weight.clone()
    with pytest.raises(ZooError) as raised:
        load_pretrained(model, model_info("resnet18"), tmp_path / "changed.pt", (3, 224, 224))
    for text in listed:
        assert text in str(raised.value)
    assert torch.equal(model.conv1.weight, before)  # nothing is loaded by halves


def test_a_head_that_reads_other_features_is_an_error(resnet18: nn.Module, tmp_path: Path) -> None:
    state = resnet18.state_dict() | {"fc.weight": torch.zeros(4, 99), "fc.bias": torch.zeros(4)}
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(ZooError, match=r"fc.weight is 4×99 in the file"):
        create_model("resnet18", CLASSES, 224, pretrained=tmp_path / "other.pt")


def test_the_small_image_stem_is_named(resnet18: nn.Module, tmp_path: Path) -> None:
    torch.save(resnet18.state_dict(), tmp_path / "canonical.pt")
    with pytest.raises(ZooError, match=r"small-image stem.*input_size above 64"):
        create_model("resnet18", CLASSES, 32, pretrained=tmp_path / "canonical.pt")


class Anything:
    """A Python object, which a file of weights must not bring along."""


def damaged(path: Path, kind: str) -> None:
    state = torchvision.models.squeezenet1_1(num_classes=2).state_dict()
    if kind == "cut short":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:-2000])
    elif kind == "noise":
        path.write_bytes(bytes(range(256)) * 10)
    elif kind == "empty":
        path.touch()
    elif kind == "an object":
        torch.save(Anything(), path)
    elif kind == "a tensor":
        torch.save(torch.zeros(3), path)
    elif kind == "no tensors":
        torch.save({"epoch": 3}, path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", ["missing", "cut short", "noise", "empty", "an object", "a tensor", "no tensors"])
def test_a_file_that_holds_no_weights_is_a_zoo_error(kind: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"file{suffix}"
    damaged(path, kind)
    with pytest.raises(ZooError) as raised:
        create_model("resnet18", 2, 224, pretrained=path)
    message = str(raised.value)
    assert str(path) in message
    assert "\n" not in message
    assert "Traceback" not in message


def test_published_weights_that_do_not_exist_are_a_zoo_error() -> None:
    with pytest.raises(ZooError, match="no published weights of 'resnet20'"):
        create_model("resnet20", pretrained=True)
    with pytest.raises(ZooError, match="no published weights"):
        preprocessing(model_info("resnet20"))


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet18", ("fc",)),
        ("mobilenet_v2", ("classifier.1",)),
        ("vgg11", ("classifier",)),
        ("deeplabv3_resnet50", ("classifier.4", "aux_classifier.4")),
        ("timm/resnet10t", ("fc",)),
        ("torchvision/squeezenet1_1", ("classifier.1",)),
        ("torchvision/vit_b_32", ("heads.head",)),
    ],
)
def test_the_head_is_found_and_replaced(name: str, head: tuple[str, ...]) -> None:
    size = 32 if "/" not in name else 224
    with torch.device("meta"):
        model = create_model(name, 10, size)
    assert head_names(model) == head
    replace_head(model, 4)
    with torch.no_grad():
        output = model.eval()(torch.empty(2, 3, size, size, device="meta"))
    assert all(each.shape[1] == 4 for each in (output.values() if isinstance(output, dict) else [output]))


def test_preprocessing_belongs_to_the_weights() -> None:
    ours, theirs = preprocessing(model_info("resnet18")), torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    assert list(ours.mean) == theirs.mean
    assert list(ours.std) == theirs.std
    assert (ours.input_size, ours.interpolation) == (224, "bilinear")
    assert ours.crop_pct == pytest.approx(224 / 256)
    inception_like = preprocessing(model_info("xception"))  # timm's: scaled to [-1, 1], its own size
    assert inception_like.mean == (0.5, 0.5, 0.5)
    assert inception_like.input_size == 299
    assert preprocessing(model_info("timm/legacy_xception")) == inception_like


OFFLINE = """
import sys
import torch
from safetensors.torch import load_file
from zoo import create_model

ours = create_model("timm/resnet10t", num_classes=7, input_size=176, pretrained=True)
stored = load_file(sys.argv[1])
kept = [name for name, value in ours.state_dict().items() if name in stored and torch.equal(value, stored[name])]
print(sorted(set(stored) - set(kept)))
"""


def test_timms_own_loading_fetches_the_weights_and_the_head_is_new(tmp_path: Path) -> None:
    """With the hub's cache on disk, laid out as the hub's client does, and no network."""
    config = timm.get_pretrained_cfg("resnet10t")
    torch.manual_seed(3)
    repository = tmp_path / "hub" / f"models--{config.hf_hub_id.replace('/', '--')}"
    revision = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    revision.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision.name)
    weights = revision / "model.safetensors"
    save_file(timm.create_model("resnet10t").state_dict(), weights)
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OFFLINE, str(weights)], env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == "['fc.bias', 'fc.weight']"


def test_saved_weights_come_back_with_their_preprocessing(resnet18: nn.Module, tmp_path: Path) -> None:
    prepared = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 96, "bilinear", 1.0)
    path = tmp_path / "new" / "weights.safetensors"
    save_weights(resnet18, path, prepared)
    assert saved_preprocessing(path) == prepared
    ours = create_model("resnet18", CLASSES, input_size=224, pretrained=path)
    torch.testing.assert_close(logits(ours), logits(resnet18), atol=1e-5, rtol=0)
    assert [file.name for file in path.parent.iterdir()] == ["weights.safetensors"]
    save_file(resnet18.state_dict(), tmp_path / "plain.safetensors")
    assert saved_preprocessing(tmp_path / "plain.safetensors") is None
    path.write_bytes(path.read_bytes()[:1000])
    assert saved_preprocessing(path) is None  # reading it as weights is then the error


def test_a_full_disk_leaves_no_half_written_weights(resnet18: nn.Module, small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        save_weights(resnet18, small_disk / "weights.safetensors", Preprocessing((0.5,), (0.5,), 32, "bilinear", 1.0))
    assert list(small_disk.iterdir()) == []
