"""The reference workload: what it computes is part of every baseline, so it must not change unnoticed."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from bench.measure.reference import REFERENCE, create_step


class Watch(TorchDispatchMode):
    """Keeps every operator with what it gives."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.seen.append((function.overloadpacket.__name__, result))
        return result


def test_the_work_is_what_its_name_stands_for():
    """Who changes the work gives it another name: baselines of the old one must be refused."""
    step = create_step(torch.device("cpu"))
    with FlopCounterMode(display=False) as counter, Watch() as watch:
        step()
    assert REFERENCE == "convolutions-and-products-1"
    names = [name for name, _ in watch.seen]
    assert len(names) == 11
    assert names.count("relu") == names.count("add") == 3
    assert [tuple(result.shape) for _, result in watch.seen] == [(4, 64, 16, 16)] * 9 + [(256, 256)] * 2
    assert counter.get_total_flops() // 2 == 3 * 4 * 9 * 64 * 64 * 16 * 16 + 2 * 256**3
    assert {result.dtype for _, result in watch.seen} == {torch.float32}


def test_its_numbers_are_of_ordinary_size():
    """Denormal numbers, or such that grow from step to step, would make it slower than it is."""
    step = create_step(torch.device("cpu"))
    for _ in range(3):
        with Watch() as watch:
            step()
    for _, result in watch.seen:
        values = result[result != 0].abs()
        assert values.min() > 1e-12
        assert values.max() < 1e3
