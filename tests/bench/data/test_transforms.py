import dataclasses

import pytest
import torch
from torchvision.transforms.v2 import functional as vision

from bench.config import Recipe
from bench.data.augment import BatchStream, Normalization, Resize
from bench.data.transforms import Augmentation, create_image_transform, drawing

CPU = torch.device("cpu")
IDENTITY = Normalization((0.0,) * 3, (1.0,) * 3)


def epoch_of(images, *, batch_size=None, normalization=IDENTITY, resize=None, epoch=0, **options):
    """The batches of an epoch; each image is a class of its own."""
    stream = BatchStream(
        images,
        torch.arange(len(images)),
        batch_size or len(images),
        normalization,
        device=CPU,
        augmentation=Augmentation(**options),
        num_classes=len(images),
        resize=resize,
    )
    return list(stream.epoch(epoch))


def copies(image, count):
    return image.expand(count, *image.shape).contiguous()


def noise(count=1, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def test_the_fields_are_those_of_a_recipe():
    for option in dataclasses.fields(Augmentation):
        assert option.name in Recipe.model_fields


def test_nothing_asked_for_is_no_transform():
    assert create_image_transform(Augmentation(flip=True, crop_padding=4, cutout=8, mixup=1.0), [0.0] * 3) is None


def test_what_is_drawn_depends_on_the_seed_alone_and_the_stream_goes_on_as_if_nothing_was():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with drawing(1):
        first = torch.rand(3)
    with pytest.raises(RuntimeError, match="size of tensor"), drawing(1):
        torch.rand(3) + torch.rand(2)
    with drawing(1):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("side", [1, 4, 5])
def test_cutout_blanks_one_square_centred_anywhere_and_clipped_at_the_border(side):
    size = 12
    (images, _), *_ = epoch_of(noise(2000, size), cutout=side)
    blank = (images == 0).all(1)
    assert torch.equal(blank, (images == 0).any(1))
    rows, columns = blank.any(2), blank.any(1)
    assert torch.equal(blank, rows[:, :, None] & columns[:, None, :])
    for lines in (rows, columns):
        # Every centre is as likely: the square of centre c reaches from c - side // 2 over `side` lines.
        starts = torch.arange(size) - side // 2
        possible = torch.stack(
            [(torch.arange(size) >= start) & (torch.arange(size) < start + side) for start in starts]
        )
        centre = (lines[:, None] == possible).all(2).long().argmax(1)
        assert torch.equal(lines, possible[centre])
        counts = torch.bincount(centre, minlength=size)
        # 2,000 draws of 12: 167 each, standard deviation 12.4.
        assert counts.min() > 100
        assert counts.max() < 240
    inner = rows.sum(1).eq(side) & columns.sum(1).eq(side)
    assert (blank[inner].sum((1, 2)) == side**2).all()
    assert inner.any()


def test_cutout_fills_with_the_mean_and_leaves_the_rest():
    images = noise(50)
    normalization = Normalization.of(images)
    (plain, _), *_ = epoch_of(images, normalization=normalization)
    (found, _), *_ = epoch_of(images, normalization=normalization, cutout=6)
    changed = found != plain
    assert (found[changed] == 0).all()
    assert changed.any()


@pytest.mark.parametrize("side", [16, 17, 1_000_000])
def test_cutout_larger_than_the_image_blanks_it(side):
    (images, _), *_ = epoch_of(noise(10, 8), cutout=side)
    assert (images == 0).all()


def test_cutout_is_given_in_pixels_of_the_data_set_also_where_images_are_resized():
    images = noise(20, 8)
    (plain, _), *_ = epoch_of(images, cutout=4)
    (found, _), *_ = epoch_of(images, cutout=4, resize=Resize(40))
    expected = torch.nn.functional.interpolate(plain, size=(40, 40), mode="bilinear", antialias=True)
    assert torch.allclose(found, expected, atol=1e-3)
    assert (found == 0).any()


def test_rotation_turns_each_image_by_another_angle_either_way_and_no_further():
    line = torch.zeros(3, 33, 33, dtype=torch.uint8)
    line[:, 15:18, 4:29] = 255
    (images, _), *_ = epoch_of(copies(line, 200), rotation=30.0)
    y, x = torch.meshgrid(torch.arange(-16.0, 17), torch.arange(-16.0, 17), indexing="ij")
    weight = images[:, 0] / images[:, 0].sum((1, 2), keepdim=True)
    xx, yy, xy = ((weight * product).sum((1, 2)) for product in (x * x, y * y, x * y))
    angles = torch.rad2deg(0.5 * torch.atan2(2 * xy, xx - yy))
    assert angles.abs().max() < 31
    assert angles.min() < -25
    assert angles.max() > 25
    assert len(images.unique(dim=0)) > 190
    assert abs(float(angles.mean())) < 5  # standard error 1.2


def test_rotation_fills_corners_with_the_mean():
    images = torch.full((50, 3, 17, 17), 200, dtype=torch.uint8)
    normalization = Normalization((10.0, 20.0, 30.0), (1.0,) * 3)
    (found, _), *_ = epoch_of(images, normalization=normalization, rotation=45.0)
    assert torch.equal(found[:, :, 8, 8], (200 - torch.tensor(normalization.mean)).expand(50, 3))
    corners = found[:, :, 0, 0]
    assert (corners.abs() < 1e-4).all(1).float().mean() > 0.3


def test_color_jitter_changes_the_brightness_of_each_image_by_another_factor():
    (images, _), *_ = epoch_of(torch.full((300, 3, 8, 8), 100, dtype=torch.uint8), color_jitter=0.4)
    # On plain grey, contrast and saturation change nothing.
    levels = images.flatten(1)
    assert (levels.std(1) == 0).all()
    assert levels.min() >= 59
    assert levels.min() < 65
    assert levels.max() <= 140
    assert levels.max() > 135


def test_color_jitter_changes_contrast_and_saturation():
    (images, _), *_ = epoch_of(copies(noise()[0], 100), color_jitter=0.4)
    contrast = images.mean(1).std((1, 2)) / images.mean((1, 2, 3))
    saturation = images.std(1).mean((1, 2)) / images.std((1, 2, 3))
    assert contrast.max() / contrast.min() > 1.5
    assert saturation.max() / saturation.min() > 1.1


def test_color_jitter_of_one_channel_is_torchvisions():
    """Grey images have a brightness and a contrast, and no saturation to change."""
    images = noise(20)[:, :1]
    normalization = Normalization((0.0,), (1.0,))
    (found, _), *_ = epoch_of(images, normalization=normalization, color_jitter=0.9)
    assert found.shape == (20, 1, 16, 16)
    assert len(found.unique(dim=0)) == 20
    assert torch.equal(vision.adjust_saturation(images, 0.3), images)


def test_randaugment_gives_each_image_operations_of_its_own_and_more_of_them_change_more():
    images = copies(noise()[0], 200)
    unchanged = []
    for operations in (1, 3):
        (found, _), *_ = epoch_of(images, randaugment=operations)
        assert len(found.unique(dim=0)) > 10
        unchanged.append(int((found == images).flatten(1).all(1).sum()))
    # Of 14 operations one is the identity, and a few others do nothing to an image that has every value.
    assert 5 < unchanged[0] < 80
    assert unchanged[1] < unchanged[0] / 2


@pytest.mark.parametrize("batch_size", [1, 7, 8])
def test_mixup_adds_the_next_image_in_the_share_that_the_labels_tell(batch_size):
    images = noise(56)
    for (plain, labels), (mixed, shares) in zip(
        epoch_of(images, batch_size=batch_size), epoch_of(images, batch_size=batch_size, mixup=1.0), strict=True
    ):
        assert torch.allclose(shares.sum(1), torch.ones(batch_size))
        lam = shares[torch.arange(batch_size), labels]
        assert (lam == lam[0]).all()
        expected = lam[0] * plain + (1 - lam[0]) * plain.roll(1, 0)
        assert torch.allclose(mixed, expected, atol=1e-3)
        assert torch.allclose(shares, lam[0] * one_hot(labels, 56) + (1 - lam[0]) * one_hot(labels.roll(1), 56))


def one_hot(labels, num_classes):
    return torch.nn.functional.one_hot(labels, num_classes).float()


def test_mixup_draws_its_share_anew_for_each_batch_from_a_beta_distribution():
    """Of Beta(a, a) the mean is 1/2 and the variance 1 / (4 (2a + 1))."""
    for alpha in (0.2, 1.0):
        batches = epoch_of(noise(3000, 2), batch_size=3, mixup=alpha)
        found = torch.stack([mixed_share(labels) for _, labels in batches])
        spread = 1 / (4 * (2 * alpha + 1))
        assert float(found.mean()) == pytest.approx(0.5, abs=0.05)
        assert float(found.var()) == pytest.approx(spread, rel=0.15)


def mixed_share(labels):
    """The share of the first image's neighbour: in a batch of three distinct ones, that which both have in common."""
    return labels[0][labels[1] > 0].sum()


def test_cutmix_pastes_a_rectangle_of_the_next_image_whose_area_the_labels_tell():
    images = noise(70)
    boxes = 0
    for (plain, labels), (mixed, shares) in zip(
        epoch_of(images, batch_size=7), epoch_of(images, batch_size=7, cutmix=1.0), strict=True
    ):
        lam = shares[torch.arange(7), labels]
        assert torch.allclose(shares.sum(1), torch.ones(7))
        pasted = (mixed != plain).any(1).any(0)
        assert torch.equal(mixed, torch.where(pasted, plain.roll(1, 0), plain))
        assert torch.equal(pasted, pasted.any(1)[:, None] & pasted.any(0)[None, :])
        assert float(pasted.float().mean()) == pytest.approx(1 - float(lam[0]), abs=1e-6)
        boxes += bool(pasted.any())
    assert boxes > 5


def test_mixup_and_cutmix_together_take_turns_at_random():
    images = noise(400)
    kinds = []
    for (plain, labels), (mixed, shares) in zip(
        epoch_of(images, batch_size=4), epoch_of(images, batch_size=4, mixup=1.0, cutmix=1.0), strict=True
    ):
        pasted = torch.equal(mixed, torch.where(mixed == plain, plain, plain.roll(1, 0)))
        kinds.append(pasted)
        if not pasted:
            lam = shares[0, labels[0]]
            assert torch.allclose(mixed, lam * plain + (1 - lam) * plain.roll(1, 0), atol=1e-3)
    # 100 coins: standard deviation 5; a share of 1 or 0 to the last digit looks like a paste.
    assert 30 < sum(kinds) < 70


def test_brightness_and_contrast_shift_and_scale_each_image_as_a_whole():
    images = copies(noise()[0], 200)
    plain = images[0].float()
    ((found, _),) = epoch_of(images, brightness=20.0, contrast=0.25)
    factors = (found[:, 0, 0, 0] - found[:, 1, 3, 3]) / (plain[0, 0, 0] - plain[1, 3, 3])
    shifts = found[:, 0, 0, 0] / factors - plain[0, 0, 0]
    restored = found / factors.view(-1, 1, 1, 1) - shifts.view(-1, 1, 1, 1)
    assert torch.allclose(restored, plain.expand_as(found), atol=0.05)
    for values, low, high in ((factors, 0.75, 1.25), (shifts, -20, 20)):
        assert low <= values.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < values.max() <= high
    assert torch.equal(epoch_of(images, brightness=20.0, contrast=0.25)[0][0], found)
    assert not torch.equal(epoch_of(images, brightness=20.0, contrast=0.25, epoch=1)[0][0], found)


def test_images_are_small_in_the_first_epochs():
    images = noise(6)
    small, plain = ({"small_size": 8, "small_epochs": 2} | extra for extra in ({}, {"small_epochs": 0}))
    for epoch, size in ((0, 8), (1, 8), (2, 16)):
        ((found, labels),) = epoch_of(images, epoch=epoch, **small)
        ((whole, same),) = epoch_of(images, epoch=epoch, **plain)
        assert found.shape[2:] == (size, size)
        assert torch.equal(labels, same)
        # Antialiased halving is no mean of four, but keeps the mean of the image.
        assert torch.allclose(found.mean((2, 3)), whole.mean((2, 3)), atol=4)
