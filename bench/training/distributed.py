"""Several processes that train one network together: what each does alone, and where they agree.

Data parallelism as torch's `DistributedDataParallel` has it: each rank computes the gradients of its slice of a global
batch, the gradients are added over the ranks, and all take the same step. It differs in two points, for which a
training must be able to go on: the sum is one all-reduce of all gradients in the order of the parameters, after the
backward pass, so that a resumed training adds in the same order as one that never stopped (DDP orders its buckets by
when gradients were ready); and nothing is sent before all ranks know that each has its gradients, so that a rank that
runs out of memory leaves none waiting for it inside a backward pass.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Made = TypeVar("Made")

TIMEOUT = datetime.timedelta(days=1)
"""Ranks may wait while the first one times forms or measures speed; one that has died ends the others at once, by the
launcher."""


class Ranks:
    """The processes of a training, of which this one is ``rank`` of ``size``. This class itself: one process, alone.

    Every method that sends something must be called by all ranks, in the same order.
    """

    rank, size = 0, 1

    def part(self, count: int) -> slice:
        """This rank's slice of ``count`` images of a global batch; sizes of slices differ by one at most."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def own(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """This rank's slice of a global batch."""
        return images, targets

    def largest_part(self, count: int) -> int:
        """The size of the largest slice."""
        return -(-count // self.size)

    def first(self, numbers: Sequence[float]) -> list[float]:
        """The first rank's numbers, for all: its clock decides."""
        return list(numbers)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any rank."""
        return flag

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their sums over the ranks; integers exactly."""

    def add_gradients(self, parameters: Iterable[nn.Parameter], loss: Tensor) -> None:
        """Replace gradients and the loss by their sums over the ranks."""

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by those of the first rank."""

    def gather(self, value: Any) -> list[Any]:
        """Everyone's value, in the order of the ranks."""
        return [value]

    def from_first(self, make: Callable[[], Made]) -> Made:
        """What the first rank makes, for all."""
        return make()


ALONE = Ranks()


class Group(Ranks):
    """The ranks of torch's process group. Numbers and objects travel between CPUs, so that no GPU is waited for."""

    def __init__(self) -> None:
        self.rank, self.size = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def own(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """A view of it."""
        part = self.part(len(images))
        return images[part], targets[part]

    def first(self, numbers: Sequence[float]) -> list[float]:
        """By a broadcast of the CPU."""
        sent = torch.tensor(numbers, dtype=torch.float64)
        torch.distributed.broadcast(sent, 0)
        return [float(number) for number in sent]

    def any(self, flag: bool) -> bool:
        """By an all-reduce of the CPU."""
        count = torch.tensor([int(flag)])
        torch.distributed.all_reduce(count)
        return bool(count)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """A message for each tensor."""
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)

    def add_gradients(self, parameters: Iterable[nn.Parameter], loss: Tensor) -> None:
        """In one message, in the order of the parameters.

        A parameter that this rank's images did not reach counts as zero; one that no rank's reached keeps no gradient.
        """
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        used = torch.ones(len(trained), device=loss.device)
        for index, parameter in enumerate(trained):
            if parameter.grad is None:
                used[index] = 0
        parts = [used, loss.reshape(1)]
        parts += [(torch.zeros_like(each) if each.grad is None else each.grad).flatten() for each in trained]
        flat = torch.cat([part.float() for part in parts])
        torch.distributed.all_reduce(flat)
        reached, total, *sums = torch.split(flat, [len(part) for part in parts])
        loss.copy_(total[0])
        for index, (parameter, summed) in enumerate(zip(trained, sums, strict=True)):
            if parameter.grad is not None:
                parameter.grad.copy_(summed.view_as(parameter.grad))
            elif reached[index] > 0:
                parameter.grad = summed.view_as(parameter).to(parameter.dtype, copy=True)

    def share(self, tensors: Iterable[Tensor]) -> None:
        """A message for each type of numbers, on each device."""
        alike: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for tensor in tensors:
            alike.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        for group in alike.values():
            flat = torch.cat([tensor.flatten() for tensor in group])
            torch.distributed.broadcast(flat, 0)
            for tensor, values in zip(group, torch.split(flat, [tensor.numel() for tensor in group]), strict=True):
                tensor.copy_(values.view_as(tensor))

    def gather(self, value: Any) -> list[Any]:
        """Anything that can be pickled."""
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    def from_first(self, make: Callable[[], Made]) -> Made:
        """Anything that can be pickled."""
        made: list[Any] = [make() if self.rank == 0 else None]
        torch.distributed.broadcast_object_list(made, 0)
        return made[0]  # type: ignore[no-any-return]


def own_device(device: str) -> str:
    """The device of this rank: on each machine the first ranks have the first GPUs."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" else device


def is_lost_connection(error: RuntimeError) -> bool:
    """Whether a message could not be exchanged: gloo has no class of error of its own for that, NCCL's is torch's."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


@contextlib.contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the process group that the environment names, as torchrun sets it, for a training on such devices.

    The group is left only by a rank that has done its part: one that fails ends as it is, and does not wait.
    """
    if device == "cuda":
        torch.cuda.set_device(own_device(device))
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=TIMEOUT)
    yield Group()
    torch.distributed.destroy_process_group()
