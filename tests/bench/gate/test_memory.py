"""Peak memory of a step, to the last byte, and the gate's verdict on it."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.gate.baselines import Entry, load_baseline
from bench.gate.compare import compare, save
from bench.gate.memory import Memory, measure_peak_bytes
from bench.gate.result import EXIT_CODES, CompareOptions
from bench.gate.summary import comparison_to_dict, render_markdown
from bench.gate.timing.subject import Setting

CPU = torch.device("cpu")
MAP = 2 * 8 * 16 * 16 * 4
"""Bytes of the maps of `network`: two images, eight channels, 16×16 pixels, float32."""
ROOT = Path(__file__).parents[3]


def peak(module, mode="infer", images=None):
    images = torch.randn(2, 8, 16, 16) if images is None else images

    def infer():
        with torch.inference_mode():
            module(images)

    def train():
        module.zero_grad()
        module(images).square().mean().backward()

    return measure_peak_bytes(lambda: infer if mode == "infer" else train, CPU)


def weights(module):
    return sum(each.numel() * each.element_size() for each in module.parameters())


def test_an_activation_out_of_place_takes_exactly_one_more_map():
    inside, outside = (nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=at)) for at in (True, False))
    assert peak(inside) == weights(inside) + 2 * MAP  # images, and the convolution's output
    assert peak(outside) == weights(outside) + 3 * MAP


def test_a_view_is_no_memory_of_its_own():
    class Views(nn.Module):
        def forward(self, x):
            return x.flatten(1).view(x.shape).transpose(0, 1).relu()

    assert peak(Views()) == 2 * MAP


class Chain(nn.Module):
    """Sigmoids, of which backward needs the outputs; ``kept`` has it need a copy of each as well."""

    def __init__(self, kept):
        super().__init__()
        self.kept, self.scale = kept, nn.Parameter(torch.ones(1))

    def forward(self, x):
        copies = []
        for _ in range(4):
            x = (self.scale * x).sigmoid()
            if self.kept:
                copies.append(x.clone())
        return x + sum((each * each).sum() for each in copies) if self.kept else x


def test_activations_that_are_kept_in_training_are_found():
    lean, fat = (peak(Chain(kept), "train") for kept in (False, True))
    assert fat >= lean + 3 * MAP
    assert peak(Chain(False), "train") == lean
    assert peak(Chain(False), "infer") < lean - 2 * MAP  # without gradients nothing is kept


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_equal_code_takes_equally_many_bytes(mode):
    from zoo import create_model

    images = torch.randn(2, 3, 32, 32)
    found = {peak(create_model("resnet20"), mode, images) for _ in range(3)}
    assert len(found) == 1
    assert found.pop() > weights(create_model("resnet20"))


def test_what_is_left_over_from_the_first_step_does_not_count():
    first = []

    def create():
        def step():
            with torch.inference_mode():
                (torch.zeros(1000) if first else torch.zeros(10_000)).relu()
            first.append(True)

        return step

    assert measure_peak_bytes(create, CPU) == 2 * 4000


def test_a_device_that_cannot_be_observed_has_no_peak():
    assert measure_peak_bytes(lambda: lambda: None, torch.device("meta")) is None


def test_growth_is_judged_by_the_tolerance():
    assert Memory(1000, 1051).grew(0.05)
    assert not Memory(1000, 1050).grew(0.05)
    assert not Memory(1000, 500).grew(0.05)
    assert Memory.of(None, 5) is None


def test_a_revision_that_needs_more_memory_fails_the_gate_with_16(repository, monkeypatch, zoobench_here):
    """Copies are no operators for the exact gates, so that memory alone tells."""
    repository.replace(
        "zoo/__init__.py",
        "        return self.fc(",
        "        kept = [x.clone() for _ in range(2)]\n        return self.fc(",
    )
    monkeypatch.chdir(repository.path)
    arguments = "--models", "small", "--budget", "1", "--input-size", "64", "--batch-size", "8"
    done = zoobench_here("compare", "git:HEAD", ".", *arguments, "--json", "--fail-on", "memory")
    assert done.returncode == EXIT_CODES["memory"] == 16, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    before, after = result["peak_memory_bytes"]
    images = 8 * 64 * 64 * 4
    assert after - before == images * (2 * 3 + 8) - images * 8  # the copies, where before there were two activations
    done = zoobench_here("compare", "git:HEAD", "git:HEAD", *arguments, "--fail-on", "memory")
    assert done.returncode == 0
    assert "equal" in done.stdout


def test_a_baseline_keeps_the_peak_and_one_without_is_still_read(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(repository.path)
    options = CompareOptions(("small",), Setting(input_size=16), budget_seconds=1)
    saved = save("before", "git:HEAD", options, tmp_path)
    kept = saved.baseline.entries["small"].peak_memory_bytes
    assert kept > 0
    repository.replace(
        "zoo/__init__.py",
        "        return self.fc(",
        "        kept = [x.clone() for _ in range(9)]\n        return self.fc(",
    )
    comparison = compare(load_baseline(tmp_path, "before"), ".", dataclasses.replace(options, models=()))
    (result,) = comparison.results
    assert result.memory.before == kept
    assert "memory" in comparison.failures()
    assert "peak memory of a step" in render_markdown(comparison)
    assert comparison_to_dict(comparison)["results"][0]["memory_change"] > 0.5
    content = json.loads((tmp_path / "before.json").read_text())
    del content["figures"]["small"]["peak_memory_bytes"]  # as the first files are
    (tmp_path / "before.json").write_text(json.dumps(content))
    old = load_baseline(tmp_path, "before")
    assert isinstance(old.entries["small"], Entry)
    comparison = compare(old, ".", dataclasses.replace(options, models=()))
    assert comparison.results[0].memory is None
    assert "memory" not in comparison.failures()
