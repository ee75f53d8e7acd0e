"""python -m benchmarks.augment [--quick]

What level heavy costs, by who augments: the engine's kernels, all images of a batch at once;
torchvision's v2 transforms, image by image, since on a batch they draw one operation and one box
for all of it; timm's pipeline on PIL images; and kornia's, where it is installed (``pip install
kornia``). Random resized crop, mirroring, two operations of RandAugment and erasing, from uint8
pixels of one side to normalised floats of it, at 32 and at 224 pixels, one thread, in turns.

``images_per_second`` with quartiles, and ``ratio`` of the engine over each. Images are noise, which
costs what pictures cost. About two minutes on one core; the result goes to
benchmarks/results/augment.json, a summary to the last line of stdout.
"""

from __future__ import annotations

import importlib.util
import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
from timm.data import auto_augment
from torch import Tensor
from torchvision import transforms as pil_transforms
from torchvision.transforms import v2

from benchmarks.common import arguments, finish, spread
from trainables.train.augmentation import LEVELS, Augmentation, InputTransform

SIDES = {32: 256, 224: 16}  # images in a batch
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HEAVY = LEVELS["published"]["heavy"]
ROUNDS = 7

Augment = Callable[[Tensor], Tensor]  # (B, S, S, 3) uint8 -> (B, 3, S, S) float32


def main() -> None:
    options = arguments(__doc__, "augment.json", reads_pictures=False).parse_args()
    torch.set_num_threads(1)
    rounds = 1 if options.quick else ROUNDS
    measured: dict[str, Any] = {}
    for side, count in SIDES.items():
        images = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8)
        speeds: dict[str, list[float]] = {}
        ways = ways_of(side)
        for number in range(rounds + 1):
            for name, augment in ways.items():
                started = time.perf_counter()
                batch = augment(images)
                seconds = time.perf_counter() - started
                assert batch.shape == (count, 3, side, side)
                if number:  # the first warms up
                    speeds.setdefault(name, []).append(count / seconds)
        engine = speeds["engine"]
        measured[str(side)] = {
            name: {
                "images_per_second": spread(values),
                "ratio": spread([a / b for a, b in zip(engine, values, strict=True)]),
            }
            for name, values in speeds.items()
        }
    ratios = {
        side: {name: round(row["ratio"]["median"], 2) for name, row in ways.items()}
        for side, ways in measured.items()
    }
    finish({"measured": measured, "rounds": rounds}, options.out, {"engine_over": ratios})


def ways_of(side: int) -> dict[str, Augment]:
    """Who augments, by name."""
    ways = {"engine": engine(side), "torchvision": torchvisions(side), "timm": timms(side)}
    if importlib.util.find_spec("kornia"):
        ways["kornia"] = kornias(side)
    return ways


def engine(side: int) -> Augment:
    """The engine's own, another epoch each time."""
    transform = InputTransform(image_size=side, mean=MEAN, std=STD)
    augment, epochs = (
        Augmentation(level=HEAVY, transform=transform, seed=0, mirror=True),
        itertools.count(),
    )
    return lambda images: augment(images, torch.arange(len(images)), next(epochs))


def torchvisions(side: int) -> Augment:
    """v2 on one image after the other."""
    augment = v2.Compose(
        [
            v2.RandomResizedCrop(side, scale=(HEAVY.crop or 1, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandAugment(num_ops=HEAVY.operations, magnitude=27),  # of 30: as 9 of 10
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
            v2.RandomErasing(p=HEAVY.erasing),
        ]
    )
    return lambda images: torch.stack([augment(image) for image in images.permute(0, 3, 1, 2)])


def timms(side: int) -> Augment:
    """On PIL images, as a DataLoader's workers would."""
    augment = pil_transforms.Compose(
        [
            pil_transforms.ToPILImage(),
            pil_transforms.RandomResizedCrop(side, scale=(HEAVY.crop or 1, 1.0)),
            pil_transforms.RandomHorizontalFlip(),
            auto_augment.rand_augment_transform("rand-m9-mstd0.5-inc1", {}),
            pil_transforms.ToTensor(),
            pil_transforms.Normalize(MEAN, STD),
            pil_transforms.RandomErasing(p=HEAVY.erasing),
        ]
    )
    return lambda images: torch.stack([augment(image) for image in images.permute(0, 3, 1, 2)])


def kornias(side: int) -> Augment:
    """On the batch, each image its own box; RandAugment's operations are drawn for all of it."""
    import kornia.augmentation as kornia

    augment = torch.nn.Sequential(
        kornia.RandomResizedCrop((side, side), scale=(HEAVY.crop or 1, 1.0)),
        kornia.RandomHorizontalFlip(),
        kornia.auto.RandAugment(n=HEAVY.operations, m=27),
        kornia.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
        kornia.RandomErasing(p=HEAVY.erasing),
    )
    return lambda images: augment(images.permute(0, 3, 1, 2).float() / 255)


if __name__ == "__main__":
    main()
