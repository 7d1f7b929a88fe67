"""Canvases against the images that were laid on them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.data.augment import Normalization
from bench.data.mosaic import MosaicStream, _distinct, _random
from bench.data.sources import MosaicLayout, load_dataset
from bench.errors import DataError

CPU = torch.device("cpu")
UNCHANGED = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def flat_images(count, side, classes=5):
    """Images of one value each, which says which image it is; label = image modulo the number of classes."""
    values = torch.arange(count, dtype=torch.uint8) + 100
    return values.view(-1, 1, 1, 1).expand(count, 3, side, side).contiguous(), torch.arange(count) % classes


def stream(images, labels, batch_size=4, canvas=48, normalization=UNCHANGED, **options):
    layout = options.pop("layout", MosaicLayout(canvas, images.shape[-1], 4))
    return MosaicStream(images, labels, batch_size, normalization, layout=layout, device=CPU, **options)


def all_of(batches):
    parts = list(batches)
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


@pytest.fixture(scope="module")
def digits():
    dataset = load_dataset("mosaic:digits", size=64)
    images, labels = (torch.from_numpy(np.array(each[:200])) for each in (dataset.test.images, dataset.test.labels))
    return dataset, images, labels


def test_every_labelled_pixel_is_one_of_an_image_of_that_class(digits):
    dataset, images, labels = digits
    canvases, wanted = next(stream(images, labels, layout=dataset.mosaic, batch_size=16).fixed_canvases())
    side, found = dataset.mosaic.image_size, np.zeros(wanted.shape, bool)
    for canvas, map_, seen in zip(canvases[..., 0].numpy(), wanted.numpy(), found, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(canvas, (side, side))
        for digit, label in zip(images[:, 0].numpy(), labels.tolist(), strict=True):
            # An image that nothing covers stands as it is somewhere; looked for by its middle first.
            middle = windows[:, :, side // 2, side // 2] == digit[side // 2, side // 2]
            for top, left in zip(*np.nonzero(middle), strict=True):
                if (windows[top, left] == digit).all():
                    assert (map_[top : top + side, left : left + side] == label + 1).all()
                    seen[top : top + side, left : left + side] = True
    assert found.any(axis=(1, 2)).all()  # of each canvas at least the last image is whole
    assert not (found & (wanted.numpy() == 0)).any()


def test_labels_follow_the_pixels_where_images_overlap():
    images, labels = flat_images(40, 16)
    for canvases, wanted in (all_of(stream(images, labels).epoch(3)), all_of(stream(images, labels).in_order())):
        pixels = canvases[:, 0]
        laid = wanted > 0
        assert torch.equal(wanted[laid], (pixels[laid].long() - 100) % 5 + 1)
        areas = [torch.bincount(values[values > 0].long()) for values in pixels.where(laid, 0.0)]
        assert {int(area.max()) for area in areas} == {16 * 16}  # the last one is never covered
        assert 0.2 < laid.float().mean() < 4 * 16 * 16 / 48**2 + 1e-6


def test_an_epoch_lays_every_image_down_once():
    images, labels = flat_images(42, 16)  # 10.5 canvases of four: two images are laid down twice
    many = stream(images, labels, batch_size=100)
    assert (many.canvases, many.batch_size, len(many)) == (11, 11, 1)
    draws = many._draw(_random(1, 0, 0), 0)
    counts = torch.bincount(draws.members.flatten(), minlength=42)
    assert counts.min() == 1
    assert counts.sum() == 44
    assert len(stream(images, labels, batch_size=4)) == 2  # full batches only
    assert [len(labels) for _, labels in stream(images, labels, batch_size=4).in_order()] == [4, 4, 3]


def test_training_canvases_are_a_function_of_seed_epoch_and_index_alone():
    images, labels = flat_images(40, 16)
    one, same = (stream(images, labels, seed=1, flip=True) for _ in range(2))
    first = all_of(one.epoch(2))
    list(one.in_order())
    list(one.epoch(0))
    assert all(map(torch.equal, first, all_of(same.epoch(2))))
    # Replayed from a later batch, and in batches of another size.
    assert all(map(torch.equal, all_of(same.epoch(2, start=1)), (first[0][4:], first[1][4:])))
    in_twos = all_of(stream(images, labels, batch_size=2, seed=1, flip=True).epoch(2, start=2))
    assert all(map(torch.equal, (in_twos[0][:4], in_twos[1][:4]), (first[0][4:], first[1][4:])))
    for other in (one.epoch(3), stream(images, labels, seed=2, flip=True).epoch(2)):
        assert not torch.equal(first[1], all_of(other)[1])


def test_evaluated_canvases_are_the_same_whatever_the_seed_and_the_batches():
    images, labels = flat_images(40, 16)
    fixed = all_of(stream(images, labels, seed=0).in_order())
    other = all_of(stream(images, labels, batch_size=3, seed=7, flip=True).in_order())
    assert all(map(torch.equal, fixed, other))
    assert not torch.equal(fixed[0][0], fixed[0][1])


@given(possible=st.integers(4, 30), columns=st.integers(1, 4), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_places_within_a_canvas_differ(possible, columns, seed):
    places = _distinct(50, columns, possible, _random(seed))
    assert places.min() >= 0
    assert places.max() < possible
    assert all(len(set(row)) == columns for row in places.tolist())


def test_places_are_uniform():
    pairs = _distinct(60_000, 2, 4, _random(0))
    counts = torch.bincount(pairs[:, 0] * 4 + pairs[:, 1], minlength=16).view(4, 4)
    assert torch.all(counts.diagonal() == 0)
    expected = 60_000 / 12
    assert torch.all((counts[counts > 0] - expected).abs() < 5 * expected**0.5)


def test_images_are_normalised_in_the_wanted_memory_format():
    images, labels = torch.randint(256, (40, 3, 16, 16), dtype=torch.uint8), torch.arange(40)
    statistics = Normalization((10.0, 20.0, 30.0), (2.0, 4.0, 8.0))
    plain = next(stream(images, labels).in_order())[0]
    for channels_last in (False, True):
        found = next(stream(images, labels, normalization=statistics, channels_last=channels_last).in_order())[0]
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert found.dtype == torch.float32
        assert found.is_contiguous(memory_format=layout)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (statistics.mean, statistics.std))
        torch.testing.assert_close(found, (plain - mean) / std)


def test_mirrored_images_are_mirrored_and_alternate_when_asked_to():
    half = torch.zeros(40, 3, 16, 16, dtype=torch.uint8)
    half[..., 8:] = 255  # dark on the left
    labels = torch.zeros(40, dtype=torch.int64)
    one_each = MosaicLayout(48, 16, 1)
    facing = {}
    for flip in (False, True, "alternating"):
        each = stream(half, labels, batch_size=40, layout=one_each, flip=flip)
        for epoch in range(2):
            draws = each._draw(_random(1, 0, epoch), epoch)
            canvases, maps = each._compose(draws, slice(None))
            dark_left = [canvas[map_ > 0][0, 0] == 0 for canvas, map_ in zip(canvases, maps, strict=True)]
            order = draws.members.flatten().argsort()
            facing[flip, epoch] = torch.stack(dark_left)[order]
    assert facing[False, 0].all()
    assert 5 < facing[True, 0].sum() < 35
    assert torch.equal(facing["alternating", 0], ~facing["alternating", 1])


def test_the_background_has_the_colours_of_the_images(digits):
    _, images, labels = digits
    canvases, maps = next(stream(images, labels, canvas=64, batch_size=50).fixed_canvases())
    background = canvases[maps == 0].double()
    assert torch.all(background.std(1) < 1.0)  # grey images, grey noise
    assert abs(background.mean() - images.double().mean()) < 20
    assert 0.5 < background.std() / images.double().std() < 1.5
    colours = torch.tensor([200, 100, 50], dtype=torch.uint8).view(1, 3, 1, 1).expand(8, 3, 16, 16)
    canvases, maps = next(stream(colours, torch.zeros(8, dtype=torch.int64)).fixed_canvases())
    assert (canvases[maps == 0].double().mean(0) - torch.tensor([200.0, 100, 50])).abs().max() < 2


def test_the_data_set_is_dense_and_its_hash_depends_on_all_that_the_canvases_do(digits):
    dataset, _, _ = digits
    plain, larger = load_dataset("digits", size=32), load_dataset("mosaic:digits", size=96)
    assert dataset.name == "mosaic:digits"
    assert dataset.classes == ("background", *plain.classes)
    assert (dataset.mosaic, plain.mosaic) == (MosaicLayout(64, 32, 2), None)
    assert np.array_equal(dataset.train.images, plain.train.images)
    assert np.array_equal(dataset.train.labels, plain.train.labels)
    assert len({plain.sha256, dataset.sha256, larger.sha256}) == 3
    assert load_dataset("mosaic:digits", size=64).sha256 == dataset.sha256


@pytest.mark.parametrize(
    ("canvas", "layout"), [(16, (8, 2)), (32, (16, 2)), (64, (32, 2)), (96, (32, 4)), (128, (32, 8))]
)
def test_layouts_leave_about_half_of_the_canvas_to_the_background(canvas, layout):
    found = MosaicLayout.of(canvas)
    assert (found.image_size, found.images_per_canvas) == layout
    assert found.images_per_canvas * found.image_size**2 <= canvas**2 / 2


def test_what_cannot_be_laid_out_is_told():
    with pytest.raises(DataError, match="canvas of 15 pixels is too small"):
        load_dataset("mosaic:digits", size=15)
    for name in ("mosaic:", "mosaic:mosaic:digits"):
        with pytest.raises(DataError, match="Write, for example, mosaic:digits"):
            load_dataset(name, size=64)
    with pytest.raises(DataError, match="no data set is named 'digit'"):
        load_dataset("mosaic:digit", size=64)
    with pytest.raises(DataError, match="Did you mean 'mosaic'"):
        load_dataset("mosaics:digits", size=64)
