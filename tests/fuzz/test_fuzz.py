"""Damaged and hostile files end in an error of ours or in success. `tests/perf/fuzz_campaign.py` is the long form."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import mutate
from targets import SEEDS, TARGETS

SLOW = {"parquet": 30, "weights_torch": 60, "checkpoint_state": 60}


@pytest.mark.parametrize("name", TARGETS)
def test_valid_and_extreme_inputs(name):
    for content in [*SEEDS[name], b"", b"\x00", b"null", b"{}", b"[]"]:
        TARGETS[name](content)


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_inputs(name):
    @settings(
        max_examples=SLOW.get(name, 150), deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(content=st.sampled_from(SEEDS[name]), seed=st.integers(0, 2**32))
    def check(content, seed):
        TARGETS[name](mutate(content, random.Random(seed)))

    check()
