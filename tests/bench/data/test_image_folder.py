"""Trees of image files: each image once, or an error that names what is in the way."""

import io
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bench.data.image_folder import ImageFolder
from bench.data.images import silent
from bench.data.sources import load_dataset
from bench.errors import DataError

SIDE = 8


def image(number: int) -> bytes:
    """A PNG of one colour, which says which image it is."""
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def root(tmp_path):
    """Two classes of two images in each split."""
    root = tmp_path / "animals"
    for number, name in enumerate(f"{split}/{kind}/{i}.png" for split in ("train", "test") for kind in ("cat", "dog")
                                  for i in range(2)):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(image(number))
    return root


def refuses(root, *expected):
    with pytest.raises(DataError) as raised:
        load_dataset(f"folder:{root}", size=SIDE)
    message = str(raised.value)
    assert "\n" not in message
    for text in expected:
        assert str(text) in message


def test_hidden_files_are_left_out(root):
    (root / "train" / ".DS_Store").write_bytes(b"\0")
    (root / "train" / "cat" / "._0.png").write_bytes(b"\0")
    (root / "test" / ".ipynb_checkpoints").mkdir()
    assert len(load_dataset(f"folder:{root}", size=SIDE).train) == 4


def test_images_in_a_folder_of_a_class_folder(root):
    (root / "train/cat/more").mkdir()
    (root / "train/cat/more/a.png").write_bytes(image(9))
    refuses(root, root / "train/cat/more", "is no file", "move them")


def test_a_folder_that_is_named_like_an_image(root):
    (root / "test/dog/x.png").mkdir()
    refuses(root, root / "test/dog/x.png")


def test_an_image_beside_the_class_folders(root):
    (root / "train/lost.png").write_bytes(image(9))
    refuses(root, root / "train/lost.png", "passed over")


@pytest.mark.parametrize("target", ["nowhere.png", "circle.png"])
def test_a_broken_link(root, target):
    (root / "train/cat/circle.png").symlink_to(target)
    refuses(root, root / "train/cat/circle.png", "broken")


def test_a_broken_link_in_the_place_of_a_class_folder(root):
    (root / "train/fox").symlink_to("nowhere")
    refuses(root, root / "train/fox")


def test_a_link_within_the_data_folder_is_followed(root):
    (root / "pool").mkdir()
    (root / "pool/a").write_bytes(image(9))
    (root / "train/cat/a.png").symlink_to(root / "pool/a")
    shutil.move(root / "test/dog", root / "pool/dog")
    (root / "test/dog").symlink_to("../pool/dog")
    dataset = load_dataset(f"folder:{root}", size=SIDE)
    assert dataset.train.images[:, 0, 0, 0].tolist() == [0, 1, 9, 2, 3]
    assert dataset.test.images[:, 0, 0, 0].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("place", ["train/cat/a.png", "train/fox", "test"])
def test_a_link_out_of_the_data_folder(root, tmp_path, place):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.png").write_bytes(image(9))
    if place == "test":
        shutil.rmtree(root / "test")
        (outside / "cat").mkdir()
    (root / place).symlink_to(outside / "a.png" if place.endswith(".png") else outside)
    refuses(root, root / place, "leads out of the data folder", "cp -rL")


@pytest.mark.parametrize(
    ("link", "target"), [("train/cat/a.png", "0.png"), ("test/dog/a.png", "../../train/cat/1.png")]
)
def test_a_link_to_another_image_of_the_set_would_count_it_twice(root, link, target):
    (root / link).symlink_to(target)
    refuses(root, root / link, "twice")


def test_the_test_split_cannot_be_the_train_split(root):
    shutil.rmtree(root / "test")
    (root / "test").symlink_to("train")
    refuses(root, root / "test", "twice")


def test_the_data_folder_itself_may_be_a_link(root, tmp_path):
    (tmp_path / "link").symlink_to(root)
    assert len(load_dataset(f"folder:{tmp_path / 'link'}", size=SIDE).train) == 4


