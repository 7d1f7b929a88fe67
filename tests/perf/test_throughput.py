"""Our timing loop against a bare one under torch.utils.benchmark: the same step, measured in turn, on one thread."""

import statistics

import pytest
import torch
from perf_ratio import paired_ratio
from torch.utils.benchmark import Timer

import zoo
from bench.config import MeasureConfig
from bench.timing.clock import create_clock
from bench.timing.throughput import measure_throughput

BATCH_SIZE, PAIRS = 16, 100
"""Many short turns: what slows the machine down for a moment then hits both alike."""
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CONFIG = MeasureConfig(seconds=0.15, block_seconds=0.01, precision=1e-9)


@pytest.fixture(autouse=True)
def one_thread():
    """Gives the most repeatable times."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def create_step(name: str, mode: str):
    """One step of inference, or of training by hand: forward, loss, backward, step."""
    torch.manual_seed(0)
    model = zoo.create_model(name).to(DEVICE).to(memory_format=torch.channels_last).train(mode == "train")
    images = torch.randn(BATCH_SIZE, 3, 32, 32, device=DEVICE).to(memory_format=torch.channels_last)
    targets = torch.randint(0, 10, (BATCH_SIZE,), device=DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, fused=True)

    def infer() -> object:
        with torch.inference_mode():
            return model(images)

    def train() -> object:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(model(images), targets)
        loss.backward()
        optimizer.step()
        return loss

    return infer if mode == "infer" else train


@pytest.mark.parametrize("mode", ["infer", "train"])
@pytest.mark.parametrize("name", ["lenet5", "resnet20"])
def test_our_loop_agrees_with_torch_s_timer(benchmark, name, mode):
    """Aim: within 2%."""
    step, clock = create_step(name, mode), create_clock(DEVICE)
    timer = Timer("step()", globals={"step": step}, num_threads=1)
    measured = measure_throughput(step, BATCH_SIZE, CONFIG, clock)
    steps, blocks = measured.steps_per_block, sum(map(len, measured.block_seconds))

    def ours() -> float:
        return measure_throughput(step, BATCH_SIZE, CONFIG, clock).img_per_s

    def bare() -> float:
        return BATCH_SIZE / statistics.median(timer.timeit(steps).mean for _ in range(blocks))

    bare()
    ratio = benchmark.pedantic(paired_ratio, args=(ours, bare, PAIRS), rounds=1)
    benchmark.extra_info |= vars(ratio)
    print(f"\n{name}, {mode}: our loop / torch.utils.benchmark = {ratio}")
    assert ratio.low > 0
