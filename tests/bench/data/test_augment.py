import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from bench.data.augment import BatchStream, Normalization, Resize

CPU = torch.device("cpu")
IDENTITY = Normalization((0.0,) * 3, (1.0,) * 3)


def make_images(count=20, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def make_stream(images, batch_size=5, normalization=IDENTITY, **options):
    return BatchStream(images, torch.arange(len(images)), batch_size, normalization, device=CPU, **options)


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


@pytest.mark.parametrize("channels_last", [False, True])
@settings(max_examples=25, deadline=None)
@given(padding=st.integers(0, 5), seed=st.integers(0, 1000), epoch=st.integers(0, 50))
def test_each_image_is_a_crop_of_its_padded_self_or_mirror(channels_last, padding, seed, epoch):
    images = make_images(6)
    stream = make_stream(images, 3, flip=True, crop_padding=padding, seed=seed, channels_last=channels_last)
    found, labels = all_of(stream.epoch(epoch))
    for crop, label in zip(found, labels, strict=True):
        padded = torch.nn.functional.pad(images[label], [padding] * 4).float()
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


def test_memory_formats_give_the_same_numbers():
    images = make_images()
    options = {"flip": True, "crop_padding": 2, "seed": 7}
    plain, _ = all_of(make_stream(images, **options).epoch(3))
    batches = list(make_stream(images, channels_last=True, **options).epoch(3))
    assert batches[0][0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, all_of(batches)[0])


def test_epochs_differ_and_repeat_and_can_be_entered_anywhere():
    stream = make_stream(make_images(), flip=True, crop_padding=2, seed=1)
    first, again, other = (all_of(stream.epoch(epoch))[0] for epoch in (4, 4, 5))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    rest = all_of(stream.epoch(4, start=2))[0]
    assert torch.equal(rest, first[10:])
    assert not torch.equal(first, all_of(make_stream(make_images(), flip=True, crop_padding=2, seed=2).epoch(4))[0])


def test_an_epoch_has_full_batches_only_and_evaluation_has_every_image():
    stream = make_stream(make_images(23))
    assert len(stream) == 4
    assert [len(labels) for _, labels in stream.epoch(0)] == [5] * 4
    found, labels = all_of(stream.in_order())
    assert labels.tolist() == list(range(23))
    assert torch.equal(found, make_images(23).float())


def test_evaluation_of_an_augmented_stream_is_not_augmented():
    images = make_images()
    found, _ = all_of(make_stream(images, flip=True, crop_padding=3, channels_last=True).in_order())
    assert torch.equal(found, images.float())


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


def test_a_constant_channel_does_not_divide_by_zero():
    images = torch.full((4, 3, 2, 2), 7, dtype=torch.uint8)
    found, _ = all_of(make_stream(images, 4, Normalization.of(images)).epoch(0))
    assert torch.equal(found, torch.zeros_like(found))
