"""`zoobench study` as a user meets it."""

import json

import pytest
from typer.testing import CliRunner

from bench.cli.app import app
from bench.errors import ConfigError
from bench.study import list_studies

STUDY = """
title = "t"
claim = "c"
source = "s"
cost = "c"
[plan]
models = ["lenet5"]
budget = { epochs = 1 }
[variants.a]
[variants.b]
recipe = { flip = false }
[[comparisons]]
claim = "c"
better = "a"
than = "b"
margin = 0.0
"""


def test_without_a_name_it_lists_them(tmp_path):
    listed = json.loads(CliRunner().invoke(app, ["study", "--json", "--results", str(tmp_path)]).stdout)
    assert [each["name"] for each in listed] == list_studies()
    assert {each["found"] for each in listed} == {None}


@pytest.mark.parametrize(
    ("metric", "expected"), [("test_top2", "Did you mean 'test_top1'"), ("lr_peak", "no metric of which more or less")]
)
def test_a_metric_that_decides_nothing_is_named_before_anything_is_run(metric, expected, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(STUDY.replace("margin", f'metric = "{metric}"\nmargin'))
    done = CliRunner().invoke(app, ["study", str(path), "--results", str(tmp_path / "results")])
    assert isinstance(done.exception, ConfigError)
    assert expected in str(done.exception)
    assert not (tmp_path / "results").exists()
