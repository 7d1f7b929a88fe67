"""Every distinct class of timm's and torchvision's networks, by one small member each, is counted in full."""

import functools

import pytest
from foreign_members import timm_members, torchvision_members

from bench.counting.complexity import Complexity, count_complexity
from bench.counting.shapes import count_by_shapes
from zoo import create_model, model_info

MEMBERS = timm_members() | torchvision_members()
CANNOT_BE_COUNTED: dict[str, str] = {}
"""Class to reason. This may only shrink."""
NOT_IN_FULL: dict[str, tuple[str, ...]] = {}
"""Class to the operators that are not counted. This may only shrink."""


@functools.cache
def count(name: str) -> Complexity:
    info = model_info(name)
    shape = (3, info.input_size, info.input_size)
    return count_by_shapes(
        lambda: create_model(name, info.num_classes, info.input_size), lambda model: count_complexity(model, shape)
    )


@pytest.mark.parametrize("of", MEMBERS)
def test_every_class_is_counted_in_full(of: str) -> None:
    if of in CANNOT_BE_COUNTED:
        with pytest.raises(ValueError, match="cannot take input"):
            count(MEMBERS[of])
        return
    counts = count(MEMBERS[of])
    assert counts.macs > 0
    assert counts.params > 0
    assert counts.uncounted == NOT_IN_FULL.get(of, ())
    assert counts.disagreements == ()
    assert sum(layer.macs for layer in counts.layers) == counts.macs
    assert sum(layer.params for layer in counts.layers) == counts.params


def test_the_list_of_exceptions_names_classes_that_exist() -> None:
    assert set(CANNOT_BE_COUNTED) | set(NOT_IN_FULL) <= set(MEMBERS)


@pytest.mark.parametrize("name", ["cait_xxs24_224", "pit_ti_224", "vit_base_patch16_siglip_224"])
def test_parameters_that_reach_a_layer_as_views(name: str) -> None:
    counts = count(f"timm/{name}")
    assert counts.params == sum(layer.params for layer in counts.layers)
    assert counts.uncounted == counts.disagreements == ()
