"""Shapes by rule are those of torch's own meta kernels, and nothing slow is imported for them."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shallow import shallow_models
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench.counting.card import LIST_SETTING
from bench.counting.complexity import count_complexity, count_params
from bench.counting.shapes import _RULES, ShapesOnly, WithoutFilling
from zoo import create_model

sides = st.integers(1, 9)
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


def on_meta(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta")


def outcome(function, *tensors):
    try:
        return function(*tensors)
    except RuntimeError as error:
        return str(error)


def assert_same(function, *tensors) -> None:
    theirs = outcome(function, *tensors)
    with ShapesOnly():
        ours = outcome(function, *tensors)
    if isinstance(theirs, str):
        assert ours == theirs
    else:
        assert (ours.shape, ours.dtype, ours.device) == (theirs.shape, theirs.dtype, theirs.device)


@settings(deadline=None)  # torch's kernels import much on first use
@given(sides, sides, pairs, pairs, pairs, pairs, st.sampled_from([(4, 6, 1), (4, 4, 4), (4, 6, 2), (3, 6, 1)]))
def test_convolutions(height, width, kernel, stride, padding, dilation, channels) -> None:
    given_chans, out_chans, groups = channels
    weight = on_meta(out_chans, 4 // groups, *kernel)
    assert_same(
        lambda x, w: nn.functional.conv2d(x, w, None, stride, padding, dilation, groups),
        on_meta(2, given_chans, height, width), weight,
    )  # fmt: skip


@settings(deadline=None)  # torch's kernels import much on first use
@given(sides, sides, pairs, pairs, st.booleans())
def test_pooling(height, width, kernel, stride, ceil) -> None:
    image = on_meta(2, 3, height, width)
    assert_same(lambda x: nn.functional.max_pool2d(x, kernel, stride, 0, 1, ceil), image)
    assert_same(lambda x: nn.functional.avg_pool2d(x, kernel, stride, 0, ceil), image)
    assert_same(lambda x: nn.functional.max_pool2d(x, kernel), image)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: nn.functional.adaptive_avg_pool2d(x, (2, 3)), lambda x: x.mean((-1, -2)), lambda x: x.sum([2]),
        lambda x: x.mean((-1, -2), keepdim=True), lambda x: torch.cat([x, x], 1), lambda x: torch.cat([x, x[:1]], 0),
        lambda x: torch.cat([x, x[:, :2]], 0), lambda x: nn.functional.pad(x, (1, 2, 0, -1)), lambda x: x[:, [0, 2]],
        lambda x: x + x[:, :1], lambda x: x + x[:, :2], lambda x: x * 2, lambda x: x / x[0], lambda x: x**0.75,
        lambda x: nn.functional.interpolate(x, (9, 9), mode="bilinear"), lambda x: x.double() + x,
        lambda x: nn.functional.avg_pool3d(x.unsqueeze(1), (3, 1, 1), 1), lambda x: x.int() * 2, lambda x: -x,
        lambda x: torch.addmm(x[0, 0, 0, 0], x[0, 0], x[0, 0].t()), lambda x: x.relu_().tanh(),
        lambda x: x[0, 0] @ x[0, 0].t(), lambda x: x.amax((2, 3)), lambda x: x.amax([1], keepdim=True),
        lambda x: torch.addmm(x[0, 0, 0], x[0, 0], x[0, 0]), lambda x: nn.functional.pad(x, (-3, -3)),
        lambda x: nn.functional.batch_norm(x, x[0, :, 0, 0], x[0, :, 0, 0]), lambda x: x.bool() * 2.5,
        lambda x: nn.functional.batch_norm(x, x[0, 0, 0], x[0, 0, 0]),
    ],
)  # fmt: skip
def test_other_operators(function) -> None:
    assert_same(function, on_meta(2, 3, 4, 5))


def test_what_is_no_meta_tensor_is_computed() -> None:
    with ShapesOnly():
        assert torch.relu(torch.tensor([-1.0, 2.0])).tolist() == [0, 2]


class Shapes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[int, ...]]] = []
        self.without_rule: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        output = result[0] if isinstance(result, tuple) else result
        self.seen.append((str(func), tuple(output.shape)))
        return result


@pytest.mark.parametrize("name", shallow_models())
def test_every_map_of_every_architecture_has_the_shape_that_torch_gives_it(name: str) -> None:
    with torch.device("meta"), WithoutFilling():
        model = create_model(name).eval()
    with torch.device("meta"):
        assert count_params(model) == count_params(create_model(name))
    seen = []
    for shapes_only in (True, False):
        shapes = Shapes()
        with torch.no_grad(), torch.device("meta"):
            if shapes_only:
                with ShapesOnly(), shapes:
                    model(on_meta(1, 3, 32, 32))
            else:
                with shapes:
                    model(on_meta(1, 3, 32, 32))
        seen.append(shapes.seen)
    assert seen[0] == seen[1]
    assert any(operator in _RULES for operator, _ in seen[0])


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "deeplabv3_resnet50", "lenet5_1998"])
def test_the_counts_are_those_of_torchs_own_kernels(name: str) -> None:
    with torch.device("meta"), WithoutFilling():
        model = create_model(name, **LIST_SETTING)
    with ShapesOnly():
        counts = count_complexity(model, (3, 32, 32))
    assert counts == count_complexity(model, (3, 32, 32))


@pytest.mark.parametrize(
    "command", ["list", "describe resnet18", "describe deeplabv3_resnet50", "describe alexnet_2012"]
)
def test_commands_that_count_import_nothing_slow(command: str) -> None:
    code = (
        f"import sys; sys.argv = ['zoobench', *{command.split()}]\n"
        "from bench.cli.app import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "slow = {'torch._dynamo', 'sympy', 'torchvision', 'timm', 'pandas', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
