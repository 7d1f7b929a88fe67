"""Memory of a step: its tensors at their peak, and nothing that was there before."""

import torch
from torch import nn

from bench.timing.memory import measure_peak_bytes

CPU = torch.device("cpu")
MIB = 2**20


def test_what_was_there_before_and_what_is_freed_does_not_count():
    before = torch.zeros(8 * MIB)

    def create_step():
        kept = torch.zeros(MIB)  # 4 MiB

        def step():
            torch.zeros(2 * MIB)  # 8 MiB, freed at once
            return before.sum() + kept.sum() + torch.zeros(MIB).sum()  # 4 MiB

        return step

    assert 12 * MIB <= measure_peak_bytes(create_step, CPU) < 12 * MIB + 4096


def test_training_holds_weights_gradients_momentum_and_activations():
    def create_step(train):
        network = nn.Sequential(nn.Linear(1024, 1024, bias=False), nn.ReLU(), nn.Linear(1024, 1024, bias=False))
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, foreach=False)
        images = torch.zeros(16, 1024)

        def step():
            if not train:
                with torch.inference_mode():
                    return network(images)
            optimizer.zero_grad()
            network(images).sum().backward()
            return optimizer.step()

        return step

    weights = 2 * 4 * MIB
    inference = measure_peak_bytes(lambda: create_step(False), CPU)
    training = measure_peak_bytes(lambda: create_step(True), CPU)
    assert weights < inference < 1.1 * weights
    assert 3 * weights < training < 3.6 * weights


def test_it_is_the_same_each_time():
    network = nn.Conv2d(3, 8, 3)
    images = torch.zeros(4, 3, 32, 32)
    found = [measure_peak_bytes(lambda: lambda: network(images), CPU) for _ in range(2)]
    assert found[0] == found[1] >= 4 * 8 * 30 * 30 * 4


def test_on_cuda_the_allocator_s_peak_is_reset_and_what_was_there_is_taken_off(monkeypatch):
    held, log = {"now": 500, "peak": 9000}, []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: held["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: held["peak"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: held.update(peak=held["now"]))

    def create_step():
        held["now"] += 100
        return lambda: (log.append(1), held.update(peak=max(held["peak"], held["now"] + 40)))

    assert measure_peak_bytes(create_step, torch.device("cuda", 0)) == 140
    assert len(log) == 2


def test_a_device_whose_allocator_keeps_no_peak_has_none():
    assert measure_peak_bytes(lambda: lambda: None, torch.device("mps")) is None
