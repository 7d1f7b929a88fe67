import itertools

import numpy as np
import pytest
import torch
from torch import nn

from bench.timing import probes
from bench.timing.probes import CHANNELS, IMAGES, MAPS, measure_probes, save_probes
from bench.timing.setting import Setting
from zoo import create_model

SETTING = Setting(torch.device("cpu"), 32)


def _prepare(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 255


def _images(count: int = 12, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["lenet5", "simple_cnn", "resnet18", "mobilenet_v1"])
def test_every_probe_of_a_network_of_the_zoo(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name)
    images, labels = _images(), torch.arange(12) % 10
    found = measure_probes(model, images, labels, _prepare, SETTING, repeats=2)
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    np.testing.assert_array_equal(found["kernels"], first.weight.detach().numpy()[:64])
    assert 3 <= len(found["map_layers"]) <= MAPS
    for k in range(len(found["map_layers"])):
        assert found[f"maps_{k}"].shape[0] == IMAGES
        assert found[f"maps_{k}"].shape[1] <= CHANNELS
    np.testing.assert_array_equal(found["map_images"], images[:IMAGES].numpy())
    heat = found["cam_heat"].astype(float)
    assert ((heat >= 0) & (heat <= 1)).all()
    with torch.no_grad():
        scores = model.eval()(_prepare(images)).softmax(1)
    wrong = found["cam_label"] != found["cam_predicted"]
    assert wrong.sum() == min(IMAGES, (scores.argmax(1) != labels).sum())
    assert (~wrong).sum() == min(IMAGES, (scores.argmax(1) == labels).sum())
    assert len(found["layer_names"]) == len(found["layer_seconds"])
    assert (found["layer_seconds"] > 0).all()
    assert set(found["layer_names"]) <= {name for name, _ in model.named_modules()}


class _Corner(nn.Module):
    """Class 1 where the upper left corner is bright: the network's reason is known."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        with torch.no_grad():
            self.conv.weight[0], self.conv.weight[1] = 0.1, 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.relu(self.conv(x))
        return torch.stack([maps[:, 0].mean((1, 2)), maps[:, 1, :4, :4].mean((1, 2))], 1)


def test_grad_cam_shows_the_reason_where_it_is() -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    images[:, :, :4, :4] = 255
    found = measure_probes(_Corner(), images, torch.tensor([1, 0]), _prepare, SETTING, repeats=1)
    assert found["cam_predicted"].tolist() == [1, 1]
    assert found["cam_label"].tolist() == [1, 0]
    np.testing.assert_array_equal(found["cam_heat"][0] > 0.5, (images[0, 0] > 0).numpy())


def test_feature_maps_are_those_of_the_forward_pass() -> None:
    model = _Corner()
    images = _images(4, 8)
    found = measure_probes(model, images, torch.zeros(4, dtype=torch.long), _prepare, SETTING, repeats=1)
    assert found["map_layers"].tolist() == ["conv", "relu"]
    expected = model.conv(_prepare(images)).relu().detach().numpy()
    np.testing.assert_allclose(found["maps_1"], expected, atol=2e-3)


def test_the_network_is_left_as_it_was() -> None:
    model = create_model("simple_cnn").train()
    next(model.children()).eval()
    modes = [module.training for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    measure_probes(model, _images(), torch.zeros(12, dtype=torch.long), _prepare, SETTING, repeats=1)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_slow_layer_is_seen_to_be_slow() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 256, 5, padding=2), nn.Flatten(), nn.LazyLinear(10))
    model(torch.zeros(1, 3, 16, 16))
    found = measure_probes(model, _images(8, 16), torch.zeros(8, dtype=torch.long), _prepare, SETTING, repeats=5)
    seconds = dict(zip(found["layer_names"].tolist(), found["layer_seconds"].tolist(), strict=True))
    assert seconds["1"] > seconds["0"]


class Scripted:
    """Marks of a clock on which the calls of a pass take 10, 20 and 1 ms, whatever happens."""

    def __init__(self) -> None:
        self.now, self.marks, self.takes = 0.0, 0, itertools.cycle((0.010, 0.020, 0.001))

    def mark(self) -> float:
        self.marks += 1
        if self.marks % 2 == 0:
            self.now += next(self.takes)
        return self.now

    def seconds(self, begin: float, end: float) -> float:
        return end - begin


def test_a_layer_that_is_called_several_times_takes_the_sum_of_its_calls(monkeypatch) -> None:
    layer = nn.Conv2d(3, 3, 1)
    monkeypatch.setattr(probes, "create_marks", lambda device: Scripted())
    found = probes._layer_times(nn.Sequential(layer, layer, layer), torch.zeros(1, 3, 4, 4), SETTING, repeats=4)
    assert found["layer_names"].tolist() == ["0"]
    assert found["layer_seconds"] == pytest.approx([0.031])


def test_a_network_without_maps_has_what_it_has() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 10))
    found = measure_probes(model, _images(4, 8), torch.zeros(4, dtype=torch.long), _prepare, SETTING, repeats=1)
    assert set(found) == {"layer_names", "layer_seconds"}


def test_saved_arrays_are_read_back_without_pickle(tmp_path) -> None:
    found = measure_probes(_Corner(), _images(4, 8), torch.zeros(4, dtype=torch.long), _prepare, SETTING, repeats=1)
    path = tmp_path / "runs" / "one.probes.npz"
    save_probes(found, str(path))
    with np.load(path, allow_pickle=False) as read:
        assert set(read) == set(found)
        np.testing.assert_array_equal(read["cam_heat"], found["cam_heat"])
    assert [p.name for p in path.parent.iterdir()] == ["one.probes.npz"]


@pytest.mark.parametrize(
    ("options", "seen"),
    [({}, torch.float32), ({"autocast": True}, torch.bfloat16), ({"dtype": "bfloat16"}, torch.bfloat16)],
)
def test_layers_are_timed_in_the_precision_of_the_setting(options, seen) -> None:
    computed = []

    class Spy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            computed.append(x.dtype)
            return x

    model = nn.Sequential(nn.Conv2d(3, 4, 1), Spy(), nn.Flatten())
    setting = Setting(torch.device("cpu"), 8, **options)
    measure_probes(model, _images(4, 8), torch.zeros(4, dtype=torch.long), _prepare, setting, repeats=2)
    assert computed[-3:] == [seen] * 3
    assert computed[0] == torch.float32  # what is shown of the network is in full precision
