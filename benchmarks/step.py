"""python -m benchmarks.step [--data PARQUET] [--families FAMILY ...] [--scales SCALE ...]
    [--device cpu|cuda] [--ways] [--sides PX ...] [--feed] [--quick]

What an epoch of the engine costs beyond its arithmetic. For each family and scale, in one process:

A  the engine: an epoch of ``fine_tune`` with the default recipe (augmentation light, clipping,
   schedule), from the pixel store, by the wall clock less the evaluation
B  compute: forward, backward and step of the same model, optimizer, batch size, precision and
   threads on one resident random batch, and nothing else
C  a torch DataLoader, with 0 and with 2 workers, that reads the same Parquet, decodes with PIL and
   augments with torchvision, training the same model as B

All have the same threads and, on a CPU, the same freed memory kept (``trainables/memory.py``).
There A and B take turns step by step, so that what else the machine does meets both alike; on a
GPU, where steps overlap, epoch by epoch. C takes its turn beside an epoch of A alone.
``ratio_to_compute`` is images/s of A over B, the median over rounds; ``ratio_to_dataloader`` of A
over the faster C. Per family, each is the lower of its scales; each scale with its spread
(quartiles) and n stands under ``ratio_to_compute_by_scale`` and so on. On a GPU in bf16, and with
the share of the device's bf16 peak where that is known. About 30 minutes on 2 cores. With
``--ways``, and always on a GPU, the ways to carry a step out are measured too
(``benchmarks/execution.py``): fp32, bf16, channels last, compiled. The result goes to
benchmarks/results/step-DEVICE.json, a summary to the last line of stdout.

``--sides 64 224`` measures A beside B on pixels of these sides too, at tiny scale and 128 images a
step up to 64 px, 32 at larger sides (``ratio_to_compute_by_side``). ``--feed`` measures the
encoded store beside a DataLoader over the same files, images/s and memory
(``benchmarks/feeding.py``). ``--scales`` without a name leaves out what is above. Asked:
``ratio_to_compute`` of 0.97 at 32 and 64 px and 0.9 at 224, and 1.5 times the DataLoader's images/s
from the encoded store.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import arguments, finish, in_words, pictures, spread
from benchmarks.execution import line_of, measure_ways
from benchmarks.feeding import JPEG_SIZE, RATIOS, collages, measure_feeding
from benchmarks.rivals import Engine, Loader, Plain, from_random_weights
from trainables.config import Assignment, DataSpec, Recipe
from trainables.data.build import prepare
from trainables.data.store import ImageStore

FAMILIES = ("resnet", "vit", "hybrid", "convnext")
# What a step costs whatever its size, the gradients' norm above all, weighs twice as much at half
# the batch: ConvNeXt came to between 0.96 and 0.98 at 64 and 16.
BATCH_SIZES = {"cpu": {"tiny": 128, "small": 32}, "cuda": {"tiny": 1024, "small": 512}}
SCALES = ("tiny", "small")
WORKERS = (0, 2)
WAYS_ROUNDS = 10
SIDE_STEPS, SIDE_ROUNDS = 10, 10
SMALL_SIDE, LARGE_SIDE_BATCH = 64, 32  # up to so many pixels the batch of the rest is used
FEED_SIDES = (64, 224)
FEED_IMAGES, FEED_ROUNDS = 640, 5
VAL_FRACTION = 0.001  # evaluation is not measured, and would part A from B in time
BF16_PEAK = {  # dense FLOP/s as the makers state them
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}


@dataclass(frozen=True, kw_only=True)
class Effort:
    """``seconds`` one measurement lasts, in ``steps`` within bounds; how often all take turns."""

    seconds: float = 2.0
    fewest_steps: int = 4
    most_steps: int = 200
    rounds: int = 20  # each gives one pair of A and B; single ones scatter by 3 % either way
    loader_rounds: int = 3


QUICK = Effort(seconds=0.1, fewest_steps=1, most_steps=2, rounds=1, loader_rounds=1)
EFFORTS = {"tiny": Effort(rounds=40), "small": Effort(seconds=4.0)}


def main() -> None:
    parser = arguments(__doc__, "step.json")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--scales", nargs="*", choices=SCALES, default=list(SCALES))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--ways", action="store_true", help="measure precision, layout, compiling")
    parser.add_argument("--sides", nargs="+", type=int, default=[], metavar="PX")
    parser.add_argument("--feed", action="store_true", help="measure how fast pictures are decoded")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    has_gpu = torch.cuda.is_available()
    if options.device == "cuda" and not has_gpu:
        parser.error("--device cuda needs a GPU that torch sees; there is none")
    device = torch.device(options.device or ("cuda" if has_gpu else "cpu"))
    measured: dict[str, dict[str, Any]] = {family: {} for family in options.families}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = pictures(options.data, folder, quick=options.quick)
        data = DataSpec(source=str(path), val_fraction=VAL_FRACTION, folder=str(folder / "stores"))
        store = prepare(data)
        for scale in options.scales:
            effort = QUICK if options.quick else EFFORTS[scale]
            for family in options.families:
                found = measure(family, scale, data, store, path, device, effort)
                if options.ways or device.type == "cuda":
                    ways = ways_of(family, scale, data, store, device, found["steps"], effort)
                    found["ways"] = ways
                measured[family][scale] = found
                say(family, scale, found)
        by_side = {
            side: measure_side(side, options.families, folder / f"{side}", device, options.quick)
            for side in options.sides
        }
        feed = measure_feeds(folder, options.threads, options.quick) if options.feed else {}
    result = {"data": path.name, "threads": options.threads, "measured": measured}
    result |= {"measured_by_side": by_side, "feed": feed}
    out = options.out.with_stem(f"{options.out.stem}-{device.type}")
    finish(result, out, {"device": device.type, **summary(measured), **more(by_side, feed)})


def measure_side(
    side: int, families: list[str], folder: Path, device: torch.device, quick: bool
) -> dict[str, Any]:
    """By family: A beside B, at tiny scale on pixels of ``side``."""
    batch_size = LARGE_SIDE_BATCH if side > SMALL_SIDE else BATCH_SIZES["cpu"]["tiny"]
    images = (2 if quick else SIDE_STEPS) * batch_size
    source = collages(folder / "pictures", images, (side, side))
    data = DataSpec(
        source=str(source), folder=str(folder / "stores"), short_side=side, store="pixels"
    )
    store, effort = prepare(data), QUICK if quick else Effort(rounds=SIDE_ROUNDS)
    found = {}
    for family in families:
        recipe = Recipe(batch_size_per_worker=batch_size)
        assignment = from_random_weights(family, "tiny", recipe, data)
        torch.manual_seed(0)
        plain = Plain(assignment, store, device)
        steps = _steps(plain, effort, store.info.counts["train"])
        engine = Engine(_limited(assignment, steps * plain.size), store, device, plain)
        engine.images_per_second()
        pairs = [engine.beside_rival() for _ in range(effort.rounds)]
        engine.epochs.close()  # type: ignore[attr-defined]
        found[family] = {
            "ratio_to_compute": spread([ours / bare for ours, bare in pairs]),
            "images_per_second": {
                "engine": spread([ours for ours, _ in pairs]),
                "compute": spread([bare for _, bare in pairs]),
            },
            "image_size": int(plain.images.shape[-1]),
            "batch_size": plain.size,
            "steps": steps,
        }
        ratio = in_words(found[family]["ratio_to_compute"])
        print(f"{family} at {side} px: to compute {ratio}", file=sys.stderr)
    return found


def measure_feeds(folder: Path, threads: int, quick: bool) -> dict[str, Any]:
    """By side: the encoded store beside DataLoaders."""
    found = {}
    for side in FEED_SIDES[:1] if quick else FEED_SIDES:
        found[str(side)] = row = measure_feeding(
            folder / f"feed-{side}",
            side=side,
            images=40 if quick else FEED_IMAGES,
            rounds=1 if quick else FEED_ROUNDS,
            threads=threads,
            size=(160, 120) if quick else JPEG_SIZE,
        )
        ratios = ", ".join(f"{name} {in_words(row[name])}" for name in RATIOS)
        print(f"encoded at {side} px: {ratios}", file=sys.stderr)
    return found


def more(by_side: dict[int, Any], feed: dict[str, Any]) -> dict[str, Any]:
    """What is in the summary of sides and of the encoded store, where they were measured."""
    found: dict[str, Any] = {}
    if by_side:
        found["ratio_to_compute_by_side"] = {
            str(side): {
                name: round(row["ratio_to_compute"]["median"], 4) for name, row in of.items()
            }
            for side, of in by_side.items()
        }
    if feed:
        found["encoded_to_dataloader"] = {
            side: {name: round(row[name]["median"], 3) for name in (*RATIOS, "ratio_to_faster")}
            for side, row in feed.items()
        }
    return found


def measure(
    family: str,
    scale: str,
    data: DataSpec,
    store: ImageStore,
    path: Path,
    device: torch.device,
    effort: Effort,
) -> dict[str, Any]:
    """All rivals of one backbone, taking turns; speeds in images/s."""
    recipe = Recipe(
        batch_size_per_worker=BATCH_SIZES[device.type][scale],
        precision="bf16" if device.type == "cuda" else "fp32",
    )
    assignment = from_random_weights(family, scale, recipe, data)
    torch.manual_seed(0)
    plain = Plain(assignment, store, device)
    steps = _steps(plain, effort, store.info.counts["train"])
    engine = Engine(_limited(assignment, steps * plain.size), store, device, plain)
    loaders = {w: Loader(plain, path, workers=w, steps=steps) for w in WORKERS}
    engine.images_per_second()  # the first epoch builds the trial
    speeds: dict[str, list[float]] = {"engine": [], "compute": [], "engine_alone": []}
    speeds |= {f"dataloader_{workers}": [] for workers in WORKERS}
    for number in range(effort.rounds):
        if device.type == "cpu":
            ours, bare = engine.beside_rival()
        else:
            ours, bare = engine.images_per_second(), plain.on_resident_batch(steps)
        speeds["engine"].append(ours)
        speeds["compute"].append(bare)
        if number < effort.loader_rounds:
            speeds["engine_alone"].append(engine.images_per_second())
            for workers, loader in loaders.items():
                speeds[f"dataloader_{workers}"].append(loader.images_per_second())
    engine.epochs.close()  # type: ignore[attr-defined]
    return {
        **_ratios(speeds),
        **_share_of_peak(speeds["engine"], plain, device),
        "images_per_second": {name: spread(values) for name, values in speeds.items()},
        "batch_size": plain.size,
        "steps": steps,
        "precision": recipe.precision,
    }


def ways_of(
    family: str,
    scale: str,
    data: DataSpec,
    store: ImageStore,
    device: torch.device,
    steps: int,
    effort: Effort,
) -> dict[str, Any]:
    """The ways to carry out one backbone's ``steps``, taking turns."""
    recipe = Recipe(batch_size_per_worker=BATCH_SIZES[device.type][scale])
    plain = from_random_weights(family, scale, recipe, data)
    epoch = _limited(plain, steps * recipe.batch_size_per_worker)
    ways = measure_ways(epoch, store, device, rounds=min(effort.rounds, WAYS_ROUNDS))
    print(f"{family} {scale}: images/s by way, {line_of(ways)}", file=sys.stderr)
    return ways


