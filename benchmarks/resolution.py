"""python -m benchmarks.resolution [--data photos|cifar10] [--side PX ...] [--seeds N ...] [--quick]

What the side costs and gains that a backbone with trained weights sees. EfficientNet-Lite1 with its
ImageNet weights (``--weights FILE``) is fine-tuned at 64 px, which was once the default for larger
images, and at the side that its weights are published for, today's default, by one recipe:

photos    a folder of 400 photographs of at most 96 px, two classes (``--photos FOLDER``): 260 to
          train, 120 to validate
cifar10   5,000 images of a Parquet file of CIFAR-10 (``--parquet FILE``): 4,000 to train, 1,000 to
          validate, 32 px, upsampled at both sides

Seed by seed both sides see the same training and validation images, and every seed has others.
Nothing is selected, so accuracy is that on validation after the last epoch. ``seconds`` are of
training and evaluation, ``flops`` of both; ``difference`` is the default side less 64 px, paired by
seed, with Student's t interval. Hours on 2 cores, so it runs in pieces: a run whose settings are
those of the result file stays in it, and only what was asked for is trained (again). The result
goes to benchmarks/results/resolution.json, a summary to the last line of stdout.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import timm
import torch
from safetensors.torch import save_file
from scipy import stats

from benchmarks.common import NATURAL_IMAGES, ROOT, arguments, finish, noise
from orchestrator.spec.defaults import HEADROOM
from trainables.backbones import weights_sides
from trainables.config import Assignment, BackboneSpec, DataSpec, Recipe
from trainables.data.build import prepare
from trainables.finetune import fine_tune

SHARED = ROOT.parent / "shared"
WEIGHTS = SHARED / "weights" / "tf_efficientnet_lite1.safetensors"
PHOTOS = SHARED / "data" / "photos"
MODEL, QUICK_MODEL = "tf_efficientnet_lite1", "test_efficientnet"
FORMER_SIDE = 64
# Channels last is 1.6 times as fast on a CPU at 240 px, and the same arithmetic.
RECIPE = Recipe(learning_rate=3e-4, batch_size_per_worker=16, channels_last=True)


@dataclass(frozen=True, kw_only=True)
class Images:
    """A data set, without the seed that draws its images, and for how many ``epochs`` it is
    trained on."""

    data: DataSpec
    epochs: int


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        backbone = _backbone(options, folder)
        both = [FORMER_SIDE, _default_side(backbone)]
        sides = options.side or both
        earlier = _earlier(options.out)
        for name in options.data:
            images = _images(name, options, folder, largest=max(both))
            settings = _settings(images, backbone)
            kept = earlier.get(name, {})
            runs: list[dict[str, Any]] = kept["runs"] if kept.get("settings") == settings else []
            for seed in options.seeds:
                for side in sides:
                    found = train(images, replace(backbone, image_size=side), seed)
                    same = [r for r in runs if (r["side"], r["seed"]) != (side, seed)]
                    runs = sorted([*same, found], key=lambda r: (r["side"], r["seed"]))
                    _say(name, found)
                    earlier[name] = {"settings": settings, **judge(runs, _default_side(backbone))}
                    _write(earlier, backbone, options.out)


def _options() -> argparse.Namespace:
    parser = arguments(__doc__, "resolution.json", reads_pictures=False)
    names = ("photos", "cifar10")
    parser.add_argument("--data", nargs="+", choices=names, default=list(names), help="data sets")
    parser.add_argument("--side", nargs="+", type=int, help="sides in pixels")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="numbers")
    parser.add_argument(
        "--weights", type=Path, default=WEIGHTS, help=f"of {MODEL}, in timm's names"
    )
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="folder of photographs")
    parser.add_argument("--parquet", type=Path, default=NATURAL_IMAGES, help="CIFAR-10")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.quick:
        options.data, options.seeds = ["cifar10"], options.seeds[:2]
    return options


def _backbone(options: argparse.Namespace, folder: Path) -> BackboneSpec:
    """The model with its weights; a tiny one with random weights where it has to be quick."""
    if not options.quick:
        return BackboneSpec(family="timm", model=MODEL, weights=str(options.weights))
    weights = folder / "weights.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model(QUICK_MODEL).state_dict(), weights)
    return BackboneSpec(family="timm", model=QUICK_MODEL, weights=str(weights))


def _default_side(backbone: BackboneSpec) -> int:
    sides = weights_sides(backbone)
    assert sides is not None
    return sides.best


def _images(name: str, options: argparse.Namespace, folder: Path, *, largest: int) -> Images:
    """``name`` as it is stored for the ``largest`` side: the same whichever side is trained."""
    stored = DataSpec(short_side=round(HEADROOM * largest), folder=str(folder / "stores"))
    if options.quick:
        source = noise(folder / "noise.parquet", images=96, classes=2)
        return Images(data=replace(stored, source=str(source), val_fraction=0.2), epochs=1)
    split: dict[str, Any] = {"val_fraction": 0.3, "test_fraction": 0.05}
    if name == "photos":
        return Images(data=replace(stored, source=str(options.photos), **split), epochs=15)
    share = 1000 / pq.read_metadata(options.parquet).num_rows
    split = {"val_fraction": share, "test_fraction": share}
    data = replace(stored, source=str(options.parquet), train_limit=4000, **split)
    return Images(data=data, epochs=1)


def _settings(images: Images, backbone: BackboneSpec) -> dict[str, Any]:
    """What two runs have in common that may be compared; no path of this machine."""
    data = images.data.as_dict(operational=False)
    for own in ("source", "archive", "short_side", "split_seed", "val_seed"):
        data.pop(own, None)
    digest = hashlib.sha256(Path(backbone.weights).read_bytes()).hexdigest()
    settings = {
        "model": backbone.model,
        "weights_sha256": digest[:16],
        "source": Path(images.data.source).name,
        "data": data,
        "recipe": RECIPE.as_dict(),
        "epochs": images.epochs,
        "threads": torch.get_num_threads(),
    }
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def _earlier(out: Path) -> dict[str, Any]:
    """What the result file has by data set; empty where there is none."""
    if not out.is_file():
        return {}
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")).get("data", {})
    return found


def train(images: Images, backbone: BackboneSpec, seed: int) -> dict[str, Any]:
    """Fine-tune with images of the ``seed``'s own; accuracy after the last epoch, and cost."""
    data = replace(images.data, val_seed=seed, train_seed=seed)
    store = prepare(data)
    assignment = Assignment(
        trial_id=f"{backbone.image_size}-{seed}",
        backbone=backbone,
        recipe=RECIPE,
        data=data,
        seed=seed,
        epochs=images.epochs,
    )
    reports = list(fine_tune(assignment, store=store))
    metrics, spent = reports[-1].metrics, ("train_seconds", "data_seconds", "eval_seconds")
    return {
        "side": backbone.image_size,
        "seed": seed,
        "top1": metrics["val_top1"],
        "seconds": sum(report.metrics[name] for report in reports for name in spent),
        "flops": metrics.get("flops"),
        "train_images": reports[0].detail["train_images"],
        "val_images": store.info.counts["val"],
        "stored_px": store.info.height,
    }


