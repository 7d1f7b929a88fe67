"""Tables keep every number whole at any width."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from reports.data.metrics import scaled_count
from reports.data.terminal import Column, TerminalTable, fold

NAMES = ("vgg16", "deeplabv3_resnet101", "timm/vit_tiny_patch16_224", "seg[bold]x")


def rendered(table: TerminalTable, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue()


def example(**options) -> TerminalTable:
    columns = [
        Column("model"), Column("family", optional=2), Column("year", "count", optional=1),
        Column("params\n10 classes, 32×32", "scaled"), Column("blocks", "count"), Column("ms", "number"),
    ]  # fmt: skip
    table = TerminalTable(columns, **options)
    for name in NAMES:
        table.add_row(name, "a family", None, 118_012_345, 20_029_512, 0.123456)
    return table


@pytest.mark.parametrize("width", [*range(10, 100), 200, 100_000])
def test_no_number_is_cut_or_broken_and_no_line_is_too_long(width: int) -> None:
    text = rendered(example(), width)
    assert "…" not in text
    assert text.count("118.0 M") == text.count("20,029,512") == text.count("0.123") == len(NAMES)
    if width >= len("params 10 classes, 32×32: 118.0 M"):
        assert max(map(len, text.splitlines())) <= width


def test_with_room_every_column_stands_and_a_name_on_one_line() -> None:
    text = rendered(example(title="zoo", caption="a caption"), 100)
    lines = text.splitlines()
    assert (lines[0], lines[-1]) == ("zoo", "a caption")
    for name in NAMES:
        assert sum(line.startswith(f"{name} ") for line in lines) == 1
    assert "Too narrow" not in text
    assert len({line.index("20,029,512") for line in lines if "20,029,512" in line}) == 1


def test_what_a_narrow_terminal_leaves_out_is_named_and_the_least_important_goes_first() -> None:
    text = rendered(example(remedy="--wide shows all."), 60)
    assert "a family" not in text
    assert "Too narrow to show: family. --wide shows all." in " ".join(text.split())
    assert re.search(r"\byear\b", text.partition("──")[0])


@pytest.mark.parametrize("width", range(50, 140))
def test_a_note_folds_before_a_name_does(width: int) -> None:
    columns = [Column("Model"), Column("MACs", "scaled"), Column("Time", "number", optional=1), Column("Note")]
    table = TerminalTable(columns)
    for name in ("simple_cnn", "mobilenet_v1_025"):
        table.add_row(name, 1_234_567, 3.5, "too few epochs: 0.125, 1 noisy, 2 failed, not tested: one seed")
    text = rendered(table, width)
    assert "simple_cnn" in text
    assert "mobilenet_v1_025" in text


def test_exact_shows_scaled_counts_in_full() -> None:
    text = rendered(example(exact=True), 100)
    assert "118,012,345" in text
    assert "118.0 M" not in text


def test_cells_may_be_missing_styled_or_formatted_already() -> None:
    table = TerminalTable([Column("a"), Column("b", "number"), Column("c", "scaled")])
    table.add_row(Text("red", "red"), "91.20 ± 0.35", None)
    table.add_heading("another setting")
    table.add_row("x\x00y", 1234.5, 640)
    text = rendered(table, 60)
    for part in ("91.20 ± 0.35", "–", "another setting", "x␀y", "1,230", "640"):
        assert part in text
    with pytest.raises(ValueError, match="argument"):
        table.add_row("too few")


@given(st.text(st.characters(codec="utf-8", exclude_categories=("C", "M", "Z")), max_size=60), st.integers(2, 30))
def test_folding_loses_nothing(text: str, width: int) -> None:
    assert "".join(fold(text, width)) == text


def test_text_folds_between_words_and_parts_of_names() -> None:
    assert fold("timm/vit_tiny_patch16_224", 12) == ["timm/vit_", "tiny_", "patch16_224"]
    assert fold("gone: 1,234,567 of 20.5", 12) == ["gone:", "1,234,567 of", "20.5"]
    assert fold("Train img/s", 10) == ["Train", "img/s"]
    assert fold("", 5) == [""]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"), (640, "640"), (999, "999"), (1000, "1.000 k"), (62_006, "62.01 k"), (999_949, "999.9 k"),
        (999_950, "1.000 M"), (118_012_345, "118.0 M"), (4_089_184_256, "4.089 G"), (5 * 10**18, "5,000 P"),
    ],
)  # fmt: skip
def test_counts_are_scaled_to_four_significant_digits(count: int, text: str) -> None:
    assert scaled_count(count) == text


@given(st.integers(1000, 10**17))
def test_a_scaled_count_is_the_count_within_its_digits(count: int) -> None:
    number, prefix = scaled_count(count).split()
    value = float(number) * 1000 ** ("kMGTP".index(prefix) + 1)
    assert value == pytest.approx(count, rel=5.1e-4)
    assert len(number.replace(".", "")) == 4