def test_names_that_differ_in_case_are_two_files(root):
    (root / "train/cat/A.png").write_bytes(image(8))
    (root / "train/cat/a.png").write_bytes(image(9))
    if len(list((root / "train/cat").iterdir())) < 4:
        pytest.skip("this file system does not tell case")
    assert len(load_dataset(f"folder:{root}", size=SIDE).train) == 6


def test_an_empty_file(root):
    (root / "train/cat/0.png").write_bytes(b"")
    refuses(root, root / "train/cat/0.png", "cannot be decoded")


def test_names_that_are_not_utf8(root):
    odd = root / "train" / "dog" / os.fsdecode(b"\xff.png")
    for split in ("train", "test"):
        (root / split / "cat").rename(root / split / os.fsdecode(b"caf\xe9"))
    (root / "train/dog/0.png").rename(odd)
    dataset = load_dataset(f"folder:{root}", size=SIDE)
    assert dataset.classes == (r"caf\xe9", "dog")
    json.dumps(dataset.classes, ensure_ascii=False).encode()
    odd.write_bytes(b"")
    with pytest.raises(DataError, match=r"udcff\.png") as raised:
        load_dataset(f"folder:{root}", size=SIDE)
    str(raised.value).encode()
    renamed = root.rename(root.with_name(os.fsdecode(b"\xfe")))
    with pytest.raises(DataError, match=r"not UTF-8\. Rename it"):
        load_dataset(f"folder:{renamed}", size=SIDE)


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "x" * 5000, "a\0b"])
def test_paths_that_no_system_has(path):
    with pytest.raises(DataError, match="the data folder"):
        load_dataset(f"folder:{path}")


def test_a_relative_path_cannot_leave_the_data_dir(root, tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="does not exist"):
        load_dataset("folder:../animals", data_dir=tmp_path / "data", size=SIDE)
    assert len(load_dataset("folder:data/../animals", data_dir=tmp_path, size=SIDE).train) == 4


OBSTACLES = ("folder", "link to another", "broken link", "link out")
ENTRIES = ("image", "image", "hidden", "link inside", *OBSTACLES)
TREES = st.lists(
    st.tuples(st.sampled_from(["train", "test"]), st.sampled_from(["cat", "dog", ""]), st.sampled_from(ENTRIES)),
    max_size=6,
)


@given(TREES)
@settings(max_examples=150, deadline=None)
def test_every_image_once_or_an_error(tree):
    with tempfile.TemporaryDirectory() as folder:
        root, number = Path(folder) / "root", 0
        (root / "pool").mkdir(parents=True)
        (Path(folder) / "outside").write_bytes(image(255))
        expected = {"train": set(), "test": set()}

        def add(split, kind, what):
            nonlocal number
            number += 1
            place = root / split / kind / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            if what == "image":
                place.write_bytes(image(number))
            elif what == "hidden":
                place.with_name(f".{number}.png").write_bytes(image(number))
            elif what == "folder":
                place.mkdir()
                (place / "a.png").write_bytes(image(number))
            elif what == "link inside":
                (root / "pool" / str(number)).write_bytes(image(number))
                place.symlink_to(root / "pool" / str(number))
            else:
                targets = {"broken link": "nowhere", "link out": "../../../outside", "link to another": "1.png"}
                place.symlink_to(targets[what])
            if what in ("image", "link inside"):
                expected[split].add(number)

        for split in expected:
            for kind in ("cat", "dog"):
                add(split, kind, "image")
        for entry in tree:
            add(*entry)
        if any(what in OBSTACLES or (what != "hidden" and not kind) for _, kind, what in tree):
            with pytest.raises(DataError):
                ImageFolder(root).classes()
            return
        source = ImageFolder(root)
        for split, numbers in expected.items():
            decoded = source.decode(split, SIDE, silent)
            assert sorted(decoded.images[:, 0, 0, 0].tolist()) == sorted(numbers)
            assert len(np.unique(decoded.labels)) == 2
