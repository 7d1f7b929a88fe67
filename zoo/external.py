"""Models of timm and torchvision as ``timm/NAME`` and ``torchvision/NAME``; each library is imported on first use."""

from __future__ import annotations

import fnmatch
import functools
import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from zoo.info import ModelInfo, Published, Task, UnknownModelError, ZooError, did_you_mean
from zoo.meta import device_of, follow_on_meta

LIBRARIES = ("timm", "torchvision")


def create_model(info: ModelInfo, num_classes: int, input_size: int, in_chans: int, **options: Any) -> nn.Module:
    """Build ``timm/NAME`` or ``torchvision/NAME`` as that library does, with a head for ``num_classes``.

    ``options`` go to the library's builder. Raises `ZooError` where the library refuses the arguments, or the network
    cannot take images of this size.
    """
    try:
        model = info.builder(num_classes=num_classes, input_size=input_size, in_chans=in_chans, **options)
    except Exception as error:  # what a library raises for arguments that it does not take has no common base
        raise ZooError(
            f"{info.name!r} cannot be built for {_image(in_chans, input_size)}: {_first_line(error)}"
        ) from error
    if input_size != info.input_size:
        _check_input_size(info, num_classes, input_size, in_chans, options)
    return model


def list_models(pattern: str) -> list[str]:
    """Names with their prefix that match a wildcard pattern such as ``timm/resnet*``, sorted."""
    wanted, _, rest = pattern.partition("/")
    names: list[str] = []
    for library in fnmatch.filter(LIBRARIES, wanted):
        names += [f"{library}/{name}" for name in fnmatch.filter(_names(library), rest)]
    return sorted(names)


def model_info(name: str) -> ModelInfo:
    """What the library says about its model, without building it. Raises `UnknownModelError`."""
    library, _, model = name.partition("/")
    if library not in LIBRARIES:
        raise UnknownModelError(f"no library {library!r} in {name!r}: expected timm/NAME or torchvision/NAME.")
    return _timm_info(model) if library == "timm" else _torchvision_info(model)


def load_reference_weights(name: str) -> dict[str, torch.Tensor]:
    """The library's default pretrained state dict for ``timm/NAME`` or ``torchvision/NAME``, downloaded if needed.

    Raises `ZooError` where there are none or they cannot be fetched.
    """
    library, _, model = name.partition("/")
    model_info(name)
    try:
        if library == "timm":
            import timm

            if timm.get_pretrained_cfg(model) is None or not timm.is_model_pretrained(model):
                raise ZooError(f"timm has no pretrained weights for {model!r}.")
            state: dict[str, torch.Tensor] = timm.create_model(model, pretrained=True).state_dict()
        else:
            import torchvision

            weights = torchvision.models.get_model_weights(model)
            if not len(weights):
                raise ZooError(f"torchvision has no pretrained weights for {model!r}.")
            state = weights.DEFAULT.get_state_dict(progress=False, check_hash=True)
    except ZooError:
        raise
    except Exception as error:  # network, hub and cache errors have no common base
        raise ZooError(
            f"the pretrained weights for {name!r} cannot be fetched ({type(error).__name__}: {_first_line(error)}). "
            "Without network access, pass the path of a state dict as `pretrained`."
        ) from error
    return state


@functools.cache
def _names(library: str) -> tuple[str, ...]:
    if library == "timm":
        import timm

        return tuple(timm.list_models())
    import torchvision

    # Detection, video and optical flow have another task; quantised models do not train.
    modules = (torchvision.models, torchvision.models.segmentation)
    return tuple(name for module in modules for name in torchvision.models.list_models(module=module))


def _require(library: str, model: str) -> None:
    base = model.partition(".")[0] if library == "timm" else model  # timm's tags: NAME.TAG
    if base not in _names(library):
        raise UnknownModelError(
            f"{library} has no model {model!r}.{did_you_mean(base, _names(library))} "
            f"`zoobench list '{library}/*'` shows all names."
        )


@functools.lru_cache(maxsize=256)
def _timm_info(model: str) -> ModelInfo:
    _require("timm", model)
    import timm

    try:
        config = timm.get_pretrained_cfg(model)
    except RuntimeError as error:  # the architecture is there, and has no weights of that tag
        known = timm.list_pretrained(f"{model.partition('.')[0]}.*")
        raise UnknownModelError(
            f"timm has no weights {model!r}.{did_you_mean(model, known)} Possible: {', '.join(known) or 'none'}."
        ) from error
    size = max(config.input_size[1:]) if config and config.input_size else 224

    def build(num_classes: int, input_size: int, in_chans: int, **options: Any) -> nn.Module:
        arguments = dict(options, num_classes=num_classes, in_chans=in_chans)
        if config and config.fixed_input_size and input_size != size:
            arguments["img_size"] = input_size  # vision transformers are built for one size
        built: nn.Module = timm.create_model(model, pretrained=False, **arguments)
        return built

    return ModelInfo(
        name=f"timm/{model}",
        family="timm",
        builder=build,
        input_size=size,
        num_classes=(config.num_classes if config else None) or 1000,
        small_image="nothing changes: timm's model as is",
        weights=f"timm/{model}",
    )


