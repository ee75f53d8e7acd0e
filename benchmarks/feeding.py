"""How fast pictures become batches: the encoded store beside a DataLoader, part of benchmarks.step.

Both read the same folder of JPEGs of 500 x 375 pixels, collages of natural images where those are
beside the checkout, and give batches of 64: decoded, the short side resized to S (bicubic), the
centre cut out, shifted by up to an eighth of the side with reflected borders, mirrored, normalised.
Nothing is trained. Each rival lives in processes of its own and they take turns, epoch by epoch:

encoded_1     the encoded store in one process, with a decoding thread for each core
encoded_2     in two processes, as two DDP workers, each with half of the threads and the images
pixels_1      the pixel store in one process, which has decoded all of it before
dataloader_0  a torch DataLoader over the files in one process
dataloader_2  the same with two worker processes

``ratio_one_process`` is images/s of encoded_1 over dataloader_0, ``ratio_two_processes`` of
encoded_2 over dataloader_2, and ``ratio_to_faster`` of the encoded store as it is, encoded_1, over
the faster DataLoader: of epochs next to each other in time, the median over rounds. Memory is the
sum of the proportional set sizes of a rival's processes at the end of an epoch, mapped files
included.

python -m benchmarks.feeding RIVAL FOLDER ... is what benchmarks.step starts for each process.
"""

from __future__ import annotations

import io
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from benchmarks.common import NATURAL_IMAGES, ROOT, spread
from trainables.config import DataSpec, Recipe
from trainables.data.batches import BatchPlan, load_pixels
from trainables.data.build import prepare
from trainables.data.store import train_indices
from trainables.train.augmentation import Augmentation, InputTransform, level_of

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 64
JPEG_SIZE = (500, 375)  # about ImageNet's mean, and Imagenette's
JPEG_QUALITY = 90
TILE = 64  # pixels of a natural image in a collage
RIVALS = {"encoded_1": 1, "encoded_2": 2, "pixels_1": 1, "dataloader_0": 1, "dataloader_2": 1}
RATIOS = {
    "ratio_one_process": ("encoded_1", "dataloader_0"),
    "ratio_two_processes": ("encoded_2", "dataloader_2"),
}


