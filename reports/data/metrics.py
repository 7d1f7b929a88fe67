"""What the reports call each number: label, unit, scale, digits, and which way is better.

Records hold full precision in the units of their keys; this table alone scales and rounds for people.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

MISSING = "–"
_PREFIXES = ("k", "M", "G", "T", "P")


@dataclass(frozen=True)
class Metric:
    """One number of a run: a record's value times ``scale`` is in ``unit``.

    ``digits`` counts decimals, or significant digits where ``significant`` is set. ``better`` is None for a number
    that is neither good nor bad in itself; ``exact`` are counts, which have no interval; ``short`` is the heading
    where space is narrow. ``of`` is what the value depends on: the ``training``, with its data, recipe and budget, or
    the network and how it was measured alone.
    """

    key: str
    label: str
    unit: str
    scale: float = 1.0
    digits: int = 3
    significant: bool = True
    better: Literal["higher", "lower"] | None = None
    exact: bool = False
    short: str = ""
    of: Literal["training", "measurement"] = "training"

    @property
    def axis(self) -> str:
        """Label and unit, as on a figure's axis or above a column."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def in_text(self) -> str:
        """The label within a sentence: ``test accuracy``, ``MACs``."""
        return " ".join(word if any(map(str.isupper, word[1:])) else word.lower() for word in self.label.split())

    def text(self, value: float | None) -> str:
        """The value, scaled and rounded, without its unit; a dash if there is none."""
        return format_number(None if value is None else value * self.scale, self.digits, self.significant)

    def text_with_interval(self, value: float | None, low: float | None, high: float | None) -> str:
        """``91.20 ± 0.35``; the value alone where there is no interval, or one of no width."""
        if (
            self.exact
            or value is None
            or low is None
            or high is None
            or not all(map(math.isfinite, (value, low, high)))
        ):
            return self.text(value)
        half = (high - low) / 2 * self.scale
        if half == 0:
            return self.text(value)
        digits = _decimals(value * self.scale, self.digits) if self.significant else self.digits
        return f"{self.text(value)} ± {format_number(half, digits, significant=False)}"


def format_number(value: float | None, digits: int = 3, significant: bool = True) -> str:
    """A number with thousands separators, to ``digits`` significant digits or decimals; no scientific notation."""
    if value is None or not math.isfinite(value):
        return MISSING
    if significant:
        decimals = _decimals(value, digits)
        value, digits = round(value, digits - 1 - _exponent(value, digits)), decimals
    text = f"{value:,.{digits}f}"
    return text.replace("-", "−")


def format_within(value: float, low: float, high: float, digits: int = 2) -> tuple[str, str, str]:
    """A value and its interval, rounded to ``digits`` significant digits of half the interval: 1,230 in 1,080 – 1,380.

    Without a width, or where an end is not finite, each has three significant digits.
    """
    half = (high - low) / 2
    if not (math.isfinite(half) and half > 0):
        return format_number(value), format_number(low), format_number(high)
    place = digits - 1 - _exponent(half, digits)

    def text(number: float) -> str:
        return format_number(round(number, place), max(place, 0), significant=False)

    return text(value), text(low), text(high)


def whole(value: float) -> str:
    """A count in full, with thousands separators."""
    return format_number(value, 0, significant=False)


