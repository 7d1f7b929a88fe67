"""Every stream of batches, with every augmentation, on a GPU that is not there."""

import fake_cuda as module
import pytest
import torch
from fake_cuda import DEVICE, UPLOAD, fake_cuda

from bench.data import augment
from bench.data.augment import BatchStream, Normalization, Resize
from bench.data.mosaic import MosaicStream
from bench.data.sources import MosaicLayout
from bench.data.transforms import Augmentation

IMAGES = torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8)
LABELS = torch.randint(0, 10, (32,))
NORMALIZATION = Normalization((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
AN_EPOCH = {  # what an epoch may copy before its first batch
    (UPLOAD, "bench/data/augment.py:BatchStream.epoch"): "where each crop begins, and the order of the labels",
    (UPLOAD, "bench/data/augment.py:BatchStream._holes"): "the centres of cutout's squares",
    (UPLOAD, "bench/data/augment.py:BatchStream.in_order"): "where each image begins",
    (UPLOAD, "bench/data/mosaic.py:MosaicStream._draw.<locals>.<genexpr>"): "all draws of the epoch's canvases",
}
A_BATCH = {
    (UPLOAD, "bench/data/augment.py:BatchStream._on_device"): "images that the CPU prepares, from pinned memory",
}
AUGMENTATIONS = [
    {},
    {"flip": True, "crop_padding": 2},
    {"flip": "alternating", "crop_padding": 4, "crop_fill": "reflect"},
    {"cutout": 8},
    {"mixup": 0.2},
    {"cutmix": 1.0},
    {"mixup": 0.2, "cutmix": 1.0},
]
ONE_BY_ONE = [{"rotation": 15.0}, {"color_jitter": 0.4}, {"randaugment": 2}]


def stream(channels_last=True, resize=None, **augmentation):
    return BatchStream(
        IMAGES,
        LABELS,
        8,
        NORMALIZATION,
        device=DEVICE,
        channels_last=channels_last,
        augmentation=Augmentation(**augmentation),
        resize=resize,
        num_classes=10,
    )


def run_through(batches):
    count = 0
    for images, labels in batches:
        assert images.device == labels.device == DEVICE
        assert images.dtype == torch.float32
        count += 1
    return count


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=str)
def test_batches_are_made_on_the_device(augmentation, channels_last):
    with fake_cuda() as watch:
        batches = stream(channels_last, **augmentation)
        watch.seen.clear()
        assert run_through(batches.epoch(1)) == run_through(batches.in_order()) == 4
        assert watch.seen.keys() <= AN_EPOCH.keys()
        assert max(watch.seen.values()) <= 2


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_images_are_resized_on_the_device(mode):
    with fake_cuda() as watch:
        batches = stream(resize=Resize(48, mode))
        watch.seen.clear()
        assert run_through(batches.epoch(0)) == 4
        assert watch.seen.keys() <= AN_EPOCH.keys()


@pytest.mark.parametrize("augmentation", ONE_BY_ONE, ids=str)
def test_what_goes_image_by_image_is_copied_once_a_batch(augmentation):
    with fake_cuda() as watch:
        batches = stream(**augmentation)
        watch.seen.clear()
        assert run_through(batches.epoch(1)) == 4
        assert watch.seen.keys() <= (AN_EPOCH | A_BATCH).keys()
        assert {watch.seen[place] for place in A_BATCH} == {4}


def launched(batches, watch):
    watch.seen.clear()
    watch.launches = 0
    run_through(batches.epoch(1))
    return watch.launches


@pytest.mark.parametrize("augmentation", ONE_BY_ONE, ids=str)
def test_image_by_image_on_the_device_is_found(augmentation, monkeypatch):
    """By the copies of what is drawn for each image, or where nothing is copied, by its own operators for each."""
    monkeypatch.setattr(module, "_some_value", lambda tensor: 1)  # RandAugment's operation 0 does nothing
    with fake_cuda() as watch:
        before = launched(stream(**augmentation), watch)
        assert before < len(IMAGES) * 2
        monkeypatch.setattr(augment, "_choose_home", lambda device, stored_bytes, one_by_one: device)
        assert launched(stream(**augmentation), watch) > before + 4 * len(IMAGES)
        if "color_jitter" not in augmentation:
            assert watch.seen.total() > len(IMAGES)


@pytest.mark.parametrize("augmentation", ONE_BY_ONE, ids=str)
def test_a_copy_of_each_image_is_found(augmentation, monkeypatch):
    """The CPU prepares the images, but each goes to the device by itself."""

    def one_by_one(batches, images):
        copied = torch.stack([image.pin_memory().to(DEVICE, non_blocking=True) for image in images])
        return copied.contiguous(memory_format=torch.channels_last)

    monkeypatch.setattr(BatchStream, "_on_device", one_by_one)
    with fake_cuda() as watch:
        batches = stream(**augmentation)
        watch.seen.clear()
        run_through(batches.epoch(1))
    copies = {place: count for place, count in watch.seen.items() if place not in AN_EPOCH}
    assert sum(copies.values()) == len(IMAGES)
    assert not copies.keys() & A_BATCH.keys()


def test_images_are_shifted_and_scaled_on_the_device():
    with fake_cuda() as watch:
        batches = stream(brightness=0.1, contrast=0.1, small_size=16, small_epochs=2)
        watch.seen.clear()
        assert run_through(batches.epoch(1)) == 4
    drawn = watch.seen.pop((UPLOAD, "bench/data/transforms.py:jitter"))
    assert drawn == 4
    assert watch.seen.keys() <= AN_EPOCH.keys()


def test_a_split_that_is_too_large_for_the_device_is_copied_once_a_batch(monkeypatch):
    with fake_cuda() as watch:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (1000, 1000))
        batches = stream(flip=True)
        watch.seen.clear()
        assert run_through(batches.epoch(1)) == 4
        assert watch.seen.keys() <= (AN_EPOCH | A_BATCH).keys()


@pytest.mark.parametrize("flip", [False, True, "alternating"])
def test_mosaics_are_composed_on_the_device(flip):
    with fake_cuda() as watch:
        layout = MosaicLayout(64, 32, 3)
        batches = MosaicStream(
            IMAGES, LABELS, 2, NORMALIZATION, layout=layout, device=DEVICE, channels_last=True, flip=flip
        )
        watch.seen.clear()
        assert run_through(batches.epoch(0)) == len(batches) > 2
        run_through(batches.in_order())
        assert watch.seen.keys() <= AN_EPOCH.keys()
        assert max(watch.seen.values()) <= 2 * 6
