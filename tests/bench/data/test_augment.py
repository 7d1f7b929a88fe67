import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from bench.data.augment import BatchStream, Normalization, Resize
from bench.data.transforms import Augmentation
from bench.errors import ConfigError

CPU = torch.device("cpu")
IDENTITY = Normalization((0.0,) * 3, (1.0,) * 3)


def make_images(count=20, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def make_stream(images, batch_size=5, normalization=IDENTITY, *, channels_last=False, resize=None, seed=0, **options):
    return BatchStream(
        images,
        torch.arange(len(images)),
        batch_size,
        normalization,
        device=CPU,
        channels_last=channels_last,
        augmentation=Augmentation(**options),
        resize=resize,
        num_classes=len(images),
        seed=seed,
    )


def all_of(batches):
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


@pytest.mark.parametrize("channels_last", [False, True])
def test_without_augmentation_an_epoch_is_a_permutation(channels_last):
    images = make_images()
    found, labels = all_of(make_stream(images, channels_last=channels_last).epoch(0))
    assert labels.tolist() != list(range(20))
    assert sorted(labels.tolist()) == list(range(20))
    assert torch.equal(found, images[labels].float())


@pytest.mark.parametrize("fill", ["black", "reflect"])
@pytest.mark.parametrize("channels_last", [False, True])
@settings(max_examples=15, deadline=None)
@given(padding=st.integers(0, 7), seed=st.integers(0, 1000), epoch=st.integers(0, 50))
def test_each_image_is_a_crop_of_its_padded_self_or_mirror(channels_last, fill, padding, seed, epoch):
    images = make_images(6)
    options = {"flip": True, "crop_padding": padding, "crop_fill": fill}
    found, labels = all_of(make_stream(images, 3, seed=seed, channels_last=channels_last, **options).epoch(epoch))
    for crop, label in zip(found, labels, strict=True):
        mode = {"black": "constant", "reflect": "reflect"}[fill]
        padded = torch.nn.functional.pad(images[label].float(), [padding] * 4, mode=mode)
        windows = [
            source[:, y : y + 8, x : x + 8]
            for source in (padded, padded.flip(2))
            for y in range(2 * padding + 1)
            for x in range(2 * padding + 1)
        ]
        assert any(torch.equal(crop, window) for window in windows)


def test_every_shift_and_both_mirrors_are_drawn_about_equally_often():
    images = make_images(1).repeat(9000, 1, 1, 1)
    found, _ = all_of(make_stream(images, 3000, flip=True, crop_padding=1).epoch(0))
    _, counts = found.flatten(1).unique(dim=0, return_counts=True)
    assert len(counts) == 18
    # 9,000 draws over 18 outcomes: 500 each, standard deviation 22.
    assert counts.min() > 380
    assert counts.max() < 620


def test_reflection_leaves_no_black():
    found, _ = all_of(make_stream(make_images(), crop_padding=7, crop_fill="reflect").epoch(0))
    assert found.min() > 0
    black, _ = all_of(make_stream(make_images(), crop_padding=7).epoch(0))
    assert (black == 0).float().mean() > 0.2


@pytest.mark.parametrize(("padding", "size"), [(8, 8), (9, 8), (1, 1)])
def test_a_reflection_wider_than_the_image_is_refused_and_black_is_not(padding, size):
    images = make_images(5, size)
    with pytest.raises(ConfigError, match=rf"crop_padding = {padding} .* {size}×{size} .* {size - 1} or less"):
        make_stream(images, crop_padding=padding, crop_fill="reflect")
    assert make_stream(images, crop_padding=padding).epoch(0).__next__()[0].shape == images.shape


def mirrored(stream, images, epoch):
    """Which of the images an epoch shows mirrored, in stored order."""
    found, labels = all_of(stream.epoch(epoch))
    flags = torch.zeros(len(images), dtype=torch.bool)
    for image, label in zip(found, labels, strict=True):
        flags[label] = not torch.equal(image, images[label].float())
        assert torch.equal(image, images[label].flip(2).float() if flags[label] else images[label].float())
    return flags


def test_alternating_flip_shows_each_image_in_turn_as_it_is_and_mirrored():
    images = make_images(400, 4)
    stream = make_stream(images, 100, flip="alternating", seed=3)
    first, second, third = (mirrored(stream, images, epoch) for epoch in range(3))
    assert torch.equal(first, ~second)
    assert torch.equal(first, third)
    other = mirrored(make_stream(images, 100, flip="alternating", seed=4), images, 0)
    # 400 coins: 200 heads, standard deviation 10; two independent sets agree in half of the images.
    for count in (first.sum(), other.sum(), (first == other).sum()):
        assert 150 < count < 250


def test_random_flip_does_not_alternate():
    images = make_images(400, 4)
    stream = make_stream(images, 100, flip=True)
    assert 150 < (mirrored(stream, images, 0) == mirrored(stream, images, 1)).sum() < 250


def test_memory_formats_give_the_same_numbers():
    images = make_images()
    options = {"flip": True, "crop_padding": 2, "seed": 7}
    plain, _ = all_of(make_stream(images, **options).epoch(3))
    batches = list(make_stream(images, channels_last=True, **options).epoch(3))
    assert batches[0][0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, all_of(batches)[0])


OPTIONS = [
    {},
    {"flip": True},
    {"flip": "alternating"},
    {"crop_padding": 2},
    {"crop_padding": 2, "crop_fill": "reflect"},
    {"rotation": 15.0},
    {"color_jitter": 0.4},
    {"randaugment": 2},
    {"cutout": 3},
    {"mixup": 1.0},
    {"cutmix": 1.0},
    {"flip": True, "crop_padding": 2, "rotation": 5.0, "color_jitter": 0.2, "randaugment": 1, "cutout": 2, "mixup": 0.4}
    | {"cutmix": 1.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "none")
@pytest.mark.parametrize("channels_last", [False, True])
def test_epochs_differ_and_repeat_and_can_be_entered_anywhere(options, channels_last):
    options = options | {"channels_last": channels_last}
    stream = make_stream(make_images(), seed=1, **options)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    (first, labels), (again, labels_again), (other, _) = (all_of(stream.epoch(epoch)) for epoch in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert torch.equal(labels, labels_again)
    assert not torch.equal(first, other)
    torch.manual_seed(1)
    rest, rest_labels = all_of(stream.epoch(4, start=2))
    assert torch.equal(rest, first[10:])
    assert torch.equal(rest_labels, labels[10:])
    assert not torch.equal(first, all_of(make_stream(make_images(), seed=2, **options).epoch(4))[0])


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "none")
@pytest.mark.parametrize("channels", [1, 3])
def test_every_option_keeps_shape_type_and_memory_format(options, channels):
    images = make_images(21)[:, :channels]
    for image, labels in make_stream(images, 7, Normalization.of(images), channels_last=True, **options).epoch(0):
        assert image.shape == (7, channels, 8, 8)
        assert image.dtype == torch.float32
        assert image.is_contiguous(memory_format=torch.channels_last)
        assert image.isfinite().all()
        soft = "mixup" in options or "cutmix" in options
        assert (labels.shape, labels.dtype) == (((7, 21), torch.float32) if soft else ((7,), torch.int64))


@pytest.mark.parametrize("option", ["rotation", "color_jitter", "randaugment", "cutout", "mixup", "cutmix"])
def test_an_option_changes_neither_the_order_nor_the_crops(option):
    """What an ablation compares differs in that option alone; at zero it is the identity."""
    images, base = make_images(), {"flip": True, "crop_padding": 2}
    plain, labels = all_of(make_stream(images, **base).epoch(1))
    for value, same in ((0, True), (2, False)):
        found, found_labels = all_of(make_stream(images, **base, **{option: value}).epoch(1))
        assert torch.equal(found, plain) == same
        if found_labels.ndim == 1:
            assert torch.equal(found_labels, labels)


def test_a_stream_that_mixes_must_know_the_classes():
    with pytest.raises(ValueError, match="num_classes"):
        BatchStream(make_images(), torch.arange(20), 5, IDENTITY, device=CPU, augmentation=Augmentation(mixup=1.0))


def test_an_epoch_has_full_batches_only_and_evaluation_has_every_image():
    stream = make_stream(make_images(23))
    assert len(stream) == 4
    assert [len(labels) for _, labels in stream.epoch(0)] == [5] * 4
    found, labels = all_of(stream.in_order())
    assert labels.tolist() == list(range(23))
    assert torch.equal(found, make_images(23).float())


def test_evaluation_of_an_augmented_stream_is_not_augmented():
    images = make_images()
    options = OPTIONS[-1] | {"flip": "alternating", "crop_padding": 3, "crop_fill": "reflect"}
    found, labels = all_of(make_stream(images, channels_last=True, **options).in_order())
    assert torch.equal(found, images.float())
    assert torch.equal(labels, torch.arange(20))


def test_a_batch_is_no_larger_than_the_split():
    assert [len(labels) for _, labels in make_stream(make_images(3), 128).epoch(0)] == [3]


def test_normalization_gives_zero_mean_and_unit_deviation():
    images = make_images(3000, 4)
    normalization = Normalization.of(images)
    pixels = images.double()
    assert torch.allclose(torch.tensor(normalization.mean).double(), pixels.mean((0, 2, 3)), rtol=1e-6)
    found, _ = all_of(make_stream(images, 1000, normalization).epoch(0))
    assert torch.allclose(found.mean((0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(found.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4)


@pytest.mark.parametrize("channels_last", [False, True])
def test_resizing_is_torchvisions(channels_last):
    images = make_images(4, 16)
    stream = make_stream(images, 4, channels_last=channels_last, resize=Resize(40, "bicubic"))
    found, _ = all_of(stream.in_order())
    expected = resize(images.float(), [40, 40], InterpolationMode.BICUBIC, antialias=True).clamp(0, 255)
    assert found.shape == (4, 3, 40, 40)
    assert torch.allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_resized_images_are_normalised_and_overshoot_no_pixel(mode):
    images = (make_images(4, 6) > 128).to(torch.uint8) * 255
    normalization = Normalization((120.0, 100.0, 80.0), (60.0, 50.0, 40.0))
    found, _ = all_of(make_stream(images, 4, normalization, resize=Resize(15, mode)).in_order())
    pixels = torch.nn.functional.interpolate(images.float(), (15, 15), mode=mode, antialias=True).clamp(0, 255)
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (normalization.mean, normalization.std))
    assert torch.allclose(found, (pixels - mean) / std, atol=1e-5)


def test_a_constant_channel_does_not_divide_by_zero():
    images = torch.full((4, 3, 2, 2), 7, dtype=torch.uint8)
    found, _ = all_of(make_stream(images, 4, Normalization.of(images)).epoch(0))
    assert torch.equal(found, torch.zeros_like(found))


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")


def on_cuda(images, **options):
    return BatchStream(
        images,
        torch.arange(len(images)),
        7,
        IDENTITY,
        device=torch.device("cuda"),
        channels_last=True,
        augmentation=Augmentation(**options),
        num_classes=len(images),
    )


@needs_cuda
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "none")
def test_cuda_repeats_itself_and_leaves_the_random_streams_alone(options):
    stream = on_cuda(make_images(21), **options)
    before = torch.get_rng_state(), torch.cuda.get_rng_state()
    (first, labels), (rest, rest_labels) = (all_of(stream.epoch(2, start)) for start in (0, 1))
    assert first.device.type == labels.device.type == "cuda"
    assert torch.equal(first[7:], rest)
    assert torch.equal(labels[7:], rest_labels)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(torch.cuda.get_rng_state(), before[1])


@needs_cuda
def test_cuda_keeps_what_does_not_fit_in_the_memory_of_the_host():
    images = torch.randint(0, 256, (4200, 3, 64, 64), dtype=torch.uint8)
    options = {"flip": True, "crop_padding": 2, "cutout": 4}
    expected = all_of(on_cuda(images, **options).epoch(0))
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    hog = torch.empty(free - 150 * 2**20, dtype=torch.uint8, device="cuda")
    before = torch.cuda.memory_allocated()
    stream = on_cuda(images, **options)
    assert torch.cuda.memory_allocated() - before < 2**20
    for index, (batch, labels) in enumerate(stream.epoch(0)):
        chosen = slice(index * 7, (index + 1) * 7)
        assert torch.equal(batch, expected[0][chosen])
        assert torch.equal(labels, expected[1][chosen])
    del hog
