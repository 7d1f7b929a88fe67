"""``parquet:PATH``: a folder of ``train-*.parquet`` and ``test-*.parquet`` in the Hugging Face layout.

The image column is ``img`` or ``image``, a struct of ``bytes`` (an encoded image) and ``path``, which is not looked at.
The label column is ``label`` unless another is named: integers, whose class names stand in the schema's metadata, or
text, whose classes are those of ``train`` in alphabetical order. ``uoft-cs/cifar10`` is published like this. Other
splits in the folder are not read: ``val`` is held out of ``train``.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.data.files import check_files, check_links, hash_files, list_folder, list_names, printable
from bench.data.images import SAMPLED, Decoded, Labels, Progress, decode_images, median_short_side
from bench.errors import DataError, did_you_mean
from bench.records import parse_json

SPLITS = ("train", "test")
IMAGE_COLUMNS = ("img", "image")
DEFAULT_LABEL_COLUMN = "label"
_NUMBERED = re.compile(r"-(\d+)-of-(\d+)(?:-[0-9a-f]+)?\.parquet")
"""What follows the split in the name of a shard; the datasets library may add a fingerprint."""


class Parquet:
    """A folder of Parquet shards. Raises `DataError` where it is not one, or not whole."""

    def __init__(self, folder: Path, label_column: str | None = None) -> None:
        self.folder, self.label_column = folder, label_column
        self._schemas: dict[Path, Any] = {}
        self.name = f"parquet:{printable(folder.resolve().name)}"
        self._shards = {split: self._find(split) for split in SPLITS}
        check_links(self._all_shards(), folder)
        check_files(self._all_shards(), "Expected Parquet files of those names.")

    def content_sha256(self, progress: Progress) -> str:
        """A hash of all shards."""
        return hash_files(self._all_shards(), self.folder, self.name, progress)

    def classes(self) -> tuple[str, ...]:
        """The names in the schema's metadata, the same in every shard; where labels are text, those of ``train``."""
        for shard in self._all_shards():
            self._image_of(shard)
        if all(_is_text(self._schema(shard).field(self._label_of(shard)).type) for shard in self._all_shards()):
            return tuple(sorted(set().union(*(self._texts(shard) for shard in self._shards["train"]))))
        names = {shard: self._class_names(shard) for shard in self._all_shards()}
        (first, expected), *others = names.items()
        for shard, found in others:
            if found != expected:
                raise DataError(
                    f"the classes differ between {str(first)!r} ({_few(expected)}) and {str(shard)!r} "
                    f"({_few(found)}). All shards of both splits must name the same classes in the same order."
                )
        return expected

    def decode(self, split: str, size: int, progress: Progress) -> Decoded:
        """The images ``N×3×size×size`` and labels of a split, shard by shard in the order of their names."""
        classes, shards = self.classes(), self._shards[split]
        labels = np.concatenate([self._numbers(shard, classes) for shard in shards])
        files = ((name, io.BytesIO(image)) for shard in shards for name, image in self._images(shard))
        return decode_images(files, labels, size, f"decoding {self.name} {split}", progress)

    def image_side(self) -> int:
        """Of the first images of ``train``."""
        images = itertools.chain.from_iterable(map(self._images, self._shards["train"]))
        return median_short_side((name, io.BytesIO(image)) for name, image in itertools.islice(images, SAMPLED))

    def _all_shards(self) -> list[Path]:
        return [shard for shards in self._shards.values() for shard in shards]

    def _find(self, split: str) -> list[Path]:
        """The shards of a split; where their names say how many there are, just these."""
        entries = list_folder(self.folder)
        shards = [path for path in entries if path.name.startswith(f"{split}-") and path.name.endswith(".parquet")]
        if not shards:
            raise DataError(
                f"the data folder {str(self.folder)!r} holds no {split}-*.parquet. "
                "Expected train-*.parquet and test-*.parquet in the Hugging Face layout."
            )
        numbers = {path: _NUMBERED.fullmatch(path.name, len(split)) for path in shards}
        if all(number is None for number in numbers.values()):
            return shards
        places = {path: (int(match[1]), int(match[2])) if match else None for path, match in numbers.items()}
        totals = {place[1] if place else None for place in places.values()}
        if len(totals) > 1:
            raise DataError(
                f"the shards {list_names(shards)} do not belong together: the number after -of- differs. Images would "
                "be missing or count twice. Keep those of one export and remove the others."
            )
        total = totals.pop() or 0
        found = sorted(place[0] for place in places.values() if place)
        missing = sorted(set(range(total)) - set(found))
        if missing:
            names = [self.folder / f"{split}-{index:05}-of-{total:05}.parquet" for index in missing]
            raise DataError(
                f"{len(found)} of the {total} shards of {split!r} are there: {list_names(names)} "
                f"{'is' if len(missing) == 1 else 'are'} missing. Fetch all shards."
            )
        if found != list(range(total)):
            raise DataError(
                f"the shards {list_names(shards)} are numbered 0 to {total - 1}, each once, if they are one export. "
                "Remove those that are left over."
            )
        return shards

    def _schema(self, shard: Path) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if shard not in self._schemas:
            try:
                self._schemas[shard] = pq.read_schema(shard)
            except (OSError, ValueError, pa.ArrowException) as error:
                raise _unreadable(shard, error) from error
        return self._schemas[shard]

    def _image_of(self, shard: Path) -> str:
        """The name of a shard's image column."""
        names = self._schema(shard).names
        columns = [name for name in IMAGE_COLUMNS if name in names]
        if len(columns) != 1:
            raise DataError(
                f"the file {str(shard)!r} has the columns {', '.join(names)}. Expected images in one column, img or "
                "image (a struct of bytes and path), and labels in another."
            )
        return columns[0]

    def _label_of(self, shard: Path) -> str:
        """The name of a shard's label column."""
        schema = self._schema(shard)
        wanted = self.label_column or DEFAULT_LABEL_COLUMN
        if wanted in schema.names:
            return wanted
        if self.label_column is not None:
            raise DataError(
                f"the file {str(shard)!r} has no column {wanted!r}.{did_you_mean(wanted, schema.names)} It has the "
                f"columns {', '.join(schema.names)}: set label_column to one of them."
            )
        features = _features(schema)
        possible = [
            name
            for name in schema.names
            if name.endswith(f"_{DEFAULT_LABEL_COLUMN}") or _entry(features, name).get("_type") == "ClassLabel"
        ]
        if len(possible) > 1:
            raise DataError(
                f"the file {str(shard)!r} has several columns of labels: {', '.join(possible)}. Say which to learn, "
                f"for example --label-column {possible[0]}; in a plan, label_column = {possible[0]!r}."
            )
        if not possible:
            raise DataError(
                f"the file {str(shard)!r} has the columns {', '.join(schema.names)}. "
                "Expected one named label (integers or text); a label column of another name is chosen with "
                "--label-column NAME."
            )
        return str(possible[0])

    def _class_names(self, shard: Path) -> tuple[str, ...]:
        label = self._label_of(shard)
        names = _entry(_features(self._schema(shard)), label).get("names")
        if not isinstance(names, list):
            raise DataError(
                f"the file {str(shard)!r} names no classes: its schema's metadata lacks "
                f"huggingface → info → features → {label} → names. Write it with the datasets library, "
                "whose ClassLabel feature adds them."
            )
        return tuple(str(name) for name in names)

    def _labels(self, shard: Path) -> Any:
        """A shard's column of labels, not dictionary-encoded, without missing values."""
        import pyarrow as pa

        labels = self._column(shard, self._label_of(shard))
        kind = labels.type.value_type if pa.types.is_dictionary(labels.type) else labels.type
        if labels.null_count or not (pa.types.is_integer(kind) or _is_text(kind)):
            raise DataError(
                f"the column {self._label_of(shard)} of {str(shard)!r} is {labels.type} with {labels.null_count} "
                "missing values. Expected an integer or text in every row."
            )
        return labels.cast(kind)

    def _numbers(self, shard: Path, classes: tuple[str, ...]) -> Labels:
        """A shard's labels as places in ``classes``."""
        if not _is_text(self._schema(shard).field(self._label_of(shard)).type):
            return np.asarray(self._labels(shard).to_numpy().astype(np.int64))
        numbers = {name: number for number, name in enumerate(classes)}
        texts = self._texts(shard)
        unknown = sorted(set(texts) - set(numbers))
        if unknown:
            raise DataError(
                f"the label {unknown[0]!r} in {str(shard)!r} is none of the {len(classes)} classes of 'train' "
                f"({_few(classes)}). Mend the labels, or add images of that class to 'train'."
            )
        return np.array([numbers[text] for text in texts], np.int64)

    def _texts(self, shard: Path) -> list[str]:
        try:
            return list(self._labels(shard).to_pylist())
        except UnicodeDecodeError as error:
            raise DataError(f"the labels in {str(shard)!r} are not UTF-8 text ({error}). Mend them.") from error

    def _images(self, shard: Path) -> Iterator[tuple[str, bytes]]:
        """Each image's name for errors, and its bytes."""
        for row, image in enumerate(self._column(shard, self._image_of(shard))):
            value = image.as_py()
            content = value.get("bytes") if isinstance(value, dict) else None
            if not isinstance(content, bytes):
                raise DataError(
                    f"row {row} of {str(shard)!r} holds no image bytes. Expected a struct of bytes and path, with the "
                    "image embedded in bytes."
                )
            yield f"in row {row} of {str(shard)!r}", content

    def _column(self, shard: Path, name: str) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.read_table(shard, columns=[name], partitioning=None).column(name)
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:  # KeyError: two columns of that name
            raise _unreadable(shard, error) from error


def _features(schema: Any) -> dict[str, Any]:
    """What the datasets library says of the columns, by name; nothing where it did not write the file."""
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def _entry(features: dict[str, Any], name: str) -> dict[str, Any]:
    entry = features.get(name)
    return entry if isinstance(entry, dict) else {}


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _unreadable(shard: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    return DataError(
        f"the file {str(shard)!r} cannot be read as Parquet: {reason} It may be truncated; fetch it again and compare "
        "its checksum."
    )


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f", … {len(names)} in all" if len(names) > 5 else "")
