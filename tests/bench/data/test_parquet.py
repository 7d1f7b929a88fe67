"""Folders of Parquet shards: whole or refused, and labels of every kind that is published."""

import io
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bench.data.images import silent
from bench.data.parquet import Parquet
from bench.data.sources import load_dataset
from bench.errors import DataError

SIDE = 8
CLASSES = ("cat", "dog")


def image(number: int) -> bytes:
    """A PNG of one colour, which says which image it is."""
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, numbers, names=(("label", CLASSES),), **labels):
    """A shard of those images; of each column of labels, in ``labels``, the names may stand in the metadata."""
    images = [{"bytes": image(number), "path": "/etc/passwd"} for number in numbers]
    columns = {"img": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}
    columns |= labels or {"label": pa.array([number % 2 for number in numbers], pa.int64())}
    features = {name: {"names": classes, "_type": "ClassLabel"} for name, classes in names}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if names else {}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)


@pytest.fixture
def root(tmp_path):
    write(tmp_path / "train-00000-of-00002.parquet", (0, 1))
    write(tmp_path / "train-00001-of-00002.parquet", (2, 3))
    write(tmp_path / "test-00000-of-00001.parquet", (4, 5))
    return tmp_path


def load(root, **options):
    return load_dataset(f"parquet:{root}", size=SIDE, **options)


def refuses(root, *expected, **options):
    with pytest.raises(DataError) as raised:
        load(root, **options)
    message = str(raised.value)
    assert "\n" not in message
    for text in expected:
        assert str(text) in message


def numbers_of(split):
    return split.images[:, 0, 0, 0].tolist()


def test_a_shard_is_missing(root):
    (root / "train-00001-of-00002.parquet").unlink()
    refuses(root, "1 of the 2 shards of 'train'", root / "train-00001-of-00002.parquet", "missing")


def test_a_shard_of_an_earlier_export(root):
    write(root / "train-00000-of-00001.parquet", (0, 1, 2, 3))
    refuses(root, root / "train-00000-of-00001.parquet", root / "train-00000-of-00002.parquet", "do not belong")


def test_a_shard_without_a_number_among_numbered_ones(root):
    write(root / "train-more.parquet", (6, 7))
    refuses(root, root / "train-more.parquet", "do not belong")


def test_a_shard_twice_under_two_fingerprints(root):
    (root / "test-00000-of-00001.parquet").rename(root / "test-00000-of-00001-0a1b.parquet")
    assert numbers_of(load(root).test) == [4, 5]
    write(root / "test-00000-of-00001-ff00.parquet", (4, 5))
    refuses(root, root / "test-00000-of-00001-0a1b.parquet", root / "test-00000-of-00001-ff00.parquet", "left over")


def test_a_shard_numbered_beyond_the_total(root):
    write(root / "train-00002-of-00002.parquet", (6, 7))
    refuses(root, root / "train-00002-of-00002.parquet", "left over")


def test_shards_without_totals_are_all_read(root):
    for path in list(root.glob("train-*")):
        path.rename(root / f"{path.name[:11]}.parquet")
    assert numbers_of(load(root).train) == [0, 1, 2, 3]


def test_a_broken_link_and_a_folder_in_the_place_of_a_shard(root):
    shard = root / "test-00000-of-00001.parquet"
    shard.unlink()
    shard.symlink_to("nowhere")
    refuses(root, shard, "broken")
    shard.unlink()
    shard.mkdir()
    refuses(root, shard, "is no file")


