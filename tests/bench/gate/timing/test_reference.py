"""The reference workload: it is the network's own work, and it must not change unnoticed."""

import hashlib
import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import zoo
from bench.gate.timing.reference import OPERATORS, REFERENCE, WorkloadError, check_workload
from bench.gate.timing.replay import create_step, record
from zoo.registry import representative_models

CPU = torch.device("cpu")


class Watch(TorchDispatchMode):
    """Keeps the shapes that operators give, and the range of the numbers' sizes."""

    def __init__(self):
        super().__init__()
        self.shapes, self.sizes = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.shapes.append((function.overloadpacket.__name__, tuple(getattr(result, "shape", ()))))
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            sizes = result[result != 0].abs()
            self.sizes += [sizes.min().item(), sizes.max().item()] if sizes.numel() else []
        return result


def step_of(name, mode, images=2):
    network = zoo.create_model(name).train(mode == "train")
    x = torch.randn(images, 3, 32, 32)

    def infer():
        with torch.inference_mode():
            network(x)

    def train():
        network(x).float().mean().backward()

    return infer if mode == "infer" else train


def flops(step):
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def recorded(step):
    """As it comes back from a file."""
    return json.loads(json.dumps(record(step, OPERATORS)))


@pytest.mark.parametrize("name", representative_models())
def test_it_is_as_much_work_as_the_network_in_numbers_of_ordinary_size(name):
    """Denormal numbers, infinities and such that grow from step to step would make it slower or faster than it is."""
    step = step_of(name, "infer")
    workload = recorded(step)
    replay = create_step(CPU, "infer", workload)
    assert flops(replay) == flops(step) > 0
    for _ in range(2):
        with Watch() as watch:
            replay()
        assert min(watch.sizes) > 1e-30
        assert max(watch.sizes) < 1e20


@pytest.mark.parametrize("name", ["lenet5", "alexnet", "resnet20", "mobilenet_v1_025"])
def test_a_step_of_training_is_as_much_work_too(name):
    """Forward, backward, and nothing of the backward pass twice."""
    step = step_of(name, "train")
    workload = recorded(step)
    assert flops(create_step(CPU, "train", workload)) == pytest.approx(flops(step), rel=0.03)
    assert not any("backward" in operator["name"] for operator in workload["operators"])


def test_each_call_has_weights_of_its_own():
    """Else large ones would stay in the cache, which those of the network do not."""
    thrice = torch.nn.Sequential(*[torch.nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)])
    x = torch.randn(1, 8, 4, 4)
    workload = record(lambda: thrice(x).sum().backward(), OPERATORS)
    assert [operator["arguments"][0].get("back") for operator in workload["operators"]] == [None, 1]
    assert workload["order"] == [0, 1, 1]
    seen = set()

    class Weights(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.__name__ == "convolution.default":
                seen.add(args[1].data_ptr())
            return function(*args, **(kwargs or {}))

    step = create_step(CPU, "infer", workload)
    with Weights():
        step()
    assert len(seen) == 3


def test_the_layout_and_the_type_are_the_networks():
    network = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            network(x).relu_()

    convolution, relu = record(step, OPERATORS)["operators"]
    assert relu["name"] == "relu.default"  # in place or not is the same
    for tensor in (*convolution["arguments"][:2], *relu["arguments"]):
        assert tensor["dtype"] == "bfloat16"
        assert tensor["stride"][1] == 1


def test_the_work_is_what_its_name_stands_for():
    """Who changes what is recorded or replayed gives it another name: baselines of the old one must be refused."""
    step = step_of("lenet5", "infer")
    workload = recorded(step)
    assert REFERENCE == "operators-1"
    with Watch() as watch:
        create_step(CPU, "infer", workload)()
    content = json.dumps([workload, watch.shapes], sort_keys=True).encode()
    assert hashlib.sha256(content).hexdigest()[:16] == "f745a6bcf9429160"


@pytest.mark.parametrize(
    ("workload", "shown"),
    [
        ({"operators": [{"name": "from_file.default", "arguments": ["/etc/passwd"]}], "order": [0]}, "from_file"),
        ({"operators": [{"name": "relu.out", "arguments": []}], "order": []}, "relu.out"),
        ({"operators": [{"name": "relu.default", "arguments": []}], "order": [1]}, "IndexError"),
        ({"operators": [{"name": "relu.default", "arguments": []}], "order": [-1]}, "negative"),
        ({"operators": [{"arguments": []}], "order": []}, "KeyError"),
        ({"operators": 3, "order": []}, "TypeError"),
    ],
)
def test_a_file_cannot_make_it_call_anything_else(workload, shown):
    with pytest.raises(WorkloadError, match=shown):
        check_workload(workload)
