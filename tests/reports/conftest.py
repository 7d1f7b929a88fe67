"""Seeded records to report on, and a real browser to look at the pages with."""

import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.records import Flag, RunFailure, RunRecord, save_record

ZOO = {  # params, MACs, accuracy, images/s
    "lenet5": (62_006, 651_720, 0.67, 13_500.0),
    "simple_cnn": (94_986, 10_300_000, 0.71, 2_400.0),
    "mobilenet_v1": (3_217_226, 46_000_000, 0.86, 980.0),
    "resnet18": (11_173_962, 555_000_000, 0.90, 180.0),
    "resnet50": (23_520_842, 1_298_000_000, 0.905, 80.0),
}
CLASSES = ["airplane", "automobile", "bird", "cat"]


def record(
    model: str = "lenet5",
    seed: int = 0,
    *,
    status: str = "completed",
    metrics: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    environment: dict[str, Any] | None = None,
    **parts: Any,
) -> RunRecord:
    """A record as the runner writes it, with whatever is to be different."""
    safe = "".join(c if c.isalnum() or c in "_." else "-" for c in model)[:80] or "none"
    return RunRecord(
        run_id=parts.pop("run_id", f"{safe}-s{seed}-{zlib.crc32(model.encode(errors='replace')):08x}"),
        status=status,
        config={
            "model": model, "seed": seed, "data": "digits", "data_sha256": "ab" * 32, "device": "cpu", "threads": 2,
            "recipe": {"name": "fast"}, "budget": {"epochs": 3, "seconds": None}, "measure": {"batch_size": 16},
        } | (config or {}),
        environment={
            "plan": "quick", "command": "zoobench run quick", "started_at": "2026-01-02T03:04:05+00:00",
            "machine": {"cpu": "Test CPU", "cores": 2, "memory_bytes": 2**34, "gpu": None},
            "versions": {"python": "3.11.9", "torch": "2.14.1"}, "git": {"commit": "c0ffee", "dirty": False},
            "data": {"name": "digits", "classes": CLASSES, "train": 1350, "val": 150, "test": 297},
            "peak_macs_per_s": 1.1e11,
        } | (environment or {}),
        metrics={"params": 1000, "macs": 5000, "test_top1": 0.5} if metrics is None else metrics,
        **parts,
    )  # fmt: skip


def zoo_records(seeds: int = 3, models: Sequence[str] = tuple(ZOO)) -> list[RunRecord]:
    """A small zoo with everything a record may hold, the same every time."""
    rng = np.random.default_rng(0)
    records = []
    for model in models:
        params, macs, accuracy, speed = ZOO[model]
        for seed in range(seeds):
            top1 = float(accuracy + rng.normal(0, 0.004))
            img = float(speed * (1 + rng.normal(0, 0.02)))
            confusion = np.full((4, 4), 5.0) + np.diag([80.0, 85.0, 70.0, 60.0])
            history = [
                {"epoch": e, "seconds": (e + 1) * 1e5 / img, "images_seen": (e + 1) * 1e5 / 3,
                 "train_loss": 2 / (e + 1), "val_loss": 1.8 / (e + 1), "val_top1": top1 * (1 - 0.5 ** (e + 2))}
                for e in range(5)
            ]  # fmt: skip
            numbers = {
                "params": params, "macs": macs, "activations": params // 3 + 20_000, "test_top1": top1,
                "val_top1": top1, "throughput_img_per_s": img, "throughput_img_per_s_low": img * 0.98,
                "throughput_img_per_s_high": img * 1.01, "train_throughput_img_per_s": img / 3,
                "peak_memory_bytes": 300_000_000 + 16 * params, "latency_p50_ms": 1234 / img, "epochs": 4.5 + seed / 10,
                "throughput_batch_size": 128,
                "train_seconds": 5e5 / img, "weights_sha256": "ab",
            }  # fmt: skip
            samples = {
                "test_confusion": confusion.tolist(),
                "test_calibration": [[0.3, 0.25, 40], [0.6, 0.5, 60], [0.9, 0.8, 300]],
                "throughput_by_batch": [[1, img / 8], [16, img / 2], [128, img]],
            }
            flags = [Flag(kind="load", phase="train", message="others used 64% of the CPU")] if seed == 1 else []
            records.append(
                record(model, seed, metrics=numbers, history=history, samples=samples, flags=flags,
                       run_id=f"{model}-s{seed}-000000000000")
            )  # fmt: skip
    return records


def troubled_records() -> list[RunRecord]:
    """A failure with a traceback, a divergence without a test accuracy."""
    failure = RunFailure(kind="OutOfMemoryError", message="20 GiB wanted", traceback="Traceback\n  in train")
    diverged = RunFailure(kind="Diverged", message="the loss is NaN at step 7")
    return [
        record("vit_tiny", status="failed", metrics={}, error=failure),
        record("xception", status="diverged", metrics={"params": 5, "test_top1": None}, error=diverged),
    ]


@pytest.fixture
def make_record() -> Callable[..., RunRecord]:
    return record


@pytest.fixture
def save(tmp_path: Path) -> Callable[[Sequence[RunRecord]], Path]:
    """Write records into a results folder, and return it."""

    def save_all(records: Sequence[RunRecord]) -> Path:
        folder = tmp_path / "results"
        for one in records:
            save_record(one, folder)
        return folder

    return save_all


@pytest.fixture(scope="session")
def zoo_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of a small zoo with three seeds, a failure and a divergence."""
    folder = tmp_path_factory.mktemp("zoo") / "results"
    for one in zoo_records() + troubled_records():
        save_record(one, folder)
    return folder


@pytest.fixture(scope="session")
def zoo_report(zoo_results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of that folder."""
    from reports.report import write_report

    out = tmp_path_factory.mktemp("report")
    write_report(zoo_results, out, latex=True)
    return out


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Debian's Chromium, driven by selenium, in a profile of its own; without it the test is skipped, in CI failed."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    try:
        from selenium import webdriver
    except ImportError:
        webdriver = None
    if webdriver is None or not binary or not driver:
        reason = "no Chromium: install Debian's chromium and chromium-driver, and the package selenium"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()