def scaled_count(value: float) -> str:
    """A count with an SI prefix, to four significant digits: ``640``, ``62.01 k``, ``118.0 M``, ``4.089 G``."""
    if not math.isfinite(value) or abs(value) < 1000:
        return whole(value)
    thousands = min(_exponent(value, 4) // 3, len(_PREFIXES))
    return f"{format_number(value / 1000**thousands, 4)} {_PREFIXES[thousands - 1]}"


def counted(count: float, noun: str) -> str:
    """``1 seed``, ``3 seeds``, ``1,200 seeds``."""
    return f"{count:,.0f} {noun}{'' if count == 1 else 's'}"


def _decimals(value: float, digits: int) -> int:
    if not value or not math.isfinite(value):
        return 0
    return min(max(digits - 1 - _exponent(value, digits), 0), 9)


def _exponent(value: float, digits: int) -> int:
    """The power of ten of the first digit, once the value is rounded: 1 of 9.996 with three digits."""
    return int(f"{value:.{digits - 1}e}".partition("e")[2])


_TABLE = (
    Metric("test_top1", "Test accuracy", "%", 100, 2, False, "higher", short="Accuracy %"),
    Metric("test_single_view_top1", "Test accuracy, one view", "%", 100, 2, False, "higher", short="One view %"),
    Metric("head_only_top1", "Validation accuracy, head alone", "%", 100, 2, False, "higher", short="Head alone %"),
    Metric("test_loss", "Test loss", "", better="lower"),
    Metric("test_miou", "Test mean IoU", "%", 100, 2, False, "higher", short="Mean IoU %"),
    Metric("test_pixel_accuracy", "Test pixel accuracy", "%", 100, 2, False, "higher", short="Pixel acc. %"),
    Metric("corruption_top1", "Accuracy under corruptions", "%", 100, 2, False, "higher", short="Corrupted %"),
    Metric("val_top1", "Validation accuracy", "%", 100, 2, False, "higher"),
    Metric("val_loss", "Validation loss", "", better="lower"),
    Metric("val_miou", "Validation mean IoU", "%", 100, 2, False, "higher"),
    Metric("val_pixel_accuracy", "Validation pixel accuracy", "%", 100, 2, False, "higher"),
    Metric("train_top1", "Training accuracy", "%", 100, 2, False, "higher"),
    Metric("train_loss", "Training loss", "", better="lower"),
    Metric("calibration_error", "Calibration error", "%", 100, 2, False, "lower"),
    Metric("params", "Parameters", "M", 1e-6, better="lower", exact=True, short="Params M", of="measurement"),
    Metric("macs", "MACs", "M", 1e-6, better="lower", exact=True, short="MACs M", of="measurement"),
    Metric("flops", "FLOPs", "M", 1e-6, better="lower", exact=True, of="measurement"),
    Metric("activations", "Activations", "M", 1e-6, better="lower", exact=True, of="measurement"),
    Metric("throughput_img_per_s", "Inference", "images/s", better="higher", short="Infer img/s", of="measurement"),
    Metric(
        "train_throughput_img_per_s", "Training", "images/s", better="higher", short="Train img/s", of="measurement"
    ),
    Metric("latency_p50_ms", "Latency, median", "ms", better="lower", short="Latency ms", of="measurement"),
    Metric("latency_p95_ms", "Latency, 95th percentile", "ms", better="lower", of="measurement"),
    Metric("latency_p99_ms", "Latency, 99th percentile", "ms", better="lower", of="measurement"),
    Metric(
        "throughput_batch_size",
        "Batch of inference and training",
        "",
        digits=0,
        significant=False,
        short="Batch",
        of="measurement",
    ),
    Metric("best_batch_size", "Best batch size", "", digits=0, significant=False, of="measurement"),
    Metric(
        "best_batch_throughput_img_per_s",
        "Inference at the best batch size",
        "images/s",
        better="higher",
        of="measurement",
    ),
    Metric("energy_per_img_joules", "Energy of inference", "mJ/image", 1e3, better="lower", of="measurement"),
    Metric("train_energy_per_img_joules", "Energy of training", "mJ/image", 1e3, better="lower", of="measurement"),
    Metric(
        "train_peak_memory_bytes",
        "Memory of training",
        "MiB",
        2**-20,
        better="lower",
        short="Memory MiB",
        of="measurement",
    ),
    Metric("infer_peak_memory_bytes", "Memory of inference", "MiB", 2**-20, better="lower", of="measurement"),
    Metric("process_peak_memory_bytes", "Peak memory of the process", "MiB", 2**-20, better="lower"),
    Metric("peak_memory_bytes", "Peak memory", "MiB", 2**-20, better="lower", short="Memory MiB"),
    Metric("macs_per_s", "Achieved", "GMAC/s", 1e-9, better="higher", of="measurement"),
    Metric("macs_utilisation", "Share of peak", "%", 100, 1, False, "higher", of="measurement"),
    Metric("train_seconds", "Training time", "s", better="lower", short="Time s"),
    Metric("wall_seconds", "Wall time", "s", better="lower"),
    Metric("images_seen", "Images seen", "k", 1e-3),
    Metric("epochs", "Epochs", "", digits=3),
    Metric("steps", "Steps", "k", 1e-3),
    Metric("lr_peak", "Peak learning rate", ""),
)

METRICS: dict[str, Metric] = {metric.key: metric for metric in _TABLE}


def metric(key: str) -> Metric:
    """The table's entry for a key, or a plain one for an unknown key."""
    return METRICS.get(key) or Metric(key, key, "")
