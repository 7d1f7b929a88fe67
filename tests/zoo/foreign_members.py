"""One small member of each class of networks that timm and torchvision have, for tests of the kind.

Found by asking the libraries, so that a new class is tested as soon as it is there; nothing is built.
"""

import functools
import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torchvision

# What libraries call their small networks, smallest first; a name without any of these comes after all of them.
SMALL = (
    *(
        "test",
        "atto",
        "femto",
        "pico",
        "nano",
        "050",
        "035",
        "_005",
        "_002",
        "400mf",
        "vgg11",
        "xxs",
        "xx_small",
        "xtiny",
        "tiny",
    ),
    *("micro", "mini", "_xs", "x_small", "_t0", "_m0", "_s0", "_b0", "_s1", "_l1", "small", "_s", "_t", "_d1", "12"),
    *("18", "19", "b0", "b1", "m1", "26", "base", "_b", "100", "300m"),
)


class _FoundError(Exception):
    """Carries the class that timm was about to build."""


def _stop(model_class: type, *_: Any, **__: Any) -> None:
    raise _FoundError(model_class)


def _size(name: str) -> tuple[int, int, str]:
    rank = next((rank for rank, word in enumerate(SMALL) if word in name), len(SMALL))
    pixels = max(map(int, re.findall(r"(?<!\d)\d{3}(?!\d)", name)), default=0)
    return rank, pixels, name


def _smallest(members: dict[type, list[str]]) -> dict[str, str]:
    return {f"{each.__module__}.{each.__qualname__}": min(names, key=_size) for each, names in members.items()}


@functools.cache
def timm_members() -> dict[str, str]:
    """Class to the name of a small member, ``timm/NAME``."""
    return _smallest(dict(_timm_classes()))


def _timm_classes() -> Iterator[tuple[type, list[str]]]:
    members: dict[type, list[str]] = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.startswith("timm.models.") and hasattr(module, "build_model_with_cfg"):
                patch.setattr(module, "build_model_with_cfg", _stop)
        for name in timm.list_models():
            with pytest.raises(_FoundError) as found:
                timm.models.model_entrypoint(name)(pretrained=False)
            members.setdefault(found.value.args[0], []).append(f"timm/{name}")
    yield from members.items()


@functools.cache
def torchvision_members() -> dict[str, str]:
    """Class, as its builder declares it, to the name of a small member, ``torchvision/NAME``."""
    members: dict[type, list[str]] = {}
    for module in (torchvision.models, torchvision.models.segmentation):
        for name in torchvision.models.list_models(module=module):
            builder = inspect.unwrap(torchvision.models.get_model_builder(name))
            declared = inspect.signature(builder, eval_str=True).return_annotation
            members.setdefault(declared, []).append(f"torchvision/{name}")
    return _smallest(members)