def _limited(assignment: Assignment, images: int) -> Assignment:
    """An epoch of ``images``: that many training images and no more."""
    values = assignment.as_dict()
    return Assignment.from_dict({**values, "data": {**values["data"], "train_limit": images}})


def _steps(plain: Plain, effort: Effort, images: int) -> int:
    plain.on_resident_batch(2)  # warm-up
    speed = statistics.median(plain.on_resident_batch(1) for _ in range(3))
    wanted = round(effort.seconds * speed / plain.size)
    most = min(effort.most_steps, images // plain.size)
    return max(1, min(max(wanted, effort.fewest_steps), most))


def _ratios(speeds: dict[str, list[float]]) -> dict[str, Any]:
    """Of speeds next to each other in time: A and B in each round, A alone and C in some."""
    engine, compute = speeds["engine"], speeds["compute"]
    found = {"ratio_to_compute": spread([a / b for a, b in zip(engine, compute, strict=True)])}
    for workers in WORKERS:
        loaders = speeds[f"dataloader_{workers}"]
        ratios = [a / c for a, c in zip(speeds["engine_alone"], loaders, strict=True)]
        found[f"ratio_to_dataloader_{workers}"] = spread(ratios)
    fastest = max(WORKERS, key=lambda w: statistics.median(speeds[f"dataloader_{w}"]))
    found["ratio_to_dataloader"] = found[f"ratio_to_dataloader_{fastest}"]
    return found


def _share_of_peak(speeds: list[float], plain: Plain, device: torch.device) -> dict[str, float]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    peak = next((flops for part, flops in BF16_PEAK.items() if part in name), None)
    if peak is None:
        return {}
    return {"share_of_bf16_peak": statistics.median(speeds) * plain.flops_per_image / peak}


def summary(measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Each ratio by family, the lower of its scales, and by family and scale."""
    found: dict[str, Any] = {}
    for name in ("ratio_to_compute", "ratio_to_dataloader"):
        by_scale = {
            family: {scale: round(row[name]["median"], 4) for scale, row in scales.items()}
            for family, scales in measured.items()
        }
        found[name] = {family: min(row.values()) for family, row in by_scale.items() if row}
        found[f"{name}_by_scale"] = by_scale
    return found


def say(family: str, scale: str, found: dict[str, Any]) -> None:
    """One line on stderr as soon as it is known."""
    speed = found["images_per_second"]["engine"]["median"]
    ratios = (
        f"{label} {in_words(row)}"
        for label, row in (
            ("to compute", found["ratio_to_compute"]),
            ("to DataLoader", found["ratio_to_dataloader"]),
        )
    )
    print(f"{family} {scale}: {speed:.0f} images/s, {', '.join(ratios)}", file=sys.stderr)


if __name__ == "__main__":
    main()
