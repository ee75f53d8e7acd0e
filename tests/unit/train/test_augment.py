"""Augmentation: fixed parts image by image against torchvision, random parts by distribution."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from trainables.config import AUGMENT_LEVELS, AUGMENT_SETS, LEVELS_OF_ALL_SETS, Recipe
from trainables.data.rng import key_of, uniforms
from trainables.train import augmentation
from trainables.train.augmentation import (
    LEVELS,
    Augmentation,
    InputTransform,
    Level,
    Mixing,
    level_of,
)

CPU = torch.device("cpu")
PLAIN = InputTransform(image_size=16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def images(count: int = 12, side: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, side, side, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


EVERY_LEVEL = [LEVELS[chosen][name] for chosen in AUGMENT_SETS for name in AUGMENT_LEVELS]
LIGHT = LEVELS["published"]["light"]


def of(
    level: Level, *, transform: InputTransform = PLAIN, seed: int = 0, **changes: float
) -> Augmentation:
    made = replace(level, **changes)  # type: ignore[arg-type]
    return Augmentation(level=made, transform=transform, seed=seed, mirror=True)


def chw(batch: Tensor) -> Tensor:
    return batch.permute(0, 3, 1, 2)


# --- the fixed parts --------------------------------------------------------------------------


@given(st.integers(-2, 2), st.integers(-2, 2), st.booleans(), st.integers(0, 11), st.integers(3, 9))
@settings(max_examples=60, deadline=None)
def test_crop_is_pad_crop_flip(down: int, right: int, mirror: bool, row: int, side: int) -> None:
    pool = images(side=side)
    made = augmentation.crop(
        pool,
        torch.tensor([row]),
        torch.tensor([down]),
        torch.tensor([right]),
        torch.tensor([mirror]),
    )
    padded = tv.pad(chw(pool[row : row + 1]), [2, 2, 2, 2], padding_mode="reflect")
    expected = tv.crop(padded, 2 + down, 2 + right, side, side)
    expected = tv.hflip(expected) if mirror else expected
    assert chw(made).equal(expected)


def test_each_image_gets_its_own_crop() -> None:
    pool = images(6)
    down, right = torch.tensor([0, 1, -2, 2, 0, -1]), torch.tensor([1, 0, 2, -2, 0, -1])
    mirror = torch.tensor([True, False, True, False, False, True])
    order = torch.tensor([5, 0, 3, 3, 1, 2])
    together = augmentation.crop(pool, order, down, right, mirror)
    for i in range(6):
        part = slice(i, i + 1)
        alone = augmentation.crop(pool, order[part], down[part], right[part], mirror[part])
        assert together[part].equal(alone)


def test_normalise_is_torchvisions() -> None:
    transform = InputTransform(image_size=16, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    batch = transform.normalise(images())
    floats = tv.to_dtype(chw(images()), torch.float32, scale=True)
    expected = tv.normalize(floats, list(transform.mean), list(transform.std))
    torch.testing.assert_close(batch, expected, rtol=1e-5, atol=1e-5)
    assert batch.is_contiguous()
    last = InputTransform(image_size=16, mean=transform.mean, std=transform.std, channels_last=True)
    again = last.normalise(images())
    assert again.equal(batch)
    assert again.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("side", [8, 32])
def test_resizing_is_torchvisions(side: int) -> None:
    transform = InputTransform(image_size=side, mean=PLAIN.mean, std=PLAIN.std)
    batch = tv.to_dtype(chw(images()), torch.float32, scale=True)
    expected = tv.resize(batch, [side, side], antialias=side < 16)
    torch.testing.assert_close(transform.fit(batch), expected)


def test_jitter_is_torchvisions() -> None:
    batch = tv.to_dtype(chw(images()), torch.float32, scale=True)
    factors = 0.5 + torch.rand(12, 3, generator=torch.Generator().manual_seed(1))
    made = augmentation.jitter(batch.clone(), factors)
    for i in range(12):
        one = tv.adjust_brightness(batch[i], float(factors[i, 0]))
        one = tv.adjust_contrast(one, float(factors[i, 1]))
        one = tv.adjust_saturation(one, float(factors[i, 2]))
        torch.testing.assert_close(made[i], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(16, 16), (12, 20)])
def test_warp_is_torchvisions_where_no_border_shows(shape: tuple[int, int]) -> None:
    height, width = shape
    batch = torch.rand(5, 3, height, width, generator=torch.Generator().manual_seed(2))
    degrees = torch.tensor([0.0, 10.0, -20.0, 5.0, 0.0])
    zoom = torch.tensor([1.0, 1.0, 1.2, 0.9, 1.3])
    shift_x = torch.tensor([0.0, 0.0, 0.1, -0.05, 0.25])
    shift_y = torch.tensor([0.0, 0.0, -0.1, 0.05, 0.0])
    made = augmentation.warp(batch, degrees=degrees, zoom=zoom, shift_x=shift_x, shift_y=shift_y)
    for i in range(5):
        parameters = {
            "angle": -float(degrees[i]),  # torchvision turns clockwise
            "translate": [float(shift_x[i]) * width, float(shift_y[i]) * height],
            "scale": float(zoom[i]),
            "shear": [0.0, 0.0],
            "interpolation": tv.InterpolationMode.BILINEAR,
        }
        expected = tv.affine(batch[i], **parameters)
        inside = tv.affine(torch.ones(1, height, width), **parameters)[0] > 0.999
        assert inside.sum() > 60
        torch.testing.assert_close(made[i][:, inside], expected[:, inside], rtol=1e-3, atol=1e-4)


def test_rectangles_against_slices() -> None:
    top, left = torch.tensor([0.0, 3, -2, 6]), torch.tensor([0.0, 1, 5, -1])
    tall, wide = torch.tensor([2.0, 0, 4, 9]), torch.tensor([8.0, 3, 9, 2])
    mask = augmentation.rectangle(top, left, tall, wide, 8, 8)
    for i in range(4):
        expected = torch.zeros(8, 8, dtype=torch.bool)
        y, x = int(top[i]), int(left[i])
        expected[max(y, 0) : max(y + int(tall[i]), 0), max(x, 0) : max(x + int(wide[i]), 0)] = True
        assert mask[i].equal(expected)


# --- randomness -------------------------------------------------------------------------------


def test_draws_are_uniform_and_unrelated() -> None:
    draws = uniforms(key_of(7, 3), torch.arange(20_000), 15)
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = torch.stack([torch.histc(draws[:, s], 50, 0, 1) for s in range(15)])
    chi_square = ((counts - 400) ** 2 / 400).sum(1)  # 49 degrees of freedom each
    assert chi_square.max() < 100  # p = 2e-5 a stream
    related = torch.corrcoef(torch.cat((draws.T, draws.roll(1, 0).T)))
    related.fill_diagonal_(0)
    assert related.abs().max() < 0.04  # 5.6 standard errors
    other = uniforms(key_of(7, 4), torch.arange(20_000), 15)
    assert torch.corrcoef(torch.stack((draws.flatten(), other.flatten())))[0, 1].abs() < 0.01


def test_the_hash_is_splitmix64() -> None:
    """The published generator, in whole numbers: state + gamma * (n + 1), then the finaliser."""
    mask = (1 << 64) - 1
    key, index, stream = key_of(1, 2), 12345, 4

    def published(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    z = (key + 0x9E3779B97F4A7C15 * (index * 64 + stream)) & mask
    # the last xor-shift does not reach the top 24 bits that are used
    expected = (published(z) >> 40) / 2**24
    assert uniforms(key, torch.tensor([index]), 5)[0, 4].item() == expected


@pytest.mark.parametrize("side", [16, 40])
@pytest.mark.parametrize("level", EVERY_LEVEL)
def test_pixels_depend_on_seed_epoch_and_image_alone(level: Level, side: int) -> None:
    pool = images(40, side=side)
    augmentation = of(level, erasing=0.5)
    whole = augmentation(pool, torch.arange(40), 3)
    shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    for rows in (shuffled, torch.tensor([7]), torch.arange(11, 24)):
        assert augmentation(pool, rows, 3).equal(whole[rows])
    # a batch copied to the device has positions of its own
    assert augmentation(pool[5:9], torch.arange(5, 9), 3, positions=torch.arange(4)).equal(
        whole[5:9]
    )
    assert not augmentation(pool, torch.arange(40), 4).equal(whole)
    assert not of(level, seed=1, erasing=0.5)(pool, torch.arange(40), 3).equal(whole)


def test_none_is_the_image_itself() -> None:
    assert of(LEVELS["published"]["none"])(images(), torch.arange(12), 1).equal(
        PLAIN.normalise(images())
    )


def crops_of(level: Level, *, mirror: bool, count: int = 3000) -> Tensor:
    """Offsets (count, 2) and mirror flag read off a picture whose pixels name their place."""
    side = 16
    place = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1)
    pool = torch.cat((place, place[..., :1]), -1).to(torch.uint8).expand(count, -1, -1, -1)
    made = Augmentation(level=level, transform=PLAIN, seed=0, mirror=mirror)
    batch = (made(pool.contiguous(), torch.arange(count), 0) * 255).round().long()
    centre, right = batch[:, :2, 8, 8], batch[:, 1, 8, 9]
    flipped = (right < centre[:, 1]).long()
    home = torch.stack((torch.full_like(flipped, 8), torch.where(flipped == 1, 7, 8)), 1)
    return torch.cat((centre - home, flipped[:, None]), 1)


def test_light_shifts_evenly_by_an_eighth_and_mirrors_half() -> None:
    down, right, flipped = crops_of(LIGHT, mirror=True).T
    for offset in (down, right):
        counts = torch.bincount(offset + 2, minlength=5)
        assert len(counts) == 5
        assert ((counts - 600) ** 2 / 600).sum() < 25  # chi-square, 4 degrees: p = 5e-5
    assert abs(flipped.float().mean() - 0.5) < 0.04  # 4.4 standard errors
    assert not crops_of(LIGHT, mirror=False)[:, 2].any()
    assert not crops_of(LEVELS["published"]["none"], mirror=True).any()


def test_geometric_levels_grow_stronger() -> None:
    pool = images(400)
    plain = PLAIN.normalise(pool)
    shift = Level(mirror=False)
    assert of(shift)(pool, torch.arange(400), 0).equal(plain)
    levels = LEVELS["geometric"]
    names = ("degrees", "zoom", "shift", "jitter", "erasing")
    values = [[getattr(level, name) for name in names] for level in levels.values()]
    assert all(np.all(np.array(a) <= b) for a, b in itertools.pairwise(values))
    distances = [
        (of(Level(mirror=False, degrees=x.degrees, zoom=x.zoom, jitter=x.jitter))(
            pool, torch.arange(400), 0) - plain).square().mean()
        for x in (levels["medium"], levels["heavy"])
    ]  # fmt: skip
    assert 0 < distances[0] < distances[1]


def test_published_levels_grow_stronger() -> None:
    """In every strength that they have, and in what becomes of a smooth picture, not mirrored."""
    medium, heavy = (LEVELS["published"][name] for name in ("medium", "heavy"))
    names = ("operations", "magnitude", "erasing", "mixup", "cutmix", "drop_path")
    assert all(getattr(medium, name) <= getattr(heavy, name) for name in names)
    assert medium.crop is not None
    assert heavy.crop is not None
    assert medium.crop > heavy.crop
    ramp = torch.linspace(0, 255, 32).round().to(torch.uint8)
    pool = torch.stack((ramp.expand(32, 32), ramp[:, None].expand(32, 32), ramp.expand(32, 32)), -1)
    pool = pool.expand(600, -1, -1, -1).contiguous()
    transform = replace(PLAIN, image_size=32)
    distances = [
        (of(level, transform=transform, mirror=False)(pool, torch.arange(600), 0)
         - transform(pool)).square().mean()
        for level in (LIGHT, medium, heavy)
    ]  # fmt: skip
    assert 0 < distances[0] < distances[1] < distances[2]


def test_the_sets_agree_where_they_say_so() -> None:
    for name in AUGMENT_LEVELS:
        levels = {LEVELS[chosen][name] for chosen in AUGMENT_SETS}
        assert (len(levels) == 1) == (name in LEVELS_OF_ALL_SETS)


def test_a_recipe_adds_to_its_level_and_takes_nothing_away() -> None:
    heavy = level_of(Recipe(augment="heavy"))
    assert heavy == LEVELS["published"]["heavy"]
    assert level_of(Recipe(augment="heavy", mixup=0.1, drop_path=0.05)) == heavy
    axes = {"mixup": 1.5, "cutmix": 2.0, "random_erasing": 0.5, "drop_path": 0.3}
    more = level_of(Recipe(augment="heavy", **axes))  # type: ignore[arg-type]
    assert more == replace(heavy, mixup=1.5, cutmix=2.0, erasing=0.5, drop_path=0.3)


# --- random resized crops ---------------------------------------------------------------------


def as_theta(box: Tensor, height: int, width: int) -> Tensor:
    """``theta`` (B, 2, 3) of boxes (B, 4): top, left, tall, wide in pixels."""
    top, left, tall, wide = box.double().unbind(1)
    none = torch.zeros_like(top)
    across = torch.stack((wide / width, none, (2 * left + wide) / width - 1), 1)
    along = torch.stack((none, tall / height, (2 * top + tall) / height - 1), 1)
    return torch.stack((across, along), 1).float()


@pytest.mark.parametrize("shape", [(16, 16), (12, 20)])
def test_a_sampled_box_is_torchvisions_resized_crop(shape: tuple[int, int]) -> None:
    height, width = shape
    batch = torch.rand(4, 3, height, width, generator=torch.Generator().manual_seed(2))
    boxes = torch.tensor([[0, 0, height, width], [2, 3, 8, 8], [5, 1, 4, 12], [0, 4, 12, 3]])
    made = augmentation.sample(batch, as_theta(boxes, height, width), 16)
    for image, box, ours in zip(batch, boxes.tolist(), made, strict=True):
        expected = tv.resized_crop(image, *box, [16, 16], antialias=False)
        # At the box's edge torchvision repeats it; the warp sees the pixels beside it.
        torch.testing.assert_close(ours[:, 3:-3, 3:-3], expected[:, 3:-3, 3:-3])


def test_a_large_image_is_averaged_and_not_picked_from() -> None:
    """Stripes of one pixel become grey, as they do where torchvision resizes with antialiasing."""
    stripes = (torch.arange(64) % 2).float().expand(1, 3, 64, 64).contiguous()
    whole = as_theta(torch.tensor([[0, 0, 64, 64]]), 64, 64)
    assert (augmentation.sample(stripes, whole, 16) - 0.5).abs().max() < 1e-5


def test_boxes_have_their_areas_ratios_and_places() -> None:
    draws = uniforms(key_of(1, 1), torch.arange(20_000), 4).double()
    theta = augmentation.crop_box(draws, 0.08)
    width, height = theta[:, 0, 0], theta[:, 1, 1]
    assert (theta[:, 0, 1] == 0).all()
    area, ratio = width * height, width / height
    assert area.min() >= 0.08 - 1e-9
    torch.testing.assert_close(area, 0.08 + 0.92 * draws[:, 0])
    assert ratio.min() >= 3 / 4 - 1e-9
    assert ratio.max() <= 4 / 3 + 1e-9
    assert abs(ratio.log().mean()) < 0.01  # as often wide as tall
    small = area < 0.5  # where every ratio fits, its logarithm is uniform
    assert abs(ratio[small].log().var() - (2 * np.log(4 / 3)) ** 2 / 12) < 0.001
    for side, row in ((width, 0), (height, 1)):
        centre = theta[:, row, 2]
        assert (centre.abs() <= 1 - side + 1e-9).all()
        assert abs(centre.mean()) < 0.02


def test_composing_is_doing_one_after_the_other() -> None:
    generator = torch.Generator().manual_seed(0)
    first, then = (torch.randn(5, 2, 3, generator=generator).double() for _ in range(2))
    place = torch.randn(5, 2, 1, generator=generator).double()
    one = torch.ones(5, 1, 1).double()
    between = then @ torch.cat((place, one), 1)
    expected = first @ torch.cat((between, one), 1)
    made = augmentation.compose(first, then) @ torch.cat((place, one), 1)
    torch.testing.assert_close(made, expected)


def test_a_resized_crop_mirrors_half_and_signs_never() -> None:
    """Of a picture that grows brighter to the right, without RandAugment."""
    ramp = torch.arange(16).to(torch.uint8).expand(16, 16)[..., None].expand(2000, 16, 16, 3)
    level = Level(crop=0.25)
    for mirror, share in ((True, 0.5), (False, 0.0)):
        made = Augmentation(level=level, transform=PLAIN, seed=0, mirror=mirror)
        batch = made(ramp.contiguous(), torch.arange(2000), 0)
        mirrored = (batch[:, 0, 8, 15] < batch[:, 0, 8, 0]).float().mean()
        assert abs(mirrored - share) < 0.05  # 4.5 standard errors


def test_the_result_has_the_models_side() -> None:
    for side in (8, 16, 48):
        transform = replace(PLAIN, image_size=side, channels_last=True)
        for level in EVERY_LEVEL:
            batch = of(level, transform=transform)(images(), torch.arange(12), 0)
            assert batch.shape == (12, 3, side, side)
            assert batch.is_contiguous(memory_format=torch.channels_last)
            assert batch.isfinite().all()


def test_erasing_hits_its_share_with_its_areas() -> None:
    count, side = 4000, 32
    batch = torch.ones(count, 3, side, side)
    draws = uniforms(key_of(0, 0), torch.arange(count), augmentation.STREAMS)
    erased = (augmentation.erase(batch, draws, 0.25)[:, 0] == 0).float()
    share = erased.mean((1, 2))
    assert abs((share > 0).float().mean() - 0.25) < 0.03  # 4.4 standard errors
    sizes = share[share > 0]
    assert abs(sizes.mean() - (0.02 + 1 / 3) / 2) < 0.02
    assert sizes.max() < 0.36
    rows, columns = (erased.amax(2).mean(0), erased.amax(1).mean(0))
    assert rows.min() > 0.01  # the corners too
    assert columns.min() > 0.01


def test_the_erasing_axis_leaves_every_other_draw_alone() -> None:
    pool = images(50)
    with_it, without = (of(LIGHT, erasing=p)(pool, torch.arange(50), 0) for p in (0.5, 0.0))
    kept = with_it != 0
    assert with_it[kept].equal(without[kept])
    assert not kept.all()


# --- mixing -----------------------------------------------------------------------------------


def mix(count: int, **alphas: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images of one value each, equal to their number, mixed."""
    made = Mixing(**{"mixup": 0.0, "cutmix": 0.0, **alphas}, seed=0, images=count)
    batch = torch.arange(count).float()[:, None, None, None].expand(-1, 3, 16, 16).contiguous()
    return batch, *made(batch, torch.arange(count), 2, made.weights(2, CPU))