def judge(runs: Sequence[Mapping[str, Any]], default: int) -> dict[str, Any]:
    """Accuracy and cost by side, and the ``default`` side less 64 px over the seeds of both."""
    by_side: dict[int, dict[int, Mapping[str, Any]]] = {}
    for run in runs:
        by_side.setdefault(run["side"], {})[run["seed"]] = run
    sides = {
        str(side): {
            "top1": _mean([run["top1"] for run in of_side.values()]),
            "seconds": statistics.median(run["seconds"] for run in of_side.values()),
            "flops": statistics.median(run["flops"] or 0.0 for run in of_side.values()) or None,
        }
        for side, of_side in sorted(by_side.items())
    }
    former, today = by_side.get(FORMER_SIDE, {}), by_side.get(default, {})
    seeds = sorted(former.keys() & today.keys())
    gains = [today[seed]["top1"] - former[seed]["top1"] for seed in seeds]
    return {"sides": sides, "difference": _difference(gains), "runs": list(runs)}


def _mean(values: list[float]) -> dict[str, Any]:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "sd": spread, "n": len(values)}


def _difference(gains: list[float]) -> dict[str, Any] | None:
    """Mean and 95 % interval by Student's t; ``None`` without a pair."""
    if not gains:
        return None
    interval = None
    if len(gains) > 1:
        half = stats.t.ppf(0.975, len(gains) - 1) * statistics.stdev(gains) / len(gains) ** 0.5
        interval = [statistics.mean(gains) - half, statistics.mean(gains) + half]
    return {**_mean(gains), "interval": interval}


def _write(data: dict[str, Any], backbone: BackboneSpec, out: Path) -> None:
    summary = {
        name: {"difference": found["difference"], "sides": found["sides"]}
        for name, found in data.items()
    }
    facts = {"default_side": _default_side(backbone), "former_side": FORMER_SIDE}
    finish({**facts, "data": data}, out, {"summary": summary})


def _say(name: str, run: Mapping[str, Any]) -> None:
    line = "{side} px, seed {seed}: top-1 {top1:.4f} in {seconds:.0f} s".format(**run)
    print(f"{name} at {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
