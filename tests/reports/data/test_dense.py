"""Records of dense labels: ranked by mean IoU, and never together with accuracies."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from reports.data.leaderboard import leaderboard, ranked_by, render_leaderboard, separations, to_markdown
from reports.data.loading import load_runs
from reports.data.report_data import load_report_data
from reports.pages.snapshot import take_snapshot
from reports.pages.verify import verify_page
from reports.report import write_report

CLASSES = ["background", "0", "1"]


@pytest.fixture
def dense_records(make_record):
    """Two networks, three seeds. The one with the better mean IoU has the worse pixel accuracy."""
    rng, records = np.random.default_rng(0), []
    for model, miou, pixels, macs in (("dilated", 0.5, 0.8, 2e9), ("strided", 0.3, 0.9, 5e8)):
        for seed in range(3):
            here = float(miou + rng.normal(0, 0.004))
            metrics = {"test_miou": here, "test_pixel_accuracy": pixels, "macs": macs, "params": 10_000_000}
            history = [
                {"epoch": e, "seconds": e + 1.0, "train_loss": 1.0, "val_top1": pixels, "val_miou": here * (e + 1) / 3}
                for e in range(3)
            ]
            records.append(
                make_record(
                    model, seed, metrics=metrics, history=history, config={"data": "mosaic:digits"},
                    environment={"data": {"name": "mosaic:digits", "classes": CLASSES}},
                    samples={"test_confusion": [[80.0, 5, 5], [2, 30, 7], [1, 3, 20]]},
                )
            )  # fmt: skip
    return records


def test_dense_records_are_ranked_by_mean_iou(save, dense_records) -> None:
    runs = load_runs(save(dense_records))
    table = leaderboard(runs)
    assert ranked_by(table) == "test_miou"
    assert table.model.tolist() == ["dilated", "strided"]
    assert table["rank"].tolist() == [1, 2]
    assert table.test_pixel_accuracy.is_monotonic_increasing
    assert separations(runs, table.setting[0]).separated.all()


def test_pixels_and_images_are_ranked_apart(save, make_record, dense_records) -> None:
    accurate = [make_record(name, metrics={"test_top1": top1}) for name, top1 in (("a", 0.9), ("b", 0.4), ("c", 0.2))]
    table = leaderboard(load_runs(save(dense_records + accurate)))
    for data, names in (("digits", ["a", "b", "c"]), ("mosaic:digits", ["dilated", "strided"])):
        here = table[table.setting.str.startswith(f"{data} ")]
        assert here.model.tolist() == names
        assert here["rank"].tolist() == list(range(1, len(names) + 1))
    text = to_markdown(table)
    assert "Ranks are the order of the accuracies, not tested" in text
    mean_iou = text[text.index("mosaic:digits") :]
    assert "Test mean IoU (%)" in mean_iou
    assert "Test accuracy" not in mean_iou


def test_the_page_speaks_of_mean_iou_and_can_be_verified(save, dense_records, tmp_path) -> None:
    results = save(dense_records)
    page = write_report(results, tmp_path / "out")[0]
    text = page.read_text(encoding="utf-8")
    assert "dilated has the highest test mean IoU" in text
    for title in ("Test mean IoU against MACs", "Validation mean IoU over epochs"):
        assert title in text
    for word in ("accuracies", "test accuracy", "Test accuracy", "5 images"):
        assert word not in text
    assert "% of its pixels" in text
    assert verify_page(page, results).problems == []
    snapshot = take_snapshot(load_report_data(results))
    assert "val_miou" in snapshot["curves"]["columns"]
    assert snapshot["target"]["val_miou"] in (0.35, 0.4)


def test_names_that_differ_in_an_option_stay_apart_on_a_narrow_terminal(save, make_record) -> None:
    names = [f"deeplabv3_resnet18,output_stride={stride}" for stride in (8, 16, 32)]
    numbers = {"test_pixel_accuracy": 0.5, "params": 15_901_515, "macs": 2.35e9, "throughput_img_per_s": 1234.5}
    numbers |= {"train_throughput_img_per_s": 432.1, "peak_memory_bytes": 1e9, "train_seconds": 1234.0}
    records = [
        make_record(name, metrics=numbers | {"test_miou": 0.1 * k}, config={"data": "mosaic:digits"})
        for k, name in enumerate(names)
    ]
    out = io.StringIO()
    runs = load_runs(save(records))
    Console(file=out, width=80).print(render_leaderboard(runs))
    text = out.getvalue()
    assert "".join(text.split()).count("deeplabv3_") == len(names)
    for stride in (8, 16, 32):
        assert re.search(rf"stride={stride}\s", text)
    assert "15.9" in text
    assert "…" not in text
