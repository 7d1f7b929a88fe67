"""Checkpoints as other projects write them give those projects' logits, or a refusal: never other numbers.

The networks of other zoos are written here from their published descriptions, with random weights and statistics.
"""

import argparse
import re
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from zoo import ZooError, create_model, loaded_weights
from zoo.pretrained import Preprocessing, save_weights

State = dict[str, torch.Tensor]


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and statistics of which no two layers have the same, scaled so that the logits say something."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() > 1:
            tensor.copy_(noise * (2 / tensor[0].numel()) ** 0.5)
        elif name.endswith("running_var"):
            tensor.copy_(0.5 + noise.abs())
        else:
            tensor.copy_((1 if name.endswith("weight") else 0) + 0.1 * noise)
    return model.eval()


def logits(model: nn.Module, size: int = 32) -> torch.Tensor:
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output = model.eval()(images)
    return output["out"] if isinstance(output, dict) else output


def saved(content: Any, folder: Path) -> Path:
    torch.save(content, folder / "checkpoint.pth")
    return folder / "checkpoint.pth"


def assert_same(model: nn.Module, other: nn.Module, size: int = 32) -> None:
    expected = logits(other, size)
    assert expected.std() > 1e-3
    torch.testing.assert_close(logits(model, size), expected, atol=1e-5, rtol=1e-5)


