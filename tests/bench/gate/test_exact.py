"""The exact gates: any change of what is computed is found, with its place; none is found where nothing changed."""

from dataclasses import asdict

import pytest
import torch
from torch import nn

import zoo
from bench.counting.complexity import count_complexity
from bench.gate.exact import Counts, find_differences


class Net(nn.Module):
    def __init__(self, chans=8, extra=False, name="conv"):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        setattr(self, name, nn.Conv2d(8, chans, 3, padding=1, bias=False))
        self.name = name
        self.extra = nn.Conv2d(chans, chans, 3, padding=1, bias=False) if extra else None
        self.fc = nn.Linear(chans, 10)
        self.act, self.copy = torch.relu, False

    def forward(self, x):
        x = getattr(self, self.name)(self.act(self.stem(x)))
        if self.extra is not None:
            x = self.extra(x)
        if self.copy:
            x = x.clone().permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2).repeat(1, 1, 1, 1)
        return self.fc(x.mean((2, 3)))


def counts(network):
    return Counts.of(asdict(count_complexity(network, (3, 16, 16))))


def differences_to(after, before=None):
    return [str(difference) for difference in find_differences(counts(before or Net()), counts(after))]


def test_nothing_differs_between_a_network_and_itself():
    assert differences_to(Net()) == []
    for name in ("lenet5", "mobilenet_v1"):
        assert differences_to(zoo.create_model(name), zoo.create_model(name)) == []


def test_an_extra_convolution_is_found_with_its_layer():
    differences = differences_to(Net(extra=True))
    assert differences[0] == "params 890 → 1,466"  # 3·3·8·8 more
    assert "extra: layer nothing → Conv2d" in differences
    assert any("operator" in text and "aten.convolution" in text for text in differences)


def test_a_wider_layer_is_found_before_those_behind_it():
    differences = differences_to(Net(chans=9))
    layers = [text for text in differences if ":" in text]
    assert layers[0] == "conv: params 576 → 648"
    assert any(text.startswith("conv: output_shape 8×16×16 → 9×16×16") for text in layers)


def test_another_activation_is_found_though_all_counts_are_equal():
    other = Net()
    other.act = torch.nn.functional.gelu
    assert differences_to(other) == ["operator 2 of 5 aten.relu → aten.gelu"]


def test_a_frozen_layer_is_a_change():
    frozen = Net()
    frozen.conv.requires_grad_(False)
    assert any(text.startswith("params") for text in differences_to(frozen))


@pytest.mark.parametrize("what", ["a copy", "another name"])
def test_what_computes_the_same_is_left_to_the_timing(what):
    other = Net(name="renamed" if what == "another name" else "conv")
    other.copy = what == "a copy"
    assert differences_to(other) == []


def test_counts_that_were_stored_are_equal_to_those_that_were_not():
    """Lists and tuples are the same to JSON; a difference must not come from having been in a file."""
    before = counts(Net())
    assert find_differences(Counts.model_validate_json(before.model_dump_json()), before) == ()
    assert find_differences(None, before) == ()