def test_a_link_to_another_shard_would_count_its_images_twice(root):
    (root / "train-00001-of-00002.parquet").unlink()
    (root / "train-00001-of-00002.parquet").symlink_to("train-00000-of-00002.parquet")
    refuses(root, "twice")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_text_labels_have_the_classes_of_train(root, kind):
    for name, numbers, labels in (
        ("train-00000-of-00002", (0, 1), ["dog", "ape"]),
        ("train-00001-of-00002", (2, 3), ["cat", "cat"]),
        ("test-00000-of-00001", (4, 5), ["dog", "cat"]),
    ):
        write(root / f"{name}.parquet", numbers, names=(), label=pa.array(labels).cast(kind))
    dataset = load(root)
    assert dataset.classes == ("ape", "cat", "dog")
    assert dataset.train.labels.tolist() == [2, 0, 1, 1]
    assert dataset.test.labels.tolist() == [2, 1]
    write(root / "test-00000-of-00001.parquet", (4, 5), names=(), label=pa.array(["dog", "eel"]).cast(kind))
    refuses(root, "'eel'", root / "test-00000-of-00001.parquet", "none of the 3 classes of 'train'")


def test_dictionary_encoded_numbers_are_numbers(root):
    labels = pa.array([1, 0], pa.int64()).dictionary_encode()
    write(root / "train-00000-of-00002.parquet", (0, 1), label=labels)
    assert load(root).train.labels.tolist() == [1, 0, 0, 1]


def cifar100(root, **columns):
    fine, coarse = ("bee", "cow", "elm"), ("small", "large")
    for path in root.glob("*.parquet"):
        labels = {"fine_label": pa.array([2, 1]), "coarse_label": pa.array([0, 1])} | columns
        write(path, (0, 1), names=(("fine_label", fine), ("coarse_label", coarse)), **labels)


def test_two_columns_of_labels_are_a_choice_to_be_made(root):
    cifar100(root)
    refuses(root, "fine_label, coarse_label", "--label-column fine_label", "in a plan, label_column = 'fine_label'")
    fine, coarse = load(root, label_column="fine_label"), load(root, label_column="coarse_label")
    assert fine.classes == ("bee", "cow", "elm")
    assert fine.train.labels.tolist() == [2, 1, 2, 1]
    assert coarse.classes == ("small", "large")
    assert coarse.train.labels.tolist() == [0, 1, 0, 1]
    assert fine.sha256 != coarse.sha256
    refuses(root, "'fine_lable'", "Did you mean 'fine_label'", label_column="fine_lable")


def test_label_is_taken_where_there_is_one(root):
    cifar100(root, label=pa.array([1, 0]))
    refuses(root, "names no classes")
    for path in root.glob("*.parquet"):
        write(path, (0, 1), label=pa.array([1, 0]), coarse_label=pa.array([0, 0]))
    assert load(root).train.labels.tolist() == [1, 0, 1, 0]


def test_the_only_column_of_labels_may_have_another_name(root):
    for path in root.glob("*.parquet"):
        write(path, (0, 1), names=(("digit", CLASSES),), digit=pa.array([0, 1]))
    assert load(root).classes == CLASSES


def test_a_label_column_is_for_parquet_files_only():
    with pytest.raises(DataError, match="label_column = 'label' chooses a column of Parquet files"):
        load_dataset("digits", label_column="label")


def test_two_columns_of_images(root):
    path = root / "test-00000-of-00001.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("image", table.column("img")), path)
    refuses(root, path, "Expected images in one column")


SHARDS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 3), st.sampled_from(["", "-ab12"])), min_size=1, max_size=5, unique=True
)


@given(SHARDS)
@settings(max_examples=100, deadline=None)
def test_every_image_once_or_an_error(shards):
    with tempfile.TemporaryDirectory() as folder:
        root, number = Path(folder), 0
        write(root / "test-00000-of-00001.parquet", (0, 1))
        for index, total, fingerprint in shards:
            number += 2
            write(root / f"train-{index:05}-of-{total:05}{fingerprint}.parquet", (number, number + 1))
        whole = sorted(index for index, _, _ in shards) == list(range(shards[0][1]))
        if not whole or len({total for _, total, _ in shards}) > 1:
            with pytest.raises(DataError, match="shards"):
                Parquet(root)
            return
        images = Parquet(root).decode("train", SIDE, silent).images
        assert sorted(images[:, 0, 0, 0].tolist()) == list(range(2, number + 2))