@pytest.mark.parametrize("alphas", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}])
def test_labels_are_mixed_as_the_pixels_are(alphas: dict[str, float]) -> None:
    batch, mixed, partner, weight = mix(64, **alphas)
    expected = weight * torch.arange(64) + (1 - weight) * partner
    torch.testing.assert_close(mixed.mean((1, 2, 3)), expected, rtol=1e-4, atol=1e-3)
    assert partner[partner].equal(torch.arange(64))
    assert not (partner == torch.arange(64)).any()
    flat = mixed.flatten(1)
    uniform = (flat == flat[:, :1]).all(1)
    if "cutmix" not in alphas:
        assert uniform.all()
    if "mixup" not in alphas:  # every pixel is one image's or the other's
        own, other = batch.flatten(1)[:, :1], batch[partner].flatten(1)[:, :1]
        assert ((flat == own) | (flat == other)).all()


def test_weights_follow_their_beta() -> None:
    made = Mixing(mixup=0.4, cutmix=0.0, seed=0, images=20_000)
    weights, ones = made.weights(1, CPU)
    assert (ones == 1).all()
    assert abs(weights.mean() - 0.5) < 0.01
    assert abs(weights.var() - 1 / (4 * (2 * 0.4 + 1))) < 0.005  # of Beta(a, a)
    assert not made.weights(2, CPU)[0].equal(weights)


def test_an_odd_last_image_stays_itself() -> None:
    batch, mixed, partner, weight = mix(7, mixup=1.0, cutmix=1.0)
    assert partner[-1] == 6
    assert weight[-1] == 1
    assert mixed[-1].equal(batch[-1])


def test_pairs_do_not_depend_on_the_number_of_workers() -> None:
    made = Mixing(mixup=1.0, cutmix=1.0, seed=3, images=32)
    pool = torch.rand(32, 3, 8, 8)
    weights = made.weights(0, CPU)
    whole, _, kept = made(pool, torch.arange(32), 0, weights)
    for start in (0, 8, 16, 24):
        rows = torch.arange(start, start + 8)
        part, partner, weight = made(pool[rows], rows, 0, weights)
        assert part.equal(whole[rows])
        assert weight.equal(kept[rows])
        assert rows[partner].equal(augmentation.partners(32, CPU)[rows])
