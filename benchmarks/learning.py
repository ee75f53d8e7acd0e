"""python -m benchmarks.learning [--data PARQUET] [--quick]
python -m benchmarks.learning --levels [--stop-after MINUTES] ...: see benchmarks/levels.py

Does the engine teach as well as plain PyTorch does? Tiny ViT (patch 4) and tiny ResNet learn
10,000 images for 10 epochs from random weights, over 3 seeds, once by ``fine_tune`` with its
default recipe and once by ``benchmarks/reference.py``: the same recipe without the engine. Both see
the same training and validation images; everything random is drawn by each in its own way.

Stated before measuring, per family, of top-1 on the validation images after the last epoch, with
the difference engine minus reference and its 95 % Welch interval: *no worse, beyond noise* is an
interval whose upper end is not below 0, and a difference of means of no less than -0.015, so that a
wide interval excuses no loss that would matter.

Two runs at a time, one thread each, engine and reference of a seed side by side: about 28 minutes
on 2 cores. ``seconds`` are of training alone. The result goes to benchmarks/results/learning.json,
a summary to the last line of stdout.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from benchmarks import levels, reference
from benchmarks.common import arguments, finish, pictures
from trainables.backbones import build
from trainables.config import Assignment, BackboneSpec, DataSpec, Recipe
from trainables.data.build import prepare
from trainables.data.store import train_indices
from trainables.finetune import fine_tune

BACKBONES = {
    "vit": BackboneSpec(family="vit", patch=4, weights="none"),
    "resnet": BackboneSpec(family="resnet", weights="none"),
}
LOSS_THAT_MATTERS = 0.015  # of top-1
CRITERION = f"upper end of the 95 % Welch interval >= 0 and difference >= -{LOSS_THAT_MATTERS}"
PROCESSES = 2


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: ``code`` is ``engine`` or ``reference``."""

    family: str
    code: str
    seed: int
    epochs: int
    data: DataSpec


def main() -> None:
    if "--levels" in sys.argv[1:]:
        levels.main()
        return
    options = arguments(__doc__, "learning.json").parse_args()
    epochs, seeds, images = (1, 2, 128) if options.quick else (10, 3, 10_000)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = pictures(options.data, folder, quick=options.quick)
        data = DataSpec(source=str(path), train_limit=images, folder=str(folder / "stores"))
        prepare(data)
        runs = [
            Run(family=family, code=code, seed=seed, epochs=epochs, data=data)
            for family in BACKBONES
            for seed in range(seeds)
            for code in ("engine", "reference")
        ]
        results = _train_all(runs)
    families = {
        family: judge([r for r in results if r["family"] == family]) for family in BACKBONES
    }
    keys = ("no_worse", "difference", "interval", "engine_top1", "reference_top1", "seconds")
    summary = {key: {f: found[key] for f, found in families.items()} for key in keys}
    facts = {"data": path.name, "images": images, "epochs": epochs, "criterion": CRITERION}
    finish({**facts, "families": families, "runs": results}, options.out, summary)


def _train_all(runs: list[Run]) -> list[dict[str, Any]]:
    results = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        PROCESSES, context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for future in as_completed([pool.submit(train, run) for run in runs]):
            found = future.result()
            results.append(found)
            print(
                "{family} {code} seed {seed}: top-1 {top1:.4f} in {seconds:.0f} s".format(**found),
                file=sys.stderr,
                flush=True,
            )
    return sorted(results, key=lambda r: (r["family"], r["code"], r["seed"]))


def train(run: Run) -> dict[str, Any]:
    """Train and score: ``family``, ``code``, ``seed``, ``top1`` and ``seconds`` of training."""
    train_by = by_engine if run.code == "engine" else by_reference
    top1, seconds = train_by(run)
    labels = {"family": run.family, "code": run.code, "seed": run.seed}
    return {**labels, "top1": top1, "seconds": seconds}


def by_engine(run: Run) -> tuple[float, float]:
    """Top-1 after the last epoch, and seconds of training."""
    assignment = Assignment(
        trial_id=f"{run.family}-{run.seed}",
        attempt=0,
        backbone=BACKBONES[run.family],
        recipe=Recipe(),
        data=run.data,
        seed=run.seed,
        epochs=run.epochs,
    )
    metrics = [report.metrics for report in fine_tune(assignment)]
    return metrics[-1]["val_top1"], sum(m["train_seconds"] + m["data_seconds"] for m in metrics)


def by_reference(run: Run) -> tuple[float, float]:
    """The same of the plain training."""
    store = prepare(run.data)
    info, rows = store.info, train_indices(store, run.data)
    learn, val = store.split("train"), store.split("val")
    torch.manual_seed(run.seed)
    backbone = build(
        BACKBONES[run.family],
        num_classes=len(info.class_names),
        height=info.height,
        width=info.width,
    )
    look: dict[str, Any] = {"mean": backbone.mean, "std": backbone.std}
    images, labels = torch.from_numpy(learn.images[rows]), torch.from_numpy(learn.labels[rows])
    started = time.perf_counter()
    reference.train(backbone.module, images, labels, seed=run.seed, epochs=run.epochs, **look)
    seconds = time.perf_counter() - started
    truth = torch.from_numpy(val.labels.copy())
    return reference.accuracy(
        backbone.module, torch.from_numpy(val.images[:].copy()), truth, **look
    ), seconds


def judge(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The criterion, on one family's runs; top-1 with mean, standard deviation and n."""
    scores = {c: [r["top1"] for r in results if r["code"] == c] for c in ("engine", "reference")}
    engine, plain = scores["engine"], scores["reference"]
    welch = stats.ttest_ind(engine, plain, equal_var=False).confidence_interval(0.95)
    difference = statistics.mean(engine) - statistics.mean(plain)
    return {
        "no_worse": bool(welch.high >= 0 and difference >= -LOSS_THAT_MATTERS),
        "difference": difference,
        "interval": [float(welch.low), float(welch.high)],
        **{f"{code}_top1": _spread(values) for code, values in scores.items()},
        "seconds": {
            code: statistics.median(r["seconds"] for r in results if r["code"] == code)
            for code in scores
        },
    }


def _spread(values: list[float]) -> dict[str, float | int]:
    return {"mean": statistics.mean(values), "sd": statistics.stdev(values), "n": len(values)}


if __name__ == "__main__":
    main()
