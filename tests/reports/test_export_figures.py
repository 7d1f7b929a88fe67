"""`zoobench figures`: the page's figures as pictures, in either theme."""

import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.errors import RecordError
from reports.export_figures import FORMATS, THEMES, export_figures
from reports.figures.style import GRID, INK, MUTED, PALETTE, SURFACE
from reports.figures.themes import DARK

ROOT = Path(__file__).parents[2]


def test_the_light_ones_are_the_reports_and_the_dark_ones_have_none_of_their_colours(
    zoo_results, zoo_report, tmp_path
) -> None:
    written = export_figures(zoo_results, tmp_path, formats=["svg"])
    names = set(re.findall(r'<figure id="([^"]+)"', (zoo_report / "index.html").read_text()))
    assert {path.name for path in written[:-1]} == {f"{name}-{theme}.svg" for name in names for theme in THEMES}
    for name in ("accuracy-macs", "accuracy-params", "accuracy-throughput"):
        assert (tmp_path / f"{name}-light.svg").read_text() == (zoo_report / f"{name}.svg").read_text()
    for name in names:
        drawn = (tmp_path / f"{name}-dark.svg").read_text().lower()
        assert [colour for colour in DARK if colour in drawn] == [], name
        assert DARK[SURFACE] in drawn
    captions = (tmp_path / "captions.md").read_text()
    assert captions.count("## ") == len(names)


def test_both_themes_and_formats_are_written_and_a_picture_is_large_enough_for_a_slide(
    save, make_record, tmp_path
) -> None:
    written = export_figures(save([make_record(metrics={"macs": 5000, "test_top1": 0.5})]), tmp_path)
    kinds = {f"accuracy-macs-{theme}.{kind}" for theme in THEMES for kind in FORMATS}
    assert {path.name for path in written} == kinds | {"captions.md"}
    for theme, colours in (("light", dict(zip(DARK, DARK, strict=True))), ("dark", DARK)):
        picture = Image.open(tmp_path / f"accuracy-macs-{theme}.png").convert("RGB")
        assert picture.width == 1440
        drawn = {f"#{r:02x}{g:02x}{b:02x}" for r, g, b in np.asarray(picture).reshape(-1, 3)}
        assert {colours[colour] for colour in (SURFACE, INK, GRID, PALETTE[1])} <= drawn


def test_the_dark_colours_are_those_of_the_page() -> None:
    css = files("reports").joinpath("pages/templates/page.css").read_text()
    dark = css[css.index(':root[data-theme="dark"]') :]
    declared = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", dark))
    names = {INK: "ink", MUTED: "muted", GRID: "grid", SURFACE: "surface"}
    names |= {colour: f"c{k}" for k, colour in enumerate(PALETTE)}
    assert {colour: declared[name] for colour, name in names.items()} == DARK


def test_a_studys_figures_are_those_of_its_page(tmp_path) -> None:
    folder = ROOT / "results" / "study-schedule"
    written = export_figures(folder, tmp_path, formats=["svg"])
    names = re.findall(r'<figure id="([^"]+)"', (folder / "report" / "index.html").read_text())
    assert names
    assert {path.name for path in written[:-1]} == {f"{name}-{theme}.svg" for name in names for theme in THEMES}


def test_without_runs_or_with_several_plans_nothing_is_written(save, make_record, tmp_path) -> None:
    folder = save([make_record(status="failed", metrics={})])
    with pytest.raises(RecordError, match="give no figure"):
        export_figures(folder, tmp_path / "out")
    for name in ("one", "two"):
        shutil.copytree(folder / "runs", tmp_path / "plans" / name / "runs")
    command = [sys.executable, "-P", "-m", "zoobench", "figures", "--results", str(tmp_path / "plans")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "Name it: one, two" in done.stderr
    assert not (tmp_path / "figures").exists()
