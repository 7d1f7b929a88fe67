"""LeNet-5: the convolutional network that read cheques (LeCun, Bottou, Bengio, Haffner 1998, Proc. IEEE 86(11)).

Known for: convolution, subsampling and shared weights as we still use them, on 32×32 images of one channel.

`lenet5` is what courses and frameworks mean by the name (as in "Dive into Deep Learning", 7.6): every map of C3
sees all of S2, subsampling is plain average pooling without parameters, ReLU replaces the scaled tanh, and the
output is a linear layer. 61,706 parameters with one channel, 62,006 with three. The first linear layer grows with the
image. Images below 32 pixels are padded with zeros to 32, as the paper places its 28×28 digits in a 32×32 field.

`lenet5_1998` is the paper's own network: 60,000 trainable parameters, 340,908 connections. Sparse C3 (table I),
trainable subsampling, activation 1.7159·tanh(2x/3), and an output of radial basis functions with fixed codes.
Departures:
- the logits are the negative squared distances to the codes, so that a cross-entropy loss applies (the paper's
  criterion, equation 9, is that loss with one more, constant class);
- the digits' codes follow figure 3, as the paper prints no table of them; for any other number of classes than ten
  they are random ±1 codes from a fixed seed (the paper says that random codes serve as well);
- on larger images C5 yields a map, as the paper says; it is averaged.
"""

import functools
import itertools
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from zoo.info import Published, Register
from zoo.registry import register_model

register: Register = functools.partial(
    register_model, paper="LeCun et al. 1998, Gradient-based learning applied to document recognition", year=1998
)

FIELD = 32
"""Side of the paper's input field in pixels."""


