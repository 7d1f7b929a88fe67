"""``parquet:PATH``: a folder of ``train-*.parquet`` and ``test-*.parquet`` in the Hugging Face layout.

The image column is ``img`` or ``image``, a struct of ``bytes`` (PNG or JPEG) and ``path``; ``label`` is int64; the
class names stand in the schema's metadata. ``uoft-cs/cifar10`` is published like this.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.data.images import Images, Labels, Progress, decode_images, hash_files
from bench.errors import DataError

IMAGE_COLUMNS = ("img", "image")


class Parquet:
    """A folder of Parquet shards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"parquet:{folder.resolve().name}"
        self._shards = {split: self._find(split) for split in ("train", "test")}

    def content_sha256(self, progress: Progress) -> str:
        """A hash of all shards."""
        return hash_files([s for shards in self._shards.values() for s in shards], self.folder, self.name, progress)

    def classes(self) -> tuple[str, ...]:
        """The names in the schema's metadata, the same in every shard; numbers where the layout names no classes."""
        names = {shard: self._class_names(shard) for shards in self._shards.values() for shard in shards}
        (first, expected), *others = names.items()
        for shard, found in others:
            if found != expected:
                raise DataError(
                    f"the classes differ between {str(first)!r} ({_few(expected)}) and {str(shard)!r} "
                    f"({_few(found)}). All shards of both splits must name the same classes in the same order."
                )
        return expected

    def decode(self, split: str, size: int, progress: Progress) -> tuple[Images, Labels]:
        """The images ``N×3×size×size`` and labels of a split, shard by shard in the order of their names."""
        tables = [self._read(shard) for shard in self._shards[split]]
        count = sum(len(labels) for _, _, labels in tables)
        files = ((name, io.BytesIO(image)) for shard, images, _ in tables for name, image in _rows(shard, images))
        images = decode_images(files, count, size, f"decoding {self.name} {split}", progress)
        return images, np.concatenate([labels for _, _, labels in tables])

    def _find(self, split: str) -> list[Path]:
        shards = sorted(self.folder.glob(f"{split}-*.parquet"))
        if not shards:
            raise DataError(
                f"the data folder {str(self.folder)!r} holds no {split}-*.parquet. "
                "Expected train-*.parquet and test-*.parquet in the Hugging Face layout."
            )
        return shards

    def _class_names(self, shard: Path) -> tuple[str, ...]:
        import pyarrow.parquet as pq

        try:
            metadata = pq.read_schema(shard).metadata or {}
        except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
            raise _unreadable(shard, error) from error
        try:
            label = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]
            return tuple(str(name) for name in label["names"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"the file {str(shard)!r} names no classes: its schema's metadata lacks "
                f"huggingface → info → features → label → names ({error!r}). Write it with the datasets library, "
                "whose ClassLabel feature adds them."
            ) from error

    def _read(self, shard: Path) -> tuple[Path, Any, Labels]:
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(shard)
        except (OSError, ValueError) as error:
            raise _unreadable(shard, error) from error
        column = next((name for name in IMAGE_COLUMNS if name in table.column_names), None)
        if column is None or "label" not in table.column_names:
            raise DataError(
                f"the file {str(shard)!r} has the columns {', '.join(table.column_names)}. "
                "Expected img or image (a struct of bytes and path), and label (int64)."
            )
        labels = table.column("label")
        if labels.null_count or not np.issubdtype(labels.type.to_pandas_dtype(), np.integer):
            raise DataError(
                f"the column label of {str(shard)!r} is {labels.type} with {labels.null_count} missing values. "
                "Expected an integer in every row."
            )
        return shard, table.column(column), labels.to_numpy().astype(np.int64)


def _rows(shard: Path, images: Any) -> Iterator[tuple[str, bytes]]:
    for row, image in enumerate(images):
        value = image.as_py()
        content = value.get("bytes") if isinstance(value, dict) else None
        if content is None:
            raise DataError(
                f"row {row} of {str(shard)!r} holds no image bytes. Expected a struct of bytes and path, with the "
                "image embedded in bytes."
            )
        yield f"in row {row} of {str(shard)!r}", content


def _unreadable(shard: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    return DataError(
        f"the file {str(shard)!r} cannot be read as Parquet: {reason} It may be truncated; fetch it again and compare "
        "its checksum."
    )


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f", … {len(names)} in all" if len(names) > 5 else "")
