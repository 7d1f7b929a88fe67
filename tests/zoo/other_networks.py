"""The ResNets of other projects with random weights and statistics, their files, and whether logits are the same."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

State = dict[str, torch.Tensor]


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and statistics of which no two layers have the same, scaled so that the logits say something."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() > 1:
            tensor.copy_(noise * (2 / tensor[0].numel()) ** 0.5)
        elif name.endswith("running_var"):
            tensor.copy_(0.5 + noise.abs())
        else:
            tensor.copy_((1 if name.endswith("weight") else 0) + 0.1 * noise)
    return model.eval()


def logits(model: nn.Module, size: int = 32) -> torch.Tensor:
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output = model.eval()(images)
    return output["out"] if isinstance(output, dict) else output


def saved(content: Any, folder: Path) -> Path:
    torch.save(content, folder / "checkpoint.pth")
    return folder / "checkpoint.pth"


def assert_same(model: nn.Module, other: nn.Module, size: int = 32) -> None:
    expected = logits(other, size)
    assert expected.std() > 1e-3
    torch.testing.assert_close(logits(model, size), expected, atol=1e-5, rtol=1e-5)


class Residual(nn.Module):
    """A basic block, its shortcut after its convolutions, by the name of the project at hand."""

    def __init__(self, chans: int, width: int, stride: int, shortcut: str, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(chans, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        changes = stride != 1 or chans != width
        self.pad = (width - chans) // 2 if changes and not projection else 0
        self.stride, self.name = stride, shortcut
        layers = [nn.Conv2d(chans, width, 1, stride, bias=False), nn.BatchNorm2d(width)]
        setattr(self, shortcut, nn.Sequential(*(layers if changes and projection else [])))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        kept = getattr(self, self.name)(x)
        if self.pad:
            kept = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(out + kept)


class OtherResNet(nn.Module):
    def __init__(
        self, widths: tuple[int, ...], blocks: int, shortcut: str, projection: bool, head: str = "linear"
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        chans = widths[0]
        for index, width in enumerate(widths):
            stage = nn.Sequential()
            for block in range(blocks):
                stage.append(Residual(chans, width, 2 if index and not block else 1, shortcut, projection))
                chans = width
            self.add_module(f"layer{index + 1}", stage)
        self.stages, self.head = len(widths), head
        setattr(self, head, nn.Linear(chans, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for index in range(self.stages):
            x = getattr(self, f"layer{index + 1}")(x)
        return getattr(self, self.head)(x.mean((2, 3)))


def scramble(state: State) -> State:
    """Names that say nothing, in the order of the file."""
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in state))
    return {f"part{layers.index(n.rpartition('.')[0])}.{n.rpartition('.')[2]}": t for n, t in state.items()}
