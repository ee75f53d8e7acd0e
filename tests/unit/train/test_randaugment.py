"""RandAugment: each operation against torchvision or PIL, choices by distribution."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from trainables.data.rng import key_of, uniforms
from trainables.train import randaugment
from trainables.train.augmentation import sample
from trainables.train.randaugment import COLORS, NOTHING, Operation, choose, displacement

STRENGTHS = (-0.9, -0.35, 0.0, 0.6, 1.0)


def pictures(count: int = 5, side: int = 24) -> Tensor:
    """Smooth images of 256 values in [0, 1], as stored ones are; one is flat."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    smooth = tv.resize(coarse, [side, side], antialias=True)
    smooth[-1] = 0.25
    return (smooth * 255).round() / 255


def changed(operation: Operation, images: Tensor, strength: float) -> Tensor:
    strengths = torch.full((len(images), 1, 1, 1), strength)
    return COLORS[operation](images.clone(), strengths)


EXPECTED: dict[Operation, Callable[[Tensor, float], Tensor]] = {
    Operation.INVERT: lambda image, _: tv.invert(image),
    Operation.COLOR: lambda image, s: tv.adjust_saturation(image, 1 + 0.9 * s),
    Operation.CONTRAST: lambda image, s: tv.adjust_contrast(image, 1 + 0.9 * s),
    Operation.BRIGHTNESS: lambda image, s: tv.adjust_brightness(image, 1 + 0.9 * s),
    Operation.SHARPNESS: lambda image, s: tv.adjust_sharpness(image, 1 + 0.9 * s),
}


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("operation", EXPECTED)
def test_colours_are_torchvisions(operation: Operation, strength: float) -> None:
    images = pictures()
    made = changed(operation, images, strength)
    for image, ours in zip(images, made, strict=True):
        expected = EXPECTED[operation](image, strength)
        # torchvision rounds what it smooths to 256 values, as it would be in a file
        close = 0.003 if operation is Operation.SHARPNESS else 1e-5
        torch.testing.assert_close(ours, expected, rtol=0, atol=close)


def as_pil(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def from_pil(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def by_timm(name: str, image: Image.Image, strength: float) -> Image.Image:
    """timm's operation at the magnitude of ``strength``, which it is given for sure."""
    operation = auto_augment.AugmentOp(
        name, prob=1.0, magnitude=10 * abs(strength), hparams={"magnitude_std": 0}
    )
    made: Image.Image = operation(image)
    return made


@pytest.mark.parametrize("strength", [0.0, 0.35, 0.6, 0.9])
@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (Operation.AUTO_CONTRAST, "AutoContrast"),
        (Operation.EQUALIZE, "Equalize"),
        (Operation.POSTERIZE, "PosterizeIncreasing"),
        (Operation.SOLARIZE, "SolarizeIncreasing"),
        (Operation.SOLARIZE_ADD, "SolarizeAdd"),
        (Operation.INVERT, "Invert"),
    ],
)
def test_strengths_are_timms(operation: Operation, name: str, strength: float) -> None:
    images = pictures()
    made = changed(operation, images, strength)
    for image, ours in zip(images, made, strict=True):
        expected = from_pil(by_timm(name, as_pil(image), strength))
        assert (ours - expected).abs().max() < 1.01 / 255  # PIL rounds to whole values


def test_every_operation_of_timms_is_there() -> None:
    recipe = auto_augment.rand_augment_transform("rand-m9-mstd0.5-inc1", {})
    theirs = {op.name.removesuffix("Increasing").removesuffix("Rel").lower() for op in recipe.ops}
    ours = {
        operation.name.replace("_", "").lower().replace("shift", "translate")
        for operation in Operation
    }
    assert ours == theirs


@pytest.mark.parametrize(
    ("operation", "parameters"),
    [
        (Operation.ROTATE, {"angle": 18.0}),
        (Operation.SHEAR_X, {"shear": [math.degrees(math.atan(0.18)), 0.0]}),
        (Operation.SHEAR_Y, {"shear": [0.0, math.degrees(math.atan(0.18))]}),
        (Operation.SHIFT_X, {"translate": [0.27 * 30, 0.0]}),
        (Operation.SHIFT_Y, {"translate": [0.0, 0.27 * 30]}),
    ],
)
def test_moved_pixels_are_torchvisions(
    operation: Operation, parameters: dict[str, float | list[float]]
) -> None:
    """At strength 0.6, by direction, where no border shows."""
    image = tv.resize(pictures()[0], [30, 30], antialias=True)
    whole = {"angle": 0.0, "translate": [0.0, 0.0], "scale": 1.0, "shear": [0.0, 0.0]}
    bilinear = tv.InterpolationMode.BILINEAR

    def torchvisions(picture: Tensor, sign: int) -> Tensor:
        signed = {
            name: [sign * v for v in value] if isinstance(value, list) else sign * value
            for name, value in parameters.items()
        }
        return tv.affine(picture, interpolation=bilinear, **{**whole, **signed})  # type: ignore[arg-type]

    theta = displacement(torch.tensor([operation]), torch.tensor([0.6], dtype=torch.float64))
    made = sample(image[None], theta.float(), 30)[0]
    errors = []
    for sign in (-1, 1):
        inside = torchvisions(torch.ones(1, 30, 30), sign)[0] > 0.999
        assert inside.sum() > 200
        errors.append((made - torchvisions(image, sign))[:, inside].abs().max())
    assert min(errors) < 2e-3 < max(errors)


def test_nothing_moves_where_no_operation_does() -> None:
    operations = torch.tensor([NOTHING, *COLORS])
    theta = displacement(operations, torch.ones(len(operations), dtype=torch.float64))
    assert theta.equal(torch.eye(2, 3, dtype=torch.float64).expand_as(theta))


def test_each_image_gets_its_own_operation() -> None:
    images = pictures(12)
    operations = torch.tensor([NOTHING, Operation.ROTATE, *COLORS])
    strengths = torch.linspace(-0.9, 0.9, 12, dtype=torch.float64)
    together = randaugment.recolor(images.clone(), operations, strengths)
    for i in range(12):
        part = slice(i, i + 1)
        alone = randaugment.recolor(images[part].clone(), operations[part], strengths[part])
        assert alone.equal(together[part])
    assert together[:2].equal(images[:2])  # what moves pixels is the warp's
    assert not together[2:-1].equal(images[2:-1])


def test_operations_are_drawn_evenly_half_of_the_time() -> None:
    count = 30_000
    draws = uniforms(key_of(5, 2), torch.arange(count), randaugment.STREAMS)
    operation, strength = choose(draws, 9.0)
    assert abs((operation == NOTHING).double().mean() - 0.5) < 0.013  # 4.5 standard errors
    counts = torch.bincount(operation[operation != NOTHING], minlength=15).double()
    expected = count / 2 / 15
    assert ((counts - expected) ** 2 / expected).sum() < 42  # chi-square, 14 degrees: p = 1e-4
    size = strength.abs()
    assert size.max() <= 1
    assert abs(size.mean() - 0.9) < 0.002
    assert abs(size.std() - 0.05) < 0.003
    assert abs((strength < 0).double().mean() - 0.5) < 0.013


def test_magnitudes_stay_in_their_range() -> None:
    draws = uniforms(key_of(5, 3), torch.arange(5000), randaugment.STREAMS)
    draws[0, 2] = 0.0  # of which the normal quantile is infinite
    for magnitude in (0.0, 10.0):
        strength = choose(draws, magnitude)[1].abs()
        assert strength.isfinite().all()
        assert strength.min() >= 0
        assert strength.max() <= 1