class Residual(nn.Module):
    """A basic block, its shortcut after its convolutions, by the name of the project at hand."""

    def __init__(self, chans: int, width: int, stride: int, shortcut: str, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(chans, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        changes = stride != 1 or chans != width
        self.pad = (width - chans) // 2 if changes and not projection else 0
        self.stride, self.name = stride, shortcut
        layers = [nn.Conv2d(chans, width, 1, stride, bias=False), nn.BatchNorm2d(width)]
        setattr(self, shortcut, nn.Sequential(*(layers if changes and projection else [])))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        kept = getattr(self, self.name)(x)
        if self.pad:
            kept = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(out + kept)


class OtherResNet(nn.Module):
    def __init__(
        self, widths: tuple[int, ...], blocks: int, shortcut: str, projection: bool, head: str = "linear"
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        chans = widths[0]
        for index, width in enumerate(widths):
            stage = nn.Sequential()
            for block in range(blocks):
                stage.append(Residual(chans, width, 2 if index and not block else 1, shortcut, projection))
                chans = width
            self.add_module(f"layer{index + 1}", stage)
        self.stages, self.head = len(widths), head
        setattr(self, head, nn.Linear(chans, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for index in range(self.stages):
            x = getattr(self, f"layer{index + 1}")(x)
        return getattr(self, self.head)(x.mean((2, 3)))


def akamaster(head: str = "linear") -> nn.Module:
    return randomize(OtherResNet((16, 32, 64), 3, "shortcut", projection=False, head=head))


def kuangliu() -> nn.Module:
    return randomize(OtherResNet((64, 128, 256, 512), 2, "shortcut", projection=True))


def test_akamasters_resnet20(tmp_path: Path) -> None:
    theirs = nn.DataParallel(akamaster())
    path = saved({"state_dict": theirs.state_dict(), "best_prec1": 91.7}, tmp_path)
    model = create_model("resnet20", pretrained=path)
    assert_same(model, theirs.module)
    report = loaded_weights(model)
    assert report is not None
    assert (report.by_position, report.fresh, report.dropped) == (False, (), ())
    assert "shortcut_padding=both was taken" in report.summary()
    assert (logits(create_model("resnet20,shortcut_padding=end", pretrained=path)) - logits(theirs)).abs().max() > 0.01


def test_where_the_file_does_not_tell_the_padding_a_note_says_so(tmp_path: Path) -> None:
    theirs = akamaster(head="linear")
    path = saved(theirs.state_dict(), tmp_path)  # the names alone, which others give to networks that pad at the end
    assert "need shortcut_padding=both" in loaded_weights(create_model("resnet20", pretrained=path)).summary()
    chosen = create_model("resnet20,shortcut_padding=both", pretrained=path)
    assert_same(chosen, theirs)
    assert loaded_weights(chosen).notes == ("the head 'fc' was found under the name 'linear'",)


def test_our_own_files_remember_the_padding(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    ours = randomize(create_model("resnet20", shortcut_padding="both"))
    save_weights(ours, path, Preprocessing((0.5,), (0.5,), 32, "bilinear", 1.0))
    assert_same(create_model("resnet20", pretrained=path), ours)
    with pytest.raises(ZooError, match="trained with shortcut_padding=both"):
        create_model("resnet20,shortcut_padding=end", pretrained=path)


def test_our_own_files_remember_how_images_were_scaled(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    ours = randomize(create_model("torchvision/googlenet,transform_input=true", 10, 64))
    save_weights(ours, path, Preprocessing((0.5,), (0.5,), 64, "bilinear", 1.0))
    assert_same(create_model("torchvision/googlenet", 10, 64, pretrained=path), ours, 64)
    with pytest.raises(ZooError, match="trained with transform_input=true"):
        create_model("torchvision/googlenet,transform_input=false", 10, 64, pretrained=path)


def test_kuangliu_resnet18(tmp_path: Path) -> None:
    theirs = nn.DataParallel(kuangliu())
    model = create_model("resnet18", pretrained=saved({"net": theirs.state_dict(), "acc": 95.4, "epoch": 3}, tmp_path))
    assert_same(model, theirs.module)
    report = loaded_weights(model)
    assert report.by_position
    assert "122 tensors" in report.summary()
    assert "by position" in report.summary()


class Separable(nn.Module):
    def __init__(self, chans: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(chans, chans, 3, stride, 1, groups=chans, bias=False)
        self.bn1 = nn.BatchNorm2d(chans)
        self.conv2 = nn.Conv2d(chans, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class OtherMobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        widths = [64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024]
        halves = {1, 3, 5, 11}
        pairs = enumerate(zip([32, *widths], widths, strict=False))
        self.layers = nn.Sequential(*(Separable(*pair, 2 if index in halves else 1) for index, pair in pairs))
        self.linear = nn.Linear(1024, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.layers(F.relu(self.bn1(self.conv1(x)))).mean((2, 3)))


def test_kuangliu_mobilenet(tmp_path: Path) -> None:
    theirs = randomize(OtherMobileNet())
    path = saved({"net": theirs.state_dict()}, tmp_path)
    assert_same(create_model("mobilenet_v1,act=relu", pretrained=path), theirs)
    with pytest.raises(ZooError, match=r"act=rely is not possible.*Did you mean 'relu"):
        create_model("mobilenet_v1,act=rely")


def test_chenyaofos_resnet20_needs_projections_and_the_error_says_how(tmp_path: Path) -> None:
    theirs = randomize(OtherResNet((16, 32, 64), 3, "downsample", projection=True, head="fc"))
    path = saved(theirs.state_dict(), tmp_path)
    with pytest.raises(ZooError, match="shortcut=projection"):
        create_model("resnet20", pretrained=path)
    assert_same(create_model("resnet20,shortcut=projection", pretrained=path), theirs)


def lukemelas(name: str) -> str:
    """Names of EfficientNet-PyTorch for timm's; blocks are numbered through."""
    starts = [0, 1, 3, 5, 8, 11, 15]
    name = re.sub(r"^blocks\.(\d)\.(\d)\.", lambda m: f"_blocks.{starts[int(m[1])] + int(m[2])}.", name)
    block = re.match(r"_blocks\.(\d+)\.", name)
    if block and block[1] == "0":
        words = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    elif block:
        words = {"conv_pwl": "_project_conv", "conv_pw": "_expand_conv", "conv_dw": "_depthwise_conv"}
        words |= {"bn1": "_bn0", "bn2": "_bn1", "bn3": "_bn2"}
    else:
        words = {
            "conv_stem": "_conv_stem",
            "bn1": "_bn0",
            "conv_head": "_conv_head",
            "bn2": "_bn1",
            "classifier": "_fc",
        }
    return re.sub(r"\w+", lambda m: words.get(m[0], m[0]), name)


def test_an_efficientnet_of_lukemelas_goes_into_timms(tmp_path: Path) -> None:
    theirs = randomize(timm.create_model("tf_efficientnet_lite0", num_classes=10))
    renamed = {lukemelas(name): tensor for name, tensor in theirs.state_dict().items()}
    assert not renamed.keys() & theirs.state_dict().keys()
    model = create_model("timm/tf_efficientnet_lite0", 10, 96, pretrained=saved(renamed, tmp_path))
    assert_same(model, theirs, 96)
    assert "296 tensors" in loaded_weights(model).summary()
    assert loaded_weights(model).by_position
    five = create_model("timm/tf_efficientnet_lite0", 5, 96, pretrained=saved(renamed, tmp_path))
    assert loaded_weights(five).fresh == ("classifier.weight", "classifier.bias")
    assert set(loaded_weights(five).dropped) == {"_fc.weight", "_fc.bias"}


@pytest.mark.parametrize(("name", "size", "extra"), [("inception_v3", 96, 14), ("googlenet", 64, 20)])
def test_auxiliary_heads_are_dropped_and_official_weights_transform_their_input(
    name: str, size: int, extra: int, tmp_path: Path
) -> None:
    make = getattr(torchvision.models, name)
    theirs = randomize(make(weights=None, init_weights=False, aux_logits=True, transform_input=True))
    path = saved(theirs.state_dict(), tmp_path)
    model = create_model(f"torchvision/{name}", 1000, size, pretrained=path)
    assert_same(model, theirs, size)
    auxiliary = [key for key in theirs.state_dict() if key.lower().startswith("aux")]
    assert set(loaded_weights(model).dropped) == set(auxiliary)
    assert len(auxiliary) == extra
    assert "transform_input=true was taken" in loaded_weights(model).summary()
    theirs.transform_input = False
    assert_same(create_model(f"torchvision/{name},transform_input=false", 1000, size, pretrained=path), theirs, size)
    few = create_model(f"torchvision/{name}", 10, size, pretrained=path)
    assert few.transform_input
    assert loaded_weights(few).fresh == ("fc.weight", "fc.bias")


def test_lraspp_is_built_and_has_two_heads(tmp_path: Path) -> None:
    theirs = randomize(torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=4))
    path = saved({"model": theirs.state_dict()}, tmp_path)
    assert_same(create_model("torchvision/lraspp_mobilenet_v3_large", 4, 64, pretrained=path), theirs, 64)
    other = create_model("torchvision/lraspp_mobilenet_v3_large", 6, 64, pretrained=path)
    assert len(loaded_weights(other).fresh) == 4


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    return randomize(OtherResNet((16, 32, 64), 3, "downsample", projection=False, head="fc"))


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


WRAPPINGS: dict[str, Callable[[State], Any]] = {
    "compiled, then parallel": lambda state: prefixed(state, "_orig_mod.module."),
    "parallel twice": lambda state: prefixed(state, "module.module."),
    "three names": lambda state: {"model": {"state_dict": prefixed(state, "net.backbone.encoder.")}},
    "any name": lambda state: {"state_dict": prefixed(state, "student.cnn.")},
    "averaged model": lambda state: {"n_averaged": torch.tensor(7), **prefixed(state, "module.")},
    "torchvision's reference": lambda state: {
        "model": {name: tensor * 0 for name, tensor in state.items()},
        "model_ema": {"n_averaged": torch.tensor(7), **prefixed(state, "module.")},
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": []},
        "lr_scheduler": {"milestones": Counter({30: 1})},
        "args": argparse.Namespace(lr=0.1, output_dir=Path("out")),
        "epoch": 90,
    },
    "lightning": lambda state: {
        "state_dict": prefixed(state, "model.") | {"criterion.weight": torch.ones(10)},
        "hyper_parameters": argparse.Namespace(lr=0.1),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
        "pytorch-lightning_version": "2.0",
    },
    "numpy numbers": lambda state: {"state_dict": OrderedDict(state), "best": np.float64(0.9), "n": np.int64(3)},
    "a tensor beside": lambda state: {"net": state, "best_acc": torch.tensor(0.9)},
    "a name not seen before": lambda state: {"classifier_weights": state, "optimizer": {"x": torch.ones(2)}},
    "parts compiled": lambda state: {
        name.replace("layer2.", "layer2._orig_mod.").replace("layer3.", "layer3.module."): t
        for name, t in state.items()
    },
    "profiled": lambda state: state | {"total_ops": torch.zeros(1), "layer1.0.total_params": torch.zeros(1)},
    "double": lambda state: {name: t.double() if t.is_floating_point() else t for name, t in state.items()},
    "parameters": lambda state: {name: nn.Parameter(t, requires_grad=False) for name, t in state.items()},
    "old, without counters": lambda state: {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrappings_come_off(wrapping: str, reference: nn.Module, tmp_path: Path) -> None:
    path = saved(WRAPPINGS[wrapping](reference.state_dict()), tmp_path)
    model = create_model("resnet20,shortcut_padding=both", pretrained=path)
    assert_same(model, reference)
    assert loaded_weights(model).fresh == ()


def test_half_precision_is_loaded_with_a_note(reference: nn.Module, tmp_path: Path) -> None:
    half = {name: t.half() for name, t in reference.state_dict().items()}  # the counters too, as people do
    model = create_model("resnet20,shortcut_padding=both", pretrained=saved(half, tmp_path))
    assert loaded_weights(model).notes == ("stored as float16, loaded as float32",)
    torch.testing.assert_close(logits(model), logits(reference), atol=0.02, rtol=0.02)


def test_files_of_old_versions_of_torch_are_read(reference: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "old.pth.tar"
    content = {"state_dict": nn.DataParallel(reference).state_dict(), "args": argparse.Namespace(arch="resnet20")}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    assert_same(create_model("resnet20,shortcut_padding=both", pretrained=path), reference)


def test_a_backbone_with_its_head_beside_it(reference: nn.Module, tmp_path: Path) -> None:
    head = {name: t for name, t in reference.state_dict().items() if name.startswith("fc.")}
    body = {name: t for name, t in reference.state_dict().items() if name not in head}
    model = create_model(
        "resnet20,shortcut_padding=both", pretrained=saved(prefixed(body, "backbone.") | head, tmp_path)
    )
    assert_same(model, reference)
    assert (loaded_weights(model).fresh, loaded_weights(model).dropped) == ((), ())


TORCHVISION = {
    "resnet34": ("resnet34", 64),
    "vgg11_bn": ("vgg11_bn", 32),
    "mobilenet_v2": ("mobilenet_v2", 64),
    "torchvision/squeezenet1_1": ("squeezenet1_1", 64),
    "torchvision/densenet121": ("densenet121", 64),
    "torchvision/shufflenet_v2_x0_5": ("shufflenet_v2_x0_5", 64),
    "torchvision/googlenet": ("googlenet", 64),
    "torchvision/mnasnet0_5": ("mnasnet0_5", 64),
    "torchvision/vit_b_32": ("vit_b_32", 224),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_weights_under_names_that_say_nothing(name: str, tmp_path: Path) -> None:
    """Loaded by position where the network is one sequence of layers, refused where branches could be swapped."""
    reference, size = TORCHVISION[name]
    theirs = randomize(torchvision.models.get_model(reference, weights=None, num_classes=10, **OPTIONS.get(name, {})))
    path = saved(scramble(theirs.state_dict()), tmp_path)
    input_size = size if "/" in name else 224
    if name in SEQUENCES:
        model = create_model(name, 10, input_size, pretrained=path)
        assert loaded_weights(model).by_position
        assert_same(model, theirs, size)
    else:
        with pytest.raises(ZooError, match=r"By position they (are ambiguous|do not fit)"):
            create_model(name, 10, input_size, pretrained=path)


OPTIONS = {"torchvision/googlenet": {"aux_logits": False, "init_weights": False}}
SEQUENCES = {
    "vgg11_bn",
    "mobilenet_v2",
    "torchvision/mnasnet0_5",
    "torchvision/densenet121",
    "torchvision/squeezenet1_1",
}


def quantised(state: State) -> State:
    return {name: (t * 50).round().to(torch.int8) if t.dim() > 1 else t for name, t in state.items()}


REFUSED: dict[str, tuple[Callable[[State], Any], str]] = {
    "integers": (quantised, "quantised: 'conv1.weight' is int8"),
    "8-bit floats": (lambda s: {n: t.to(torch.float8_e4m3fn) if t.dim() > 1 else t for n, t in s.items()}, "quantised"),
    "booleans": (lambda s: s | {"fc.bias": s["fc.bias"] > 0}, "quantised: 'fc.bias' is bool"),
    "two networks under names": (lambda s: {"teacher": s, "student": s}, "several networks: 'teacher', 'student'"),
    "two networks in one": (lambda s: prefixed(s, "encoder_q.") | prefixed(s, "encoder_k."), "two networks that fit"),
    "optimizer alone": (lambda s: {"optimizer": {"state": {"a": torch.ones(2)}}}, "holds no state dict"),
    "two heads": (
        lambda s: (
            {n.replace("fc.", "head."): t for n, t in s.items()}
            | {"dist.weight": s["fc.weight"], "dist.bias": s["fc.bias"]}
        ),
        "Any of head, dist could be the head 'fc'",
    ),
}


def test_a_quantised_network_and_the_weights_of_another_network_are_refused_with_what_to_do(tmp_path: Path) -> None:
    lenet = create_model("lenet5")
    layers = torch.ao.quantization.quantize_dynamic(lenet, {nn.Linear}).state_dict()
    with pytest.raises(ZooError, match="The file is quantised"):
        create_model("lenet5", pretrained=saved(layers, tmp_path))
    with pytest.raises(ZooError, match="By position they do not fit either: layer 1") as raised:
        create_model("resnet18", pretrained=saved(lenet.state_dict(), tmp_path))
    assert "small-image stem" not in str(raised.value)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_certain_is_refused(kind: str, reference: nn.Module, tmp_path: Path) -> None:
    change, message = REFUSED[kind]
    path = saved(change(reference.state_dict()), tmp_path)
    with pytest.raises(ZooError, match=re.escape(message)) as raised:
        create_model("resnet20,shortcut_padding=both", pretrained=path)
    assert str(path) in str(raised.value) or kind == "two networks in one"


class Settings:
    """An object that reading must not build."""


def test_an_object_in_the_file_is_named_and_not_built(reference: nn.Module, tmp_path: Path) -> None:
    path = saved({"state_dict": reference.state_dict(), "config": Settings()}, tmp_path)
    with pytest.raises(ZooError, match=r"a Python object of .*Settings, which is refused"):
        create_model("resnet20", pretrained=path)
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "script.pt")
    with pytest.raises(ZooError, match="TorchScript archive"):
        create_model("resnet20", pretrained=tmp_path / "script.pt")


@pytest.mark.parametrize(
    ("head", "fresh"),
    [
        ({}, True),  # a backbone alone
        ({"linear.weight": (10, 64), "linear.bias": (10,)}, False),
        ({"fc.1.weight": (10, 64), "fc.1.bias": (10,)}, True),
        ({"projector.0.weight": (32, 64), "projector.0.bias": (32,), "projector.1.weight": (8, 32)}, True),
    ],
)
def test_a_head_is_found_by_its_shape_or_reported_as_fresh(
    head: dict[str, tuple[int, ...]], fresh: bool, reference: nn.Module, tmp_path: Path
) -> None:
    state = {name: t for name, t in reference.state_dict().items() if not name.startswith("fc.")}
    state |= {name: torch.randn(shape) for name, shape in head.items()}
    report = loaded_weights(create_model("resnet20,shortcut_padding=both", pretrained=saved(state, tmp_path)))
    assert report.fresh == (("fc.weight", "fc.bias") if fresh else ())
    assert report.dropped == (tuple(head) if fresh else ())
    assert ("left as initialised: fc.weight" in report.summary()) is fresh


def scramble(state: State) -> State:
    """Names that say nothing, in the order of the file."""
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in state))
    return {f"part{layers.index(n.rpartition('.')[0])}.{n.rpartition('.')[2]}": t for n, t in state.items()}


def test_parallel_branches_of_equal_shape_are_refused_by_position(tmp_path: Path) -> None:
    """In ResNet-50's first block the shortcut and the last convolution have the same shape."""
    theirs = randomize(torchvision.models.resnet50(num_classes=10))
    path = saved(scramble(theirs.state_dict()), tmp_path)
    with pytest.raises(ZooError, match=r"ambiguous: .*'layer1.0.(conv3|bn3)' and 'layer1.0.downsample"):
        create_model("resnet50", 10, 96, pretrained=path)
    named = {name.replace("downsample", "skip").replace("bn", "norm"): t for name, t in theirs.state_dict().items()}
    assert_same(create_model("resnet50", 10, 96, pretrained=saved(named, tmp_path)), theirs, 96)


def test_an_order_that_is_not_the_networks_is_refused(reference: nn.Module, tmp_path: Path) -> None:
    state = {name.replace("conv", "c"): t for name, t in reference.state_dict().items()}
    save_file(state, tmp_path / "renamed.safetensors")
    with pytest.raises(ZooError, match=r"sorted by name|By position they do not fit"):
        create_model("resnet20", pretrained=tmp_path / "renamed.safetensors")
    blocks = list(state)
    swapped = [
        name.replace("layer1.1", "X").replace("layer1.2", "layer1.1").replace("X", "layer1.2") for name in blocks
    ]
    path = saved({name: state[name] for name in swapped}, tmp_path)
    with pytest.raises(ZooError, match="order of the file is not that of its layers"):
        create_model("resnet20", pretrained=path)


PREFIXES = st.lists(st.sampled_from(["module", "_orig_mod", "model", "net", "backbone", "encoder"]), max_size=3)
KEYS = st.lists(st.sampled_from(["state_dict", "model", "net", "model_ema", "ema", "weights"]), max_size=2)
SCHEMES: dict[str, Callable[[str], str]] = {
    "ours": lambda name: name,
    "head": lambda name: name.replace("fc.", "linear_head."),
    "words": lambda name: name.replace("conv", "convolution").replace("bn", "norm").replace("layer", "stage"),
    "one word": lambda name: name.replace("bn2", "norm_b"),
    "blocks": lambda name: name.replace("layer", "features.block"),
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prefixes=PREFIXES,
    keys=KEYS,
    scheme=st.sampled_from([*SCHEMES, "scrambled"]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int8]),
    order=st.sampled_from(["kept", "sorted", "shuffled"]),
    random=st.randoms(use_true_random=False),
)
def test_the_same_logits_or_a_refusal(
    prefixes: list[str],
    keys: list[str],
    scheme: str,
    dtype: torch.dtype,
    order: str,
    random: Any,
    reference: nn.Module,
    tmp_path: Path,
) -> None:
    state = reference.state_dict()
    state = scramble(state) if scheme == "scrambled" else {SCHEMES[scheme](name): t for name, t in state.items()}
    state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
    state = prefixed(state, "".join(f"{prefix}." for prefix in prefixes))
    names = sorted(state) if order == "sorted" else list(state)
    if order == "shuffled":
        random.shuffle(names)
    content: Any = {name: state[name] for name in names}
    for key in keys:
        content = {key: content, "epoch": 3}
    path = saved(content, tmp_path)
    must_load = dtype != torch.int8 and (scheme in ("ours", "head") or order == "kept")
    try:
        model = create_model("resnet20,shortcut_padding=both", pretrained=path)
    except ZooError:
        assert not must_load
        return
    assert dtype != torch.int8
    assert loaded_weights(model).fresh == ()
    if dtype != torch.bfloat16:
        assert_same(model, reference)
    else:
        rounded = {n: t.to(dtype).float() if t.is_floating_point() else t for n, t in reference.state_dict().items()}
        other = OtherResNet((16, 32, 64), 3, "downsample", projection=False, head="fc")
        other.load_state_dict(rounded)
        assert_same(model, other)
