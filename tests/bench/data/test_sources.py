import hashlib
import io
import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from bench.data import cache
from bench.data.decoding import DECODER_VERSION
from bench.data.image_folder import ImageFolder
from bench.data.images import silent
from bench.data.parquet import Parquet
from bench.data.sources import decoded_size, hold_out, limit, load_dataset, split_train
from bench.errors import DataError

CLASSES = ["cat", "dog"]


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=95)
    return buffer.getvalue()


def random_pixels(seed: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def write_shard(path, images, labels, classes=CLASSES, column="img"):
    struct = pa.array([{"bytes": image, "path": f"{i}.png"} for i, image in enumerate(images)],
                      pa.struct([("bytes", pa.binary()), ("path", pa.string())]))  # fmt: skip
    table = pa.table({column: struct, "label": pa.array(labels, pa.int64())})
    features = {"label": {"names": classes, "_type": "ClassLabel"}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    write_shard(folder / "train-00000-of-00002.parquet", [encode(random_pixels(i)) for i in range(4)], [0, 1, 0, 1])
    write_shard(folder / "train-00001-of-00002.parquet", [encode(random_pixels(i)) for i in range(4, 6)], [1, 1])
    write_shard(folder / "test-00000-of-00001.parquet", [encode(random_pixels(i)) for i in range(6, 8)], [0, 1])
    return folder


@pytest.fixture
def folders(tmp_path):
    root = tmp_path / "pictures"
    for split, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                (root / split / name / f"{i}.png").write_bytes(encode(random_pixels(10 * label + i)))
    return root


def test_digits_are_scikit_learns(tmp_path):
    dataset = load_dataset("digits")
    assert dataset.train.images.shape == (1500, 3, 32, 32)
    assert dataset.test.images.shape == (297, 3, 32, 32)
    assert dataset.train.images.dtype == np.uint8
    labels = np.concatenate([dataset.train.labels, dataset.test.labels])
    assert np.array_equal(np.bincount(labels), np.bincount(load_digits().target))
    assert np.array_equal(dataset.train.images[:, 0], dataset.train.images[:, 2])
    assert dataset.classes == tuple("0123456789")


def test_digits_shrunk_to_their_own_size_are_the_originals():
    dataset = load_dataset("digits", size=8)
    order = np.random.RandomState(0).permutation(1797)
    originals = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    assert np.array_equal(dataset.train.images[:, 1], originals[order[:1500]])
    assert np.array_equal(dataset.test.images[:, 1], originals[order[1500:]])


def test_parquet_holds_the_very_pixels_in_order(shards):
    dataset = load_dataset(f"parquet:{shards}")
    assert dataset.name == "parquet:tiny"
    assert dataset.classes == tuple(CLASSES)
    for i, image in enumerate(dataset.train.images):
        assert np.array_equal(image.transpose(1, 2, 0), random_pixels(i))
    assert dataset.train.labels.tolist() == [0, 1, 0, 1, 1, 1]
    assert dataset.test.labels.tolist() == [0, 1]


def test_parquet_column_may_be_image_and_bytes_may_be_jpeg_of_any_size(shards):
    pixels = np.full((48, 48, 3), (200, 100, 50), np.uint8)
    write_shard(shards / "test-00000-of-00001.parquet", [encode(pixels, "JPEG")], [0], column="image")
    image = load_dataset(f"parquet:{shards}", size=24).test.images[0]
    assert image.shape == (3, 24, 24)
    assert np.abs(image.astype(int) - np.array([200, 100, 50])[:, None, None]).max() <= 3


def test_folder_holds_the_very_pixels_by_class(folders):
    dataset = load_dataset(f"folder:{folders}")
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.test.labels.tolist() == [0, 0, 1, 1]
    assert np.array_equal(dataset.train.images[4].transpose(1, 2, 0), random_pixels(11))


def test_images_are_decoded_at_no_more_pixels_than_they_have(shards, folders):
    for name, own in {"digits": 32, f"parquet:{shards}": 32, f"folder:{folders}": 32}.items():
        assert decoded_size(name, 224) == own
        assert decoded_size(name, 28) == 28
    large = [encode(random_pixels(i, 160)) for i in range(6)]  # most of them
    write_shard(shards / "train-00000-of-00002.parquet", [encode(random_pixels(6)), *large], [0, 1, 0, 1, 0, 1, 0])
    assert decoded_size(f"parquet:{shards}", 224) == 160
    assert decoded_size(f"parquet:{shards}", 96) == 96
    assert decoded_size(f"mosaic:parquet:{shards}", 520) == 520
    write_shard(shards / "train-00000-of-00002.parquet", [], [])  # the other one's images count
    assert decoded_size(f"parquet:{shards}", 224) == 32
    write_shard(shards / "train-00001-of-00002.parquet", [], [])
    assert decoded_size(f"parquet:{shards}", 224) == 32
    write_shard(shards / "train-00000-of-00002.parquet", [b"no image"], [0])
    with pytest.raises(DataError, match="cannot be decoded"):
        decoded_size(f"parquet:{shards}", 224)


def test_relative_path_is_found_in_the_data_folder(shards, monkeypatch):
    assert len(load_dataset("parquet:tiny", data_dir=shards.parent).train) == 6
    monkeypatch.setenv("ZOOBENCH_DATA", str(shards.parent))
    assert len(load_dataset("parquet:tiny").train) == 6


def test_real_images_have_the_published_shape_and_balance(cifar10_jpeg):
    dataset = load_dataset(f"parquet:{cifar10_jpeg}")
    assert dataset.train.images.shape == (50_000, 3, 32, 32)
    assert dataset.test.images.shape == (10_000, 3, 32, 32)
    assert np.array_equal(np.bincount(dataset.train.labels), [5000] * 10)
    assert np.array_equal(np.bincount(dataset.test.labels), [1000] * 10)
    # The known statistics of CIFAR-10, which compression moves by less than half a grey level.
    mean = dataset.train.images.mean((0, 2, 3), dtype=np.float64)
    assert np.abs(mean - np.array([0.4914, 0.4822, 0.4465]) * 255).max() < 0.5


def test_content_decides_the_key_not_the_place(shards, tmp_path):
    here = load_dataset(f"parquet:{shards}")
    shards.rename(tmp_path / "moved")
    moved = load_dataset(f"parquet:{tmp_path / 'moved'}")
    assert moved.sha256 == here.sha256
    write_shard(tmp_path / "moved/test-00000-of-00001.parquet", [encode(random_pixels(99))] * 2, [0, 1])
    changed = load_dataset(f"parquet:{tmp_path / 'moved'}")
    assert changed.sha256 != here.sha256
    assert np.array_equal(changed.test.images[0].transpose(1, 2, 0), random_pixels(99))


def test_second_load_reads_the_cache_and_maps_it(shards, monkeypatch):
    first = load_dataset(f"parquet:{shards}")
    monkeypatch.setattr("bench.data.sources.Parquet.decode", None)  # decoding again would fail
    second = load_dataset(f"parquet:{shards}")
    assert np.array_equal(first.train.images, second.train.images)
    assert isinstance(second.train.images, np.memmap)


@pytest.mark.parametrize("damage", ["truncate", "flip", "no index"])
def test_damaged_cache_is_built_again_and_said(shards, damage, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOOBENCH_CACHE", str(tmp_path / "cache"))
    dataset = load_dataset(f"parquet:{shards}")
    (folder,) = (cache.cache_folder() / "datasets").iterdir()
    images = np.array(dataset.train.images)
    file = folder / "train_images.npy"
    if damage == "truncate":
        os.truncate(file, 1000)
    elif damage == "flip":
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
    else:
        (folder / "index.json").unlink()
    with pytest.warns(UserWarning, match="damaged"):
        again = load_dataset(f"parquet:{shards}")
    assert np.array_equal(again.train.images, images)


@pytest.mark.parametrize("file", ["folder", "parquet"])
def test_a_decoder_that_changes_some_pixels_changes_the_identity_of_those_data_sets_only(
    folders, shards, file, monkeypatch
):
    name = f"folder:{folders}" if file == "folder" else f"parquet:{shards}"

    def add(pixels):
        if file == "folder":
            (folders / "test" / "cat" / "0.png").write_bytes(encode(pixels))
        else:
            write_shard(shards / "test-00000-of-00001.parquet", [encode(pixels)], [0])

    deep, plain = random_pixels(1)[..., 0].astype(np.uint16) * 257, random_pixels(1)
    found = []
    for pixels in (deep, plain):
        add(pixels)
        before = load_dataset(name)
        monkeypatch.setattr("bench.data.sources.DECODER_VERSION", 3)
        assert load_dataset(name).sha256 == before.sha256  # what is cached apart is the same data set
        monkeypatch.undo()
        content = ImageFolder(folders) if file == "folder" else Parquet(shards)
        identity = f"{content.content_sha256(silent)} size=32 decoder={2 if pixels is deep else 1}"
        found.append(before.sha256 == hashlib.sha256(identity.encode()).hexdigest())
    assert found == [True, True]


def test_pixels_of_an_earlier_decoder_are_not_taken_from_the_cache(folders, monkeypatch):
    name = f"folder:{folders}"
    load_dataset(name)
    monkeypatch.setattr("bench.data.sources.DECODER_VERSION", DECODER_VERSION + 1)
    monkeypatch.setattr("bench.data.sources.ImageFolder.decode", None)
    with pytest.raises(TypeError, match="not callable"):  # it is decoded again
        load_dataset(name)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (["1", "1"], ["'1' more than once"]),
        (["3"], ["single class '3'", "Two classes"]),
        (["1", "10"], ["no class '10'"]),
    ],
)
def test_classes_that_cannot_be_told_apart(classes, expected):
    refuses("digits", *expected, classes=classes)


def test_a_mosaic_of_one_class_has_its_background_besides():
    dataset = load_dataset("mosaic:digits", size=16, classes=["3"])
    assert dataset.classes == ("background", "3")
    refuses("mosaic:digits", "'3' more than once", size=16, classes=["3", "3"])


def test_a_folder_of_a_single_class(folders):
    for split in ("train", "test"):
        shutil.rmtree(folders / split / "dog")
    refuses(f"folder:{folders}", "single class 'cat'")


def test_chosen_classes_that_a_split_lacks(shards):
    write_shard(shards / "test-00000-of-00001.parquet", [encode(random_pixels(1))], [2], classes=["cat", "dog", "eel"])
    for path in shards.glob("train-*"):
        write_shard(path, [encode(random_pixels(1))] * 2, [0, 1], classes=["cat", "dog", "eel"])
    refuses(f"parquet:{shards}", "'test'", "no images of cat, dog", classes=["cat", "dog"])


def test_class_names_that_repeat(shards):
    for path in shards.glob("*.parquet"):
        write_shard(path, [encode(random_pixels(1))], [0], classes=["cat", "cat"])
    refuses(f"parquet:{shards}", "'cat' more than once")


def test_a_val_that_would_be_empty_is_refused_where_it_is_needed():
    labels = np.repeat(np.arange(10), 4)
    train, val = split_train(labels, None, 0.1)
    assert (len(train), len(val)) == (40, 0)
    with pytest.raises(DataError, match=r"target_top1 is looked for on 'val'.*Raise val_fraction"):
        split_train(labels, None, 0.1, needs_val=True)
    train, val = split_train(labels, None, 0.25, needs_val=True)
    assert np.bincount(labels[val]).tolist() == [1] * 10
    assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(40))