def collages(folder: Path, images: int, size: tuple[int, int]) -> Path:
    """Write JPEGs of ``size`` (width, height) in two classes, each of many natural images, or of
    noise where there are none beside the checkout; returns the folder."""
    generator = np.random.default_rng(0)
    tiles = _tiles(generator)
    width, height = size
    across, down = -(-width // TILE), -(-height // TILE)
    for number in range(images):
        chosen = tiles[generator.integers(0, len(tiles), across * down)]
        grid = chosen.reshape(down, across, TILE, TILE, 3).swapaxes(1, 2)
        whole = grid.reshape(down * TILE, across * TILE, 3)[:height, :width]
        path = folder / f"class {number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(whole).save(path, quality=JPEG_QUALITY)
    return folder


def _tiles(generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """(N, TILE, TILE, 3)."""
    if not NATURAL_IMAGES.is_file():
        coarse = generator.integers(0, 256, (64, TILE // 4, TILE // 4, 3), dtype=np.uint8)
        return coarse.repeat(4, 1).repeat(4, 2)
    rows = pq.ParquetFile(NATURAL_IMAGES).iter_batches(batch_size=256, columns=["image"])
    encoded = [row["bytes"] for row in next(rows).column(0).to_pylist()]
    opened = (Image.open(io.BytesIO(content)).convert("RGB") for content in encoded)
    resized = [image.resize((TILE, TILE), Image.Resampling.BICUBIC) for image in opened]
    return np.stack([np.asarray(image) for image in resized])


# --- one process of a rival ---------------------------------------------------------------------


def from_store(folder: Path, form: str, side: int, rank: int, workers: int) -> Callable[[int], int]:
    """Feeds an epoch of this worker's share from the store, through the engine's own code."""
    data = DataSpec(
        source=str(folder / "pictures"),
        folder=str(folder / "stores"),
        short_side=side,
        store=form,
    )
    store = prepare(data)
    pixels = load_pixels(store, "train", torch.device("cpu"))
    rows = torch.from_numpy(train_indices(store, data))
    size = min(BATCH, len(rows) // workers)
    plan = BatchPlan(images=len(rows), batch_size_per_worker=size, world_size=workers)
    augmentation = Augmentation(
        level=level_of(Recipe(augment="light")),
        transform=InputTransform(image_size=side, mean=MEAN, std=STD),
        seed=0,
        mirror=True,
    )

    def epoch(number: int) -> int:
        steps = plan.batches(
            rows, seed=0, epoch=number, rank=rank, row_groups=pixels.row_groups(rows)
        )
        images = 0
        for block, decoded, positions in pixels.cut_all(steps):
            images += len(augmentation(decoded, block, number, positions=positions))
        return images

    return epoch


def from_loader(folder: Path, side: int, workers: int) -> Callable[[int], int]:
    """Feeds an epoch of a DataLoader over the files."""
    shift = max(1, side // 8)
    transform = transforms.Compose(
        [
            transforms.Resize(side, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(side),
            transforms.RandomCrop(side, padding=shift, padding_mode="reflect"),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    loader: DataLoader[Any] = DataLoader(
        datasets.ImageFolder(str(folder / "pictures"), transform),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return lambda number: sum(len(labels) for _, labels in loader)


def serve(epoch: Callable[[int], int]) -> None:
    """Feed an epoch for each line of stdin, and print what it took."""
    for number, _ in enumerate(sys.stdin):
        started = time.perf_counter()
        images = epoch(number)
        seconds = time.perf_counter() - started
        row = {"images": images, "seconds": seconds, "memory_mb": memory_mb()}
        print(json.dumps(row), flush=True)


def memory_mb() -> float:
    """Proportional set size of this process and those it has started, mapped files included."""
    own = Path("/proc/self").resolve()
    children = (own / "task" / own.name / "children").read_text().split()
    rollups = [(own.parent / pid / "smaps_rollup").read_text() for pid in (own.name, *children)]
    lines = [line for text in rollups for line in text.splitlines() if line.startswith("Pss:")]
    return sum(int(line.split()[1]) for line in lines) / 1024


def main() -> None:
    rival, folder, side, threads, rank = sys.argv[1:]
    kind, _, count = rival.partition("_")
    torch.set_num_threads(int(threads))
    if kind == "dataloader":
        serve(from_loader(Path(folder), int(side), int(count)))
    else:
        serve(from_store(Path(folder), kind, int(side), int(rank), int(count)))


# --- all of them --------------------------------------------------------------------------------


class Rival:
    """The processes of one rival, which are idle but for their turn."""

    def __init__(self, name: str, folder: Path, side: int, threads: int, stack: ExitStack) -> None:
        count = RIVALS[name]
        command = [sys.executable, "-m", "benchmarks.feeding", name, str(folder), str(side)]
        self._processes = [
            stack.enter_context(
                subprocess.Popen(
                    [*command, str(max(1, threads // count)), str(rank)],
                    cwd=ROOT,
                    text=True,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            for rank in range(count)
        ]
        self.images_per_second: list[float] = []
        self.memory_mb: list[float] = []
        self._epoch()  # imports, caches, workers

    def take_turn(self) -> None:
        """An epoch, on record."""
        rows = self._epoch()
        seconds = max(row["seconds"] for row in rows)
        self.images_per_second.append(sum(row["images"] for row in rows) / seconds)
        self.memory_mb.append(sum(row["memory_mb"] for row in rows))

    def _epoch(self) -> list[dict[str, float]]:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return [json.loads(line) for line in self._answers()]

    def _answers(self) -> Iterator[str]:
        for process in self._processes:
            assert process.stdout is not None
            yield process.stdout.readline()

    def end(self) -> None:
        """Let the processes end."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()


def measure_feeding(
    folder: Path, *, side: int, images: int, rounds: int, threads: int, size: tuple[int, int]
) -> dict[str, Any]:
    """All rivals at one side, on ``images`` JPEGs of ``size`` that are written to ``folder``."""
    pictures = collages(folder / "pictures", images, size)
    data = {"source": str(pictures), "folder": str(folder / "stores"), "short_side": side}
    for form in ("pixels", "encoded"):
        prepare(DataSpec(**data, store=form))  # type: ignore[arg-type]
    jpegs = [path.stat().st_size for path in pictures.rglob("*.jpg")]
    with ExitStack() as stack:
        rivals = {name: Rival(name, folder, side, threads, stack) for name in RIVALS}
        for _ in range(rounds):
            for rival in rivals.values():
                rival.take_turn()
        for rival in rivals.values():
            rival.end()
    speeds = {name: rival.images_per_second for name, rival in rivals.items()}
    return {
        "side": side,
        "images": images,
        "jpeg_size": list(size),
        "mean_jpeg_bytes": round(statistics.mean(jpegs)),
        "batch_size": BATCH,
        "images_per_second": {name: spread(values) for name, values in speeds.items()},
        "memory_mb": {name: spread(rival.memory_mb) for name, rival in rivals.items()},
        **ratios(speeds),
    }


def ratios(speeds: dict[str, list[float]]) -> dict[str, dict[str, float | int]]:
    """Of the encoded store over DataLoaders, round by round."""
    loaders = ("dataloader_0", "dataloader_2")
    faster = max(loaders, key=lambda name: statistics.median(speeds[name]))
    pairs = {**RATIOS, "ratio_to_faster": ("encoded_1", faster)}
    return {
        name: spread([a / b for a, b in zip(speeds[ours], speeds[theirs], strict=True)])
        for name, (ours, theirs) in pairs.items()
    }


if __name__ == "__main__":
    main()
