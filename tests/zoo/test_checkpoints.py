"""Whatever wraps, renames or reorders a checkpoint: the logits of the network in it, or a refusal."""

import argparse
import re
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from other_networks import OtherResNet, State, assert_same, logits, randomize, saved, scramble
from safetensors.torch import save_file
from torch import nn

from zoo import ZooError, create_model, loaded_weights
from zoo.pretrained import Preprocessing, save_weights


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
