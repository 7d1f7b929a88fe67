"""What only the live network can tell: first-layer kernels, feature maps, Grad-CAM, and the time of each layer.

The run computes it at its end and stores it beside its record as plain arrays, so that a report needs no network.
Grad-CAM: Selvaraju et al. 2017, arXiv:1610.02391.
"""

from __future__ import annotations

import copy
import io
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.device import synchronize
from bench.records import write_atomically
from bench.timing.clock import create_marks
from bench.timing.setting import Setting, fastest_kernels

Arrays = dict[str, NDArray[np.generic]]

KERNELS, MAPS, CHANNELS, IMAGES = 64, 4, 8, 4
"""At most: first-layer kernels, layers with feature maps, channels of each, and images of each kind."""


def measure_probes(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    prepare: Callable[[Tensor], Tensor],
    setting: Setting,
    *,
    repeats: int = 10,
) -> Arrays:
    """Look into a trained network with some test images.

    ``images`` are uint8, N×C×H×W, on the network's device, ``labels`` their classes; ``prepare`` makes of uint8 images
    what the network takes. Layers are timed in the precision of ``setting``. The network is left as it was found: mode,
    gradients, hooks.

    Returns arrays by name; what an architecture does not have is absent:

    - ``kernels``: float32, the first convolution's, out × in × height × width;
    - ``maps_K`` (K = 0, 1, …): float16, images × channels × height × width, after the layers ``map_layers``;
    - ``map_images``: the uint8 images of these maps;
    - ``cam_images``, ``cam_heat`` (float16, images × height × width, 0 to 1), ``cam_label``, ``cam_predicted``,
      ``cam_confidence``: Grad-CAM for the predicted class, of images that are classified rightly and wrongly;
    - ``layer_names``, ``layer_seconds``: median time of each layer's forward pass on all of ``images``, seconds.
    """
    with _evaluation(model):
        ready = prepare(images)
        with torch.no_grad():
            shapes, scores = _trace(model, ready)
        names = [name for name, shape in shapes.items() if len(shape) == 4 and shape[2] * shape[3] > 1]
        arrays: Arrays = {}
        first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
        if first is not None:
            arrays["kernels"] = first.weight.detach()[:KERNELS].float().cpu().numpy()
        if names:
            arrays |= _feature_maps(model, images[:IMAGES], ready[:IMAGES], names)
            arrays |= _grad_cam(model, images, ready, labels, scores, names[-1])
        arrays |= _layer_times(model, ready, setting, repeats)
    return arrays


def save_probes(arrays: Arrays, path: str) -> None:
    """Write the arrays as one compressed ``.npz``; a reader sees the old file or the new one. Raises `OSError`."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _leaves(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if name and not any(module.children())}


@contextmanager
def _hooks(model: nn.Module, names: list[str], hook: Callable[[str, Tensor], Tensor | None]) -> Iterator[None]:
    """Call ``hook`` with the name and the output of each of these layers, and let it replace the output."""
    leaves = _leaves(model)

    def register(name: str) -> torch.utils.hooks.RemovableHandle:
        def call(module: nn.Module, args: object, output: object) -> Tensor | None:
            return hook(name, output) if isinstance(output, Tensor) else None

        return leaves[name].register_forward_hook(call)

    handles = [register(name) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _trace(model: nn.Module, ready: Tensor) -> tuple[dict[str, tuple[int, ...]], Tensor]:
    """The output shape of each layer in the order of execution, and the network's scores."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, output: Tensor) -> None:
        shapes.pop(name, None)
        shapes[name] = tuple(output.shape)

    with _hooks(model, list(_leaves(model)), note):
        scores = model(ready)
    return shapes, scores


def _feature_maps(model: nn.Module, images: Tensor, ready: Tensor, names: list[str]) -> Arrays:
    """Maps of a few layers spread evenly over the depth, the channels with the largest spread of each."""
    count = min(MAPS, len(names))
    chosen = [names[round((k + 1) * len(names) / count) - 1] for k in range(count)]
    maps: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        spread = output.detach().float().std(dim=(0, 2, 3))
        channels = spread.topk(min(CHANNELS, len(spread))).indices.sort().values
        maps[name] = output.detach()[:, channels].half().cpu()

    with torch.no_grad(), _hooks(model, chosen, keep):
        model(ready)
    arrays: Arrays = {f"maps_{k}": maps[name].numpy() for k, name in enumerate(chosen)}
    return arrays | {"map_layers": np.array(chosen), "map_images": images.cpu().numpy()}


def _grad_cam(model: nn.Module, images: Tensor, ready: Tensor, labels: Tensor, scores: Tensor, layer: str) -> Arrays:
    """Where the network looked: for a few images that it classified rightly and a few that it did not."""
    confidence, predicted = scores.float().softmax(1).max(1)
    right = predicted == labels.to(predicted.device)
    few = torch.cat([right.nonzero().flatten()[:IMAGES], (~right).nonzero().flatten()[:IMAGES]])
    kept: list[Tensor] = []

    def keep(name: str, output: Tensor) -> Tensor:
        kept.append(output)
        return output.clone()  # an in-place activation behind it must not change what is kept

    with torch.enable_grad(), _hooks(model, [layer], keep):
        own = model(ready[few].detach().requires_grad_())
        chosen = own.gather(1, predicted[few, None]).sum()
        (gradient,) = torch.autograd.grad(chosen, kept[-1])
    heat = (gradient.mean(dim=(2, 3), keepdim=True) * kept[-1].detach()).sum(1).relu().float()
    heat = heat / heat.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    return {
        "cam_images": images[few].cpu().numpy(),
        "cam_heat": heat.half().cpu().numpy(),
        "cam_label": labels.to(few.device)[few].cpu().numpy(),
        "cam_predicted": predicted[few].cpu().numpy(),
        "cam_confidence": confidence[few].detach().cpu().numpy(),
    }


def _layer_times(model: nn.Module, ready: Tensor, setting: Setting, repeats: int) -> Arrays:
    """Median seconds of each layer's forward pass, on a copy of the network in the precision of ``setting``."""
    network, images = copy.deepcopy(model).to(setting.weights_dtype), ready.to(setting.weights_dtype)
    marks = create_marks(setting.device)
    begun: dict[str, Any] = {}
    spans: dict[str, list[tuple[Any, Any]]] = {}

    def register(name: str, module: nn.Module) -> None:
        def enter(module: nn.Module, args: object) -> None:
            begun[name] = marks.mark()

        def leave(module: nn.Module, args: object, output: object) -> None:
            spans.setdefault(name, []).append((begun[name], marks.mark()))

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)

    for name, module in _leaves(network).items():
        register(name, module)
    with fastest_kernels(), setting.inference():
        network(images)
        calls = {name: len(own) for name, own in spans.items()}
        spans.clear()
        for _ in range(repeats):
            network(images)
    synchronize(setting.device)
    seconds = []
    for name, own in spans.items():  # a layer that is called several times has maps of several sizes
        times, each = [marks.seconds(*span) for span in own], calls[name]
        seconds.append(statistics.median(sum(times[at : at + each]) for at in range(0, len(times), each)))
    return {"layer_names": np.array(list(spans)), "layer_seconds": np.array(seconds)}
