"""Networks without memory: on the meta device, or with values where they read some."""

import numpy as np
import pytest
import torch
from torch import nn

from zoo import ZooError, create_meta_model, create_model, list_models
from zoo.meta import build_on_meta, device_of, follow_on_meta


class ReadsWhileBuilt(nn.Module):
    """Drop rates as many networks compute them, and a parameter that is allocated in the usual way."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = [rate.item() for rate in torch.linspace(0, 0.3, 4)]
        self.fc = nn.Linear(3, 2)


class FromNumpy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grid", torch.from_numpy(np.arange(3.0, dtype=np.float32)))
        self.fc = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x + self.grid)


class ReadsItsWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.scale = self.fc.weight.abs().max().item()


class ReadsWhileItRuns(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) if x.sum().item() >= 0 else x


@pytest.mark.parametrize(
    ("network", "device"), [(ReadsWhileBuilt, "meta"), (FromNumpy, "meta"), (ReadsItsWeights, "cpu")]
)
def test_only_what_reads_its_weights_is_built_on_the_cpu(network: type[nn.Module], device: str) -> None:
    model = build_on_meta(network)
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {device}
    if isinstance(model, ReadsWhileBuilt):
        assert model.rates == pytest.approx([0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize(("network", "device"), [(FromNumpy, "meta"), (ReadsWhileItRuns, "cpu")])
def test_following_goes_on_on_the_cpu_where_values_are_read(network: type[nn.Module], device: str) -> None:
    def run(model: nn.Module) -> torch.Tensor:
        output: torch.Tensor = model(torch.ones(1, 3, device=device_of(model)))
        return output

    assert follow_on_meta(network, run).device.type == device


def test_an_error_of_the_network_itself_is_raised_at_once() -> None:
    built = []

    def build() -> nn.Module:
        built.append(1)
        raise ValueError("three layers at least")

    with pytest.raises(ValueError, match="three layers"):
        build_on_meta(build)
    assert built == [1]
    with pytest.raises(ZooError, match="no architecture is named"):
        create_meta_model("resnet81")


def test_meta_models_are_those_of_create_model() -> None:
    meta, real = (create("resnet20", 7, 32, 1) for create in (create_meta_model, create_model))
    assert {n: t.shape for n, t in meta.state_dict().items()} == {n: t.shape for n, t in real.state_dict().items()}
    assert (device_of(meta).type, device_of(real).type) == ("meta", "cpu")


@pytest.mark.parametrize("name", list_models(["torchvision/regnet_[xy]_400mf", "torchvision/lraspp_*"]))
def test_torchvisions_regnets_and_lraspp_are_built_without_memory(name: str) -> None:
    model = create_meta_model(name, 7, 64).eval()
    assert device_of(model).type == "meta"
    output = model(torch.empty(1, 3, 64, 64, device="meta"))
    assert (output["out"] if isinstance(output, dict) else output).shape[:2] == (1, 7)