def test_a_val_that_takes_everything_is_refused():
    with pytest.raises(DataError, match="leaves none to train on"):
        split_train(np.arange(5), None, 0.9)


def test_a_limit_comes_before_val_is_held_out():
    labels = np.repeat(np.arange(2), 50)
    train, val = split_train(labels, 40, 0.25)
    assert np.array_equal(np.sort(np.concatenate([train, val])), limit(100, 40))


def refuses(name, *expected, **options):
    with pytest.raises(DataError) as raised:
        load_dataset(name, **options)
    message = str(raised.value)
    assert "\n" not in message
    for text in expected:
        assert str(text) in message


def test_truncated_shard(shards):
    path = shards / "train-00001-of-00002.parquet"
    os.truncate(path, path.stat().st_size // 2)
    refuses(f"parquet:{shards}", path, "truncated")


def test_shard_with_damaged_pages(shards):
    path = shards / "train-00000-of-00002.parquet"
    content = bytearray(path.read_bytes())
    content[100:2000] = b"\xff" * 1900
    path.write_bytes(content)
    refuses(f"parquet:{shards}", path)


@pytest.mark.parametrize(
    "content", [b"", b"not an image", encode(random_pixels(1))[:200], encode(random_pixels(1), "JPEG")[:300]]
)
def test_undecodable_image(shards, content):
    path = shards / "test-00000-of-00001.parquet"
    write_shard(path, [encode(random_pixels(1)), content], [0, 1])
    refuses(f"parquet:{shards}", f"row 1 of {str(path)!r}", "cannot be decoded")


@pytest.mark.parametrize("label", [-1, 2, 10**12])
def test_label_out_of_range(shards, label):
    write_shard(shards / "test-00000-of-00001.parquet", [encode(random_pixels(1))] * 2, [0, label])
    refuses(f"parquet:{shards}", label, "'test'", "2 classes")


def test_missing_label(shards):
    write_shard(shards / "test-00000-of-00001.parquet", [encode(random_pixels(1))] * 2, [0, None])
    refuses(f"parquet:{shards}", "missing values")


def test_parquet_classes_that_differ(shards):
    write_shard(shards / "test-00000-of-00001.parquet", [encode(random_pixels(1))], [0], classes=["dog", "cat"])
    refuses(f"parquet:{shards}", "classes differ", "test-00000-of-00001.parquet")


def test_parquet_without_class_names(shards):
    path = shards / "train-00000-of-00002.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata({}), path)
    refuses(f"parquet:{shards}", path, "names no classes")


def test_parquet_of_other_columns(shards):
    path = shards / "train-00000-of-00002.parquet"
    pq.write_table(pq.read_table(path).rename_columns(["photo", "label"]), path)
    refuses(f"parquet:{shards}", path, "photo")


def test_folder_without_a_split_or_shards(tmp_path, shards):
    refuses(f"parquet:{tmp_path}", "train-*.parquet")
    refuses(f"folder:{shards}", shards / "train")


def test_missing_folder_names_where_it_was_looked_for(tmp_path):
    refuses("parquet:nowhere", "nowhere", tmp_path, data_dir=tmp_path)
    refuses("folder:", "lacks its path")


def test_folder_classes_that_differ(folders):
    (folders / "test" / "dog").rename(folders / "test" / "fox")
    refuses(f"folder:{folders}", "dog, fox")


def test_folder_with_an_empty_class(folders):
    (folders / "train" / "eel").mkdir()
    refuses(f"folder:{folders}", folders / "train" / "eel", "empty")


def test_folder_with_an_undecodable_image(folders):
    (folders / "train" / "cat" / "1.png").write_bytes(b"\x89PNG\r\n")
    refuses(f"folder:{folders}", folders / "train" / "cat" / "1.png")


def test_unknown_data_set():
    refuses("digitz", "Did you mean 'digits'?")
    refuses("cifar100", "Did you mean 'cifar10'?")
    refuses("parquet", "parquet:PATH")


def test_cache_that_cannot_be_written(shards, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ZOOBENCH_CACHE", str(tmp_path / "file"))
    refuses(f"parquet:{shards}", "ZOOBENCH_CACHE")


def test_full_disk_leaves_no_half_cache(shards, small_disk, monkeypatch):
    monkeypatch.setenv("ZOOBENCH_CACHE", str(small_disk))
    refuses(f"parquet:{shards}", "No space left", size=320)
    assert list((small_disk / "datasets").iterdir()) == []


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.5])
def test_hold_out_is_stratified_disjoint_and_fixed(fraction):
    labels = np.repeat(np.arange(5), [10, 20, 30, 40, 100])
    train, val = hold_out(labels, fraction)
    assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(200))
    assert np.bincount(labels[val], minlength=5).tolist() == [round(fraction * n) for n in (10, 20, 30, 40, 100)]
    again = hold_out(labels, fraction)
    assert np.array_equal(val, again[1])


def test_limit_draws_from_everywhere_without_repeating():
    chosen = limit(10_000, 100)
    assert len(np.unique(chosen)) == 100
    assert chosen.min() < 1000
    assert chosen.max() > 9000
    assert np.array_equal(limit(10, 20), np.arange(10))
    assert np.array_equal(limit(10, None), np.arange(10))
