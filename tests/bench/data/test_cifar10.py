"""The official archive cannot be had here: one of the same form is made, with its own checksums."""

import hashlib
import io
import pickle
import tarfile

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from bench.data.cifar10 import ARCHIVE, FOLDER, Cifar10
from bench.data.images import silent
from bench.data.sources import load_dataset
from bench.errors import DataError

RNG = np.random.default_rng(0)
BATCHES = {
    name: {"data": RNG.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": (np.arange(20) % 10).tolist()}
    for name, _ in CIFAR10.train_list + CIFAR10.test_list
}
META = {"label_names": ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]}
CONTENTS = {name: pickle.dumps(batch) for name, batch in (BATCHES | {"batches.meta": META}).items()}


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def write_archive(path, contents=CONTENTS):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def source(path, contents=CONTENTS):
    splits = {
        "train": tuple(name for name, _ in CIFAR10.train_list),
        "test": ("test_batch",),
        "meta": ("batches.meta",),
    }
    return Cifar10(path, splits, {name: md5(content) for name, content in contents.items()})


@pytest.mark.parametrize("unpacked", [False, True])
def test_archive_and_folder_give_the_same_images(tmp_path, unpacked):
    path = write_archive(tmp_path / ARCHIVE)
    if unpacked:
        with tarfile.open(path) as archive:
            archive.extractall(tmp_path, filter="data")
        path = tmp_path / FOLDER
    cifar = source(path)
    decoded = cifar.decode("train", 32, silent)
    images, labels = decoded.images, decoded.labels
    assert images.shape == (100, 3, 32, 32)
    assert np.array_equal(images[20], BATCHES["data_batch_2"]["data"][0].reshape(3, 32, 32))
    assert labels[:20].tolist() == BATCHES["data_batch_1"]["labels"]
    assert cifar.classes() == tuple(META["label_names"])
    assert cifar.decode("test", 64, silent).images.shape == (20, 3, 64, 64)


class Trap:
    """Unpickling this makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_batch_of_the_wrong_checksum_is_never_unpickled(tmp_path):
    trap = tmp_path / "sprung"
    path = write_archive(tmp_path / ARCHIVE, CONTENTS | {"data_batch_3": pickle.dumps(Trap(trap))})
    with pytest.raises(DataError, match=r"data_batch_3 .* wrong checksum"):
        source(path).decode("train", 32, silent)
    assert not trap.exists()


def test_an_archive_of_the_wrong_checksum_is_refused_whole(tmp_path):
    trap = tmp_path / "sprung"
    write_archive(tmp_path / ARCHIVE, CONTENTS | {"batches.meta": pickle.dumps(Trap(trap))})
    with pytest.raises(DataError, match=f"{ARCHIVE}.*wrong checksum.*{CIFAR10.tgz_md5}"):
        load_dataset("cifar10", data_dir=tmp_path)
    assert not trap.exists()


def test_a_folder_of_the_wrong_checksum_is_refused(tmp_path):
    (tmp_path / FOLDER).mkdir()
    for name, content in CONTENTS.items():
        (tmp_path / FOLDER / name).write_bytes(content)
    with pytest.raises(DataError, match="wrong checksum"):
        load_dataset("cifar10", data_dir=tmp_path)


def test_truncated_archive(tmp_path):
    path = write_archive(tmp_path / ARCHIVE)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(DataError, match="cannot be read"):
        source(path).decode("test", 32, silent)


def test_missing_batch(tmp_path):
    path = write_archive(tmp_path / ARCHIVE, {name: c for name, c in CONTENTS.items() if name != "test_batch"})
    with pytest.raises(DataError, match="test_batch"):
        source(path).decode("test", 32, silent)


def test_no_network_names_the_archive_and_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")  # the port that discards
    with pytest.raises(DataError, match=r"cannot be downloaded.*--data-dir.*digits"):
        load_dataset("cifar10", data_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
