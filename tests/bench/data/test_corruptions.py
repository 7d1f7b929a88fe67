"""The fifteen corruptions: by their definitions where these are short, else by what they must keep."""

import colorsys
import io

import numpy as np
import pytest
from numpy.random import RandomState
from PIL import Image

from bench.data.corruptions import CORRUPTIONS, SEVERITIES, _apply, _fractal, _sample, _zoom, corrupt

KEEP_PLAIN_IMAGES = (
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "contrast",
    "elastic_transform",
    "pixelate",
)


@pytest.fixture(scope="module")
def images():
    """Smooth random pictures, uint8 ``12×3×32×32``."""
    small = RandomState(0).randint(0, 256, size=(12, 8, 8, 3), dtype=np.uint8)
    large = [Image.fromarray(each).resize((32, 32), Image.Resampling.BICUBIC) for each in small]
    return np.stack([np.asarray(each) for each in large]).transpose(0, 3, 1, 2)


def applied(name, images, severity):
    return _apply(CORRUPTIONS[name], name, images, severity)


def plain(level, count=40, side=32):
    return np.full((count, 3, side, side), level, np.uint8)


def test_there_are_the_fifteen_of_the_paper():
    noise = ["gaussian_noise", "shot_noise", "impulse_noise"]
    blur = ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur"]
    weather = ["snow", "frost", "fog", "brightness"]
    digital = ["contrast", "elastic_transform", "pixelate", "jpeg_compression"]
    assert list(CORRUPTIONS) == noise + blur + weather + digital
    assert len(SEVERITIES) == 5


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_changes_the_images_more_at_the_highest_severity_and_always_in_the_same_way(name, images):
    changed = [applied(name, images, severity) for severity in range(5)]
    for each in changed:
        assert (each.shape, each.dtype) == (images.shape, np.uint8)
    distances = [np.abs(each.astype(int) - images).mean() for each in changed]
    assert min(distances) > 0.5
    if name != "elastic_transform":  # its first severity moves the whole image, the last one bends it
        assert distances[4] > 1.1 * distances[0]
    np.testing.assert_array_equal(applied(name, images, 2), changed[2])
    assert len({each.tobytes() for each in changed}) == 5


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("side", [8, 48])
def test_images_of_other_sizes(name, side, images):
    resized = np.stack(
        [
            np.asarray(Image.fromarray(each.transpose(1, 2, 0)).resize((side, side))).transpose(2, 0, 1)
            for each in images[:3]
        ]
    )
    for severity in (0, 4):
        assert applied(name, resized, severity).shape == resized.shape


@pytest.mark.parametrize("name", KEEP_PLAIN_IMAGES)
def test_what_moves_pixels_leaves_a_plain_image_as_it_is(name):
    for severity in range(5):
        assert np.abs(applied(name, plain(90), severity).astype(int) - 90).max() <= 1


@pytest.mark.parametrize(
    ("name", "deviation"),
    [
        ("gaussian_noise", lambda x: 0.10),
        ("shot_noise", lambda x: (x / 50) ** 0.5),
        ("impulse_noise", lambda x: (0.07 / 2 * (x**2 + (1 - x) ** 2)) ** 0.5),
    ],
)
def test_noise_is_as_strong_as_defined(name, deviation):
    noisy = applied(name, plain(102), 4) / 255
    assert np.sqrt(np.mean((noisy - 0.4) ** 2)) == pytest.approx(deviation(0.4), rel=0.02)


def test_salt_and_pepper_are_equally_many():
    noisy = applied("impulse_noise", plain(100), 4)
    for level in (0, 255):
        assert (noisy == level).mean() == pytest.approx(0.035, rel=0.05)
    assert set(np.unique(noisy)) == {0, 100, 255}


def test_brightness_raises_the_value_and_keeps_hue_and_saturation(images):
    brighter = applied("brightness", images, 3)
    for k in range(12):
        red, green, blue = images[k, :, 5, 7] / 255
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        expected = np.array(colorsys.hsv_to_rgb(hue, saturation, min(value + 0.2, 1))) * 255
        np.testing.assert_allclose(brighter[k, :, 5, 7], expected, atol=0.51)
    assert (applied("brightness", plain(0), 4) == round(0.3 * 255)).all()


def test_contrast_shrinks_towards_each_channels_mean(images):
    mean = images.mean(axis=(2, 3), keepdims=True)
    np.testing.assert_allclose(applied("contrast", images, 4), mean + 0.15 * (images - mean), atol=0.51)


def test_jpeg_is_pillows(images):
    file = io.BytesIO()
    Image.fromarray(images[3].transpose(1, 2, 0)).save(file, "JPEG", quality=40)
    np.testing.assert_array_equal(applied("jpeg_compression", images, 4)[3].transpose(1, 2, 0), Image.open(file))


def test_pixels_grow(images):
    coarse = applied("pixelate", images, 4)
    assert len({tuple(row) for row in coarse[0, 0]}) <= 20  # of 32 rows


def test_glass_takes_each_pixel_from_its_neighbourhood():
    marked = plain(0)
    marked[:, :, 16, 16] = 255
    rows, columns = np.nonzero(applied("glass_blur", marked, 0).max(axis=(0, 1)))
    assert {*rows} <= {16, 17}
    assert {*columns} <= {16, 17}


def test_zoom_and_sampling_are_what_they_are_called(images):
    x = images.astype(np.float32)
    np.testing.assert_array_equal(_zoom(x, 1.0), x)
    ramp = np.broadcast_to(np.arange(32, dtype=np.float32), (1, 1, 32, 32))
    np.testing.assert_allclose(_zoom(ramp, 2.0)[0, 0, 4], 15.5 + (np.arange(32) - 15.5) / 2, atol=1e-4)
    rows, columns = (np.broadcast_to(each, (12, 32, 32)) for each in np.mgrid[:32, :32].astype(float))
    np.testing.assert_allclose(_sample(x, rows + 1, columns)[:, :, :-1], x[:, :, 1:], atol=1e-3)
    between = _sample(x, rows, columns + 0.25)[:, :, :, :-1]
    np.testing.assert_allclose(between, 0.75 * x[..., :-1] + 0.25 * x[..., 1:], atol=1e-3)


def test_clouds_reach_from_0_to_1_and_are_smoother_with_a_greater_decay():
    smooth, rough = (_fractal((6, 3, 32, 32), decay, RandomState(0)) for decay in (3.0, 1.5))
    for clouds in (smooth, rough):
        assert (clouds.min(axis=(1, 2)) == 0).all()
        assert (clouds.max(axis=(1, 2)) == 1).all()
        assert len({each.tobytes() for each in clouds}) == 6
    steps = [np.abs(np.diff(clouds, axis=1)).mean() for clouds in (smooth, rough)]
    assert steps[0] < 0.7 * steps[1]


def test_the_hash_is_of_the_pixels(images):
    found = corrupt(images, "contrast", "these images")
    assert found.by_severity.shape == (5, *images.shape)
    np.testing.assert_array_equal(found.by_severity[4], applied("contrast", images, 4))
    assert found.sha256 == corrupt(images, "contrast", "under another key").sha256
    assert found.sha256 != corrupt(images, "brightness", "these images").sha256