def _pad_to_field(x: torch.Tensor) -> torch.Tensor:
    """Centre images smaller than 32 pixels in a field of zeros."""
    missing = FIELD - x.shape[-1]
    return F.pad(x, [missing // 2, missing - missing // 2] * 2) if missing > 0 else x


class LeNet5(nn.Module):
    """Two 5×5 convolutions with average pooling, three linear layers."""

    def __init__(self, num_classes: int, input_size: int, in_chans: int) -> None:
        super().__init__()
        # 32 -> 28 -> 14 -> 10 -> 5
        side = ((max(input_size, FIELD) - 4) // 2 - 4) // 2
        self.conv1 = nn.Conv2d(in_chans, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.pool = nn.AvgPool2d(2)
        self.act = nn.ReLU()
        self.fc1 = nn.Linear(16 * side * side, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``N×C×H×W`` of the built size to logits ``N×num_classes``."""
        x = self.pool(self.act(self.conv1(_pad_to_field(x))))
        x = self.pool(self.act(self.conv2(x))).flatten(1)
        logits: torch.Tensor = self.fc3(self.act(self.fc2(self.act(self.fc1(x)))))
        return logits


@register(
    published=Published(
        params=61_706,
        gmacs=0.000416520,
        num_classes=10,
        in_chans=1,
        source="Dive into Deep Learning, 7.6, layer by layer",
    ),
    recipe={"lr": 0.05, "weight_decay": 5e-4},
    small_image="nothing changes at 32 pixels, its own size; at 64 the first linear layer grows with the image",
    representative=True,
)
def lenet5(num_classes: int = 10, input_size: int = 32, in_chans: int = 3) -> LeNet5:
    """The modern form: average pooling, ReLU, a linear head."""
    return LeNet5(num_classes, input_size, in_chans)


# Table I: which maps of S2 each of the sixteen maps of C3 sees.
C3_INPUTS: tuple[tuple[int, ...], ...] = (
    *(tuple(sorted((i + k) % 6 for k in range(3))) for i in range(6)),
    *(tuple(sorted((i + k) % 6 for k in range(4))) for i in range(6)),
    *(tuple(sorted((i + k) % 6 for k in (0, 1, 3, 4))) for i in range(3)),
    tuple(range(6)),
)

# The stylised digits of figure 3, 7 columns by 12 rows, one hexadecimal pair a row (the lowest seven bits).
DIGITS = (
    "1c 3e 63 63 63 63 63 63 63 3e 1c 00",
    "0c 1c 3c 0c 0c 0c 0c 0c 0c 3f 3f 00",
    "3e 7f 63 03 06 0c 18 30 60 7f 7f 00",
    "7f 7f 06 0c 1e 1f 03 03 63 7f 3e 00",
    "06 0e 1e 36 66 66 7f 7f 06 06 06 00",
    "7f 7f 60 60 7e 7f 03 03 63 7f 3e 00",
    "1e 3e 60 60 7e 7f 63 63 63 7f 3e 00",
    "7f 7f 03 06 06 0c 0c 18 18 30 30 00",
    "3e 7f 63 63 3e 3e 63 63 63 7f 3e 00",
    "3e 7f 63 63 63 7f 3f 03 03 3e 3c 00",
)


def output_codes(num_classes: int) -> torch.Tensor:
    """The fixed codes of the output, ``num_classes×84`` of ±1."""
    if num_classes == len(DIGITS):
        rows = [[int(row, 16) >> (6 - column) & 1 for row in digit.split() for column in range(7)] for digit in DIGITS]
        return torch.tensor([[2 * bit - 1 for bit in row] for row in rows], dtype=torch.float32)
    generator = torch.Generator().manual_seed(num_classes)
    bits = torch.randint(2, (num_classes, 84), generator=generator, device="cpu")
    return bits.to(torch.get_default_device()).float() * 2 - 1


class ScaledTanh(nn.Module):
    """The paper's squashing function, 1.7159·tanh(2x/3): it keeps ±1 at ±1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Elementwise."""
        return 1.7159 * torch.tanh(x * (2 / 3))


class Subsampling(nn.Module):
    """Sum of 2×2 neighbours times a trainable coefficient plus a trainable bias, one of each per map."""

    def __init__(self, chans: int) -> None:
        super().__init__()
        self.coefficient = nn.Parameter(torch.empty(chans, 1, 1))
        self.bias = nn.Parameter(torch.zeros(chans, 1, 1))
        nn.init.uniform_(self.coefficient, -2.4 / 4, 2.4 / 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``N×C×H×W`` to ``N×C×H/2×W/2``."""
        return F.avg_pool2d(x, 2, divisor_override=1) * self.coefficient + self.bias


class SparseConv(nn.Module):
    """C3: 5×5 convolutions, each output map over its own selection of the input maps."""

    chans: torch.Tensor

    def __init__(self, inputs: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.sizes = [len(chans) for chans in inputs]
        # A buffer: of lists, a GPU would get a copy for each map in each forward pass.
        self.register_buffer("chans", torch.tensor(list(itertools.chain(*inputs))), persistent=False)
        self.convs = nn.ModuleList(nn.Conv2d(size, 1, 5) for size in self.sizes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``N×6×H×W`` to ``N×16×(H−4)×(W−4)``."""
        ends = itertools.accumulate(self.sizes)
        inputs = [self.chans[end - size : end] for size, end in zip(self.sizes, ends, strict=True)]
        return torch.cat([conv(x[:, chans]) for chans, conv in zip(inputs, self.convs, strict=True)], dim=1)


class RadialBasisOutput(nn.Module):
    """Negative squared distance to a fixed code per class; no trainable parameter."""

    codes: torch.Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("codes", output_codes(num_classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``N×84`` to logits ``N×num_classes``."""
        return -(x.unsqueeze(1) - self.codes).square().sum(dim=2)


class LeNet5Original(nn.Module):
    """The network of section II.B, its layers under the paper's names."""

    heads: ClassVar[tuple[str, ...]] = ("output",)

    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(in_chans, 6, 5)
        self.s2 = Subsampling(6)
        self.c3 = SparseConv(C3_INPUTS)
        self.s4 = Subsampling(16)
        self.c5 = nn.Conv2d(16, 120, 5)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.f6 = nn.Linear(120, 84)
        self.act = ScaledTanh()
        self.output = RadialBasisOutput(num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                # Appendix A: uniform within ±2.4 / fan-in.
                bound = 2.4 / module.weight[0].numel()
                nn.init.uniform_(module.weight, -bound, bound)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``N×C×H×W`` to logits ``N×num_classes`` (at most 0: negative squared distances)."""
        x = self.act(self.s2(self.act(self.c1(_pad_to_field(x)))))
        x = self.act(self.s4(self.act(self.c3(x))))
        x = self.pool(self.act(self.c5(x))).flatten(1)
        logits: torch.Tensor = self.output(self.act(self.f6(x)))
        return logits

    def count_connections(self, input_size: int = FIELD) -> int:
        """Connections as the paper counts them: every use of a weight, a coefficient or a bias."""
        c1 = input_size - 4
        s2 = c1 // 2
        c3 = s2 - 4
        s4 = c3 // 2
        c5 = s4 - 4
        weights = {
            name: sum(parameter.numel() for parameter in self.get_submodule(name).parameters())
            for name in ("c1", "c3", "c5", "f6")
        }
        subsampling = 5 * (6 * s2**2 + 16 * s4**2)  # four neighbours and a bias
        convolutions = weights["c1"] * c1**2 + weights["c3"] * c3**2 + weights["c5"] * c5**2
        return convolutions + subsampling + weights["f6"] + self.output.codes.numel()


@register(
    published=Published(params=60_000, num_classes=10, in_chans=1, source="the paper, section II.B; table I"),
    recipe={"lr": 0.01, "weight_decay": 0.0},
    small_image="nothing changes at 32 pixels, its own size; at 64 C5 becomes a map and is averaged",
)
def lenet5_1998(num_classes: int = 10, input_size: int = 32, in_chans: int = 3) -> LeNet5Original:
    """The network of the paper: sparse C3, trainable subsampling, RBF output."""
    del input_size  # convolutional up to C5, whose map is averaged
    return LeNet5Original(num_classes, in_chans)