@functools.lru_cache(maxsize=256)
def _torchvision_info(model: str) -> ModelInfo:
    _require("torchvision", model)
    import torchvision

    weights = torchvision.models.get_model_weights(model)
    meta: Mapping[str, Any] = weights.DEFAULT.meta if len(weights) else {}
    segmentation = model in torchvision.models.list_models(module=torchvision.models.segmentation)
    task: Task = "segmentation" if segmentation else "classification"
    size = _torchvision_size(weights.DEFAULT) if len(weights) else 520 if segmentation else 224
    num_classes = len(meta.get("categories", ())) or (21 if segmentation else 1000)

    def build(num_classes: int, input_size: int, in_chans: int, **options: Any) -> nn.Module:
        return _build_torchvision(model, num_classes, input_size, in_chans, options)

    published = Published(
        params=meta.get("num_params"),
        gmacs=meta.get("_ops"),
        num_classes=num_classes,
        source="torchvision weights metadata",
    )
    return ModelInfo(
        name=f"torchvision/{model}",
        family="torchvision",
        builder=build,
        task=task,
        input_size=size,
        num_classes=num_classes,
        published=published if meta else None,
        small_image="nothing changes: torchvision's model as is",
        weights=f"torchvision/{model}",
    )


def _torchvision_size(weights: Any) -> int:
    """Side in pixels of the images that a torchvision weights entry's preset yields."""
    preset = weights.transforms()
    size = getattr(preset, "crop_size", None) or getattr(preset, "resize_size", None) or [224]
    return int(size[0] if isinstance(size, list | tuple) else size)


def _build_torchvision(
    model: str, num_classes: int, input_size: int, in_chans: int, options: Mapping[str, Any]
) -> nn.Module:
    import torchvision

    if "weights" in options:
        raise ZooError(f"weights are no option in the name of 'torchvision/{model}': ask for pretrained.")
    arguments = dict(options, weights=None, num_classes=num_classes)
    parameters = inspect.signature(torchvision.models.get_model_builder(model)).parameters
    if "weights_backbone" in parameters:
        arguments.setdefault("weights_backbone", None)
    if "aux_loss" in parameters:
        arguments.setdefault("aux_loss", True)  # as the published weights have it
    if model.startswith("vit_") and input_size != 224:
        arguments["image_size"] = input_size
    # torchvision has several names for dropout, and many builders none.
    no_dropout = arguments.get("drop_rate") == 0 and "drop_rate" not in parameters
    if no_dropout:
        del arguments["drop_rate"]
    if model in ("googlenet", "inception_v3"):
        arguments.setdefault("aux_logits", False)
        arguments.setdefault("init_weights", True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built: nn.Module = torchvision.models.get_model(model, **arguments)
    if no_dropout:
        for module in built.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    if in_chans != 3:
        _replace_first_conv(built, model, in_chans)
    return built


def _replace_first_conv(model: nn.Module, name: str, in_chans: int) -> None:
    """Replace the first convolution of a model that is fixed to three channels by one for ``in_chans``."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            parent, _, attribute = path.rpartition(".")
            replacement = nn.Conv2d(
                in_chans,
                module.out_channels,
                module.kernel_size,  # type: ignore[arg-type]
                module.stride,  # type: ignore[arg-type]
                module.padding,  # type: ignore[arg-type]
                module.dilation,  # type: ignore[arg-type]
                bias=module.bias is not None,
            )
            setattr(model.get_submodule(parent), attribute, replacement)
            return
    raise ZooError(f"'torchvision/{name}' has no first convolution of 3 channels to replace for in_chans={in_chans}.")


def _check_input_size(
    info: ModelInfo, num_classes: int, input_size: int, in_chans: int, options: Mapping[str, Any]
) -> None:
    """Try the forward pass without memory or arithmetic: some of these networks shrink small images to nothing."""

    def build() -> nn.Module:
        return info.builder(num_classes=num_classes, input_size=input_size, in_chans=in_chans, **options).eval()

    def run(model: nn.Module) -> None:
        device = device_of(model)
        with device, torch.no_grad():
            model(torch.empty(1, in_chans, input_size, input_size))

    try:
        follow_on_meta(build, run)
    except Exception as error:
        raise ZooError(
            f"{info.name!r} cannot take {_image(in_chans, input_size)}: {_first_line(error)} "
            f"Its own input size is {info.input_size}."
        ) from error


def _image(in_chans: int, input_size: int) -> str:
    return f"{in_chans}×{input_size}×{input_size} images"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".") + "."
