"""python examples/own_dataset.py stripes && python -m orchestrator data info stripes

A dataset of your own is a folder of pictures, FOLDER/CLASS/picture.png, of any sizes; train/,
val/ and test/ above the classes are used where you have them. This makes one to try: stripes
that lean to the left or to the right, which a two-epoch model can learn.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

IMAGES_PER_CLASS = 200
USAGE = "usage: python examples/own_dataset.py FOLDER (a new one)"


def stripes(rng: np.random.Generator, slope: int) -> Image.Image:
    """One picture of 24 to 48 pixels a side: stripes of a random width and colour, with noise."""
    height, width = rng.integers(24, 49, size=2)
    row, column = np.mgrid[:height, :width]
    phase = (row + slope * column) / rng.uniform(1.5, 3.0) + rng.uniform(0, 6.28)
    colour = rng.uniform(80, 200, size=3)
    pixels = colour * (1 + 0.5 * np.sin(phase)[..., None])  # (H, W, C)
    pixels += rng.normal(0, 15, size=pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def main(folder: Path) -> None:
    """Write both classes below ``folder`` and say what to do with it."""
    rng = np.random.default_rng(0)
    for name, slope in {"left": 1, "right": -1}.items():
        (folder / name).mkdir(parents=True)
        for index in range(IMAGES_PER_CLASS):
            stripes(rng, slope).save(folder / name / f"{index:03d}.png")
    print(f"next: python -m orchestrator sweep vit --dataset {folder} --set recipe.flip=false")
    print("(a mirrored stripe leans the other way, so mirroring would teach the wrong class)")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-") or Path(sys.argv[1]).exists():
        sys.exit(USAGE)
    main(Path(sys.argv[1]))
