"""Published speeds and accuracies of timm's models, to stand beside ours: measured by others, on other machines.

The files are those of timm's ``results`` folder: ``benchmark-infer-….csv`` (speed at an image size and a batch size)
and ``results-….csv`` (accuracy on ImageNet or a relative of it).
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.errors import ConfigError, did_you_mean

SPEED = ("model", "infer_img_size", "infer_samples_per_sec", "infer_batch_size", "param_count")
COUNTS = ("infer_gmacs", "infer_macts")
ACCURACY = ("model", "top1", "img_size", "param_count")


@dataclass(frozen=True)
class PublishedRow:
    """A row of one of the files, in our units; NaN is never stored, None is what the file leaves out.

    ``kind`` is ``speed`` or ``accuracy``, ``file`` the file's place among those given. ``macs`` and ``activations`` are
    of one image.
    """

    model: str
    kind: str
    file: int
    input_size: int
    params: float | None
    throughput_img_per_s: float | None = None
    batch_size: int | None = None
    macs: float | None = None
    activations: float | None = None
    top1: float | None = None


@dataclass(frozen=True)
class Published:
    """What was read: the files' names and hashes, in the order given, and their rows."""

    files: tuple[dict[str, str], ...]
    rows: tuple[PublishedRow, ...]


def load_published(paths: Sequence[str | Path]) -> Published:
    """Read timm's CSV files. Raises `ConfigError` for a file that is none of them, naming columns or the row."""
    files, rows = [], []
    for index, path in enumerate(map(Path, paths)):
        try:
            content = path.read_bytes()
            reader = csv.DictReader(content.decode("utf-8-sig").splitlines())
            table, columns = list(reader), list(reader.fieldnames or ())
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not CSV in UTF-8"
            raise ConfigError(
                f"the published results {str(path)!r} cannot be read: {reason}. Name a CSV file of timm's results."
            ) from error
        kind = _kind(path, columns)
        files.append({"name": path.name, "sha256": hashlib.sha256(content).hexdigest(), "kind": kind})
        rows += [_row(path, line, row, kind, index) for line, row in enumerate(table, start=2)]
    return Published(tuple(files), tuple(rows))


def match_published(published: Published, sizes: Mapping[str, float]) -> dict[str, Any]:
    """The published rows of our models, as a snapshot holds them: of each model and kind that at the nearest size.

    ``sizes`` gives the side in pixels of the images of each of our models, NaN where it is not known. ``timm/NAME``,
    ``torchvision/NAME`` and ``NAME`` are all matched by NAME, and a tag of weights (``resnet18.a1_in1k``) is ignored;
    of several rows at one size the first counts, which in timm's files is the best.
    """
    by_name: dict[str, list[PublishedRow]] = {}
    for row in published.rows:
        by_name.setdefault(_plain(row.model), []).append(row)
    found: dict[str, dict[str, Any]] = {}
    for model, size in sizes.items():
        rows = by_name.get(_plain(model), [])
        for kind in ("speed", "accuracy"):
            of_kind = [row for row in rows if row.kind == kind]
            if of_kind:
                nearest = min(of_kind, key=lambda row: abs(row.input_size - size) if math.isfinite(size) else 0.0)
                found.setdefault(model, {})[kind] = asdict(nearest)
    return {"files": list(published.files), "rows": len(published.rows), "models": found}


def _plain(model: str) -> str:
    """``timm/resnet18.a1_in1k,drop_rate=0.1 [best.pth]`` to ``resnet18``."""
    return model.partition(" [")[0].partition(",")[0].rpartition("/")[2].partition(".")[0]


def _kind(path: Path, columns: list[str]) -> str:
    for kind, needed in (("speed", SPEED), ("accuracy", ACCURACY)):
        if set(needed) <= set(columns):
            return kind
    nearest = min((SPEED, ACCURACY), key=lambda needed: len(set(needed) - set(columns)))
    missing = [name for name in nearest if name not in columns]
    hints = "".join(did_you_mean(name, columns) for name in missing[:1])
    raise ConfigError(
        f"{str(path)!r} is no file of timm's results: it lacks the column{'s' * (len(missing) > 1)} "
        f"{', '.join(missing)}.{hints} Expected {', '.join(SPEED)} (a benchmark-infer file), or {', '.join(ACCURACY)} "
        f"(a results file); found {', '.join(columns[:12]) or 'no columns'}."
    )


def _row(path: Path, line: int, row: Mapping[str, str | None], kind: str, file: int) -> PublishedRow:
    def read(column: str, scale: float = 1.0) -> float:
        text = row.get(column)
        try:
            value = float((text or "").replace(",", ""))
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"line {line} of {str(path)!r}: {column} = {text!r} is not a number.")
        return value * scale

    model, params = row.get("model") or "", read("param_count", 1e6)
    if kind == "accuracy":
        return PublishedRow(model, kind, file, int(read("img_size")), params, top1=read("top1", 0.01))
    known = set(COUNTS) <= {column for column in COUNTS if row.get(column)}
    return PublishedRow(
        model,
        kind,
        file,
        int(read("infer_img_size")),
        params,
        throughput_img_per_s=read("infer_samples_per_sec"),
        batch_size=int(read("infer_batch_size")),
        macs=read("infer_gmacs", 1e9) if known else None,
        activations=read("infer_macts", 1e6) if known else None,
    )
