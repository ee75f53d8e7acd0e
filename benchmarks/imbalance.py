"""python -m benchmarks.imbalance [--data PARQUET] [--weights FILE] [--epochs N] [--quick]

Does it matter by which metric a recipe is chosen where classes are of unequal size, and do class
weights help? Natural images of ten classes, five of which have 50 times as many as the other five,
in train (500 and 10 a class), val (500 and 10) and test (2,000 and 40), drawn anew for each seed.

A sweep of six trials for each of three seeds: ``recipe.class_weights`` is none, balanced and
effective at each of two learning rates that the product's own sampler draws (log, 3e-4 to 1e-2).
All are trained to the end, so sweeps by top1 and by macro_f1 train the same trials and differ in
who wins: the best by val top1, or by val macro_f1, after the last epoch. Both winners meet test.

Stated before measuring: the winner by macro_f1 has the higher macro F1 on test in the mean over
seeds, and the winner by top1 a top-1 that is no more than a point lower. With three seeds neither
is a verdict; every value is in the result. The model is a head on a frozen tf_efficientnet_lite1 of
ImageNet weights at 64 px: some 20 minutes of a core. (A tiny ResNet from scratch, tried first,
learned nothing of the rare classes, whatever they weigh: both metrics chose the same trials.) The
result goes to benchmarks/results/imbalance.json, a summary to the last line of stdout.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.metrics import accuracy_score, f1_score, recall_score

from benchmarks.common import NATURAL_IMAGES, ROOT, arguments, finish, pictures
from orchestrator.spec.spaces import LogUniform, sample
from trainables.config import CLASS_WEIGHTS, Assignment, BackboneSpec, DataSpec, Recipe
from trainables.data.build import prepare
from trainables.evaluate.model import evaluate_split
from trainables.finetune import fine_tune

PROCESSES = 2
METRICS = ("top1", "macro_f1")
WEIGHTS = ROOT.parent / "shared" / "weights" / "tf_efficientnet_lite1.safetensors"
RATES = {"recipe.learning_rate": LogUniform(3e-4, 1e-2)}
RARE = range(5, 10)


@dataclass(frozen=True, kw_only=True)
class Size:
    """Images of a common and of a rare class by split, and how much is trained."""

    counts: Mapping[str, tuple[int, int]]
    seeds: int
    rates: int
    epochs: int


FULL = Size(
    counts={"train": (500, 10), "val": (500, 10), "test": (2000, 40)}, seeds=3, rates=2, epochs=5
)
QUICK = Size(counts={"train": (20, 3), "val": (6, 1), "test": (8, 2)}, seeds=2, rates=1, epochs=1)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training: its images by seed, and what it varies."""

    seed: int
    class_weights: str
    learning_rate: float
    epochs: int
    source: str
    folder: str
    weights: str | None


def main() -> None:
    parser = arguments(__doc__, "imbalance.json")
    parser.add_argument("--epochs", type=int, help="of a trial; 40 steps each")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="of tf_efficientnet_lite1")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    size = replace(size, epochs=options.epochs or size.epochs)
    if not options.quick and options.data is None and not NATURAL_IMAGES.is_file():
        sys.exit("skipped: there are no natural images beside the checkout. Fix: --data PARQUET")
    if not options.quick and not options.weights.is_file():
        sys.exit(f"skipped: there are no weights at {options.weights}. Fix: --weights FILE")
    pretrained = None if options.quick else str(options.weights)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        table = pq.read_table(pictures(options.data, folder, quick=options.quick))
        trials = []
        for seed in range(size.seeds):
            source = unequal(table, size.counts, folder / f"seed-{seed}", seed)
            prepare(data_of(source, folder))
            rates = [sample(RATES, seed=seed, index=i) for i in range(size.rates)]
            trials += [
                Trial(
                    seed=seed, class_weights=weights, epochs=size.epochs, source=str(source),
                    learning_rate=rate["recipe.learning_rate"], folder=str(folder),
                    weights=pretrained,
                )
                for rate in rates for weights in CLASS_WEIGHTS
            ]  # fmt: skip
        rows = train_all(trials)
        winners = winners_of(rows)
        for winner in winners:
            winner["test"] = tested(winner["trial"], winner.pop("checkpoint"))
            print("{by} seed {seed}: {test}".format(**winner), file=sys.stderr, flush=True)
    plain = [{k: v for k, v in row.items() if k not in ("trial", "checkpoint")} for row in rows]
    for winner in winners:
        del winner["trial"]
    summary = {
        "test_of_winners": {
            f"by_{by}": {
                metric: in_short([w["test"][metric] for w in winners if w["by"] == by])
                for metric in (*METRICS, "recall_of_rare", "recall_of_common")
            }
            for by in METRICS
        },
        "val_by_class_weights": {
            weights: {
                metric: in_short([r[metric] for r in plain if r["class_weights"] == weights])
                for metric in METRICS
            }
            for weights in CLASS_WEIGHTS
        },
    }
    facts = {"images": asdict(size)["counts"], "seeds": size.seeds, "epochs": size.epochs}
    facts["backbone"] = (
        "tiny resnet, 16 px" if options.quick else "a head on tf_efficientnet_lite1, 64 px"
    )
    finish({**facts, "winners": winners, "trials": plain}, options.out, summary)


def unequal(
    table: pa.Table, counts: Mapping[str, tuple[int, int]], folder: Path, seed: int
) -> Path:
    """Write Parquet files by split of as many images of each class as ``counts`` says, none in two
    splits; the folder."""
    folder.mkdir()
    draw = np.random.default_rng(seed)
    labels = table.column("label").to_numpy()
    left = {label: draw.permutation(np.flatnonzero(labels == label)) for label in range(10)}
    for split, (common, rare) in counts.items():
        rows = []
        for label, own in left.items():
            count = rare if label in RARE else common
            rows.append(own[:count])
            left[label] = own[count:]
        pq.write_table(table.take(np.concatenate(rows)), folder / f"{split}.parquet")
    return folder


def data_of(source: Path | str, folder: Path | str) -> DataSpec:
    """The images of one seed."""
    return DataSpec(source=str(source), folder=str(Path(folder) / "stores"))


def assignment_of(trial: Trial) -> Assignment:
    """What a trial trains."""
    name = f"{trial.class_weights}-{trial.seed}-{trial.learning_rate:g}"
    return Assignment(
        trial_id=name,
        backbone=BackboneSpec(family="resnet", image_size=16)
        if trial.weights is None
        else BackboneSpec(
            family="timm", model="tf_efficientnet_lite1", weights=trial.weights, image_size=64
        ),
        recipe=Recipe(
            learning_rate=trial.learning_rate,
            class_weights=trial.class_weights,
            freeze="full" if trial.weights is None else "head",
        ),
        data=data_of(trial.source, trial.folder),
        seed=trial.seed,
        epochs=trial.epochs,
        checkpoint_folder=str(Path(trial.folder) / "checkpoints" / name / "attempt-1"),
        checkpoint_every_epochs=trial.epochs,
    )


def train_all(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """A row a trial, in their order: what it varies, and both metrics of val."""
    context = multiprocessing.get_context("spawn")
    rows = {}
    with ProcessPoolExecutor(
        PROCESSES, context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        futures = {pool.submit(train, trial): trial for trial in trials}
        for future in as_completed(futures):
            rows[futures[future]] = row = future.result()
            line = "{class_weights} seed {seed}: top1 {top1:.4f}, macro_f1 {macro_f1:.4f}"
            print(line.format(**row), file=sys.stderr, flush=True)
    return [rows[trial] for trial in trials]


def train(trial: Trial) -> dict[str, Any]:
    """Train to the end; metrics of val are those of the last epoch."""
    *_, last = fine_tune(assignment_of(trial))
    return {
        "seed": trial.seed, "class_weights": trial.class_weights,
        "learning_rate": trial.learning_rate,
        **{metric: last.metrics[f"val_{metric}"] for metric in METRICS},
        "train_seconds": last.metrics["train_seconds"] * trial.epochs,
        "trial": trial, "checkpoint": last.checkpoint,
    }  # fmt: skip


def winners_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The best trial of each seed by each metric."""
    winners = []
    for seed in sorted({row["seed"] for row in rows}):
        for by in METRICS:
            own = [row for row in rows if row["seed"] == seed]
            winners.append({"by": by, **max(own, key=lambda row: row[by])})
    return winners


def tested(trial: Trial, checkpoint: str) -> dict[str, float]:
    """What scikit-learn says of the model's predictions of test."""
    assignment = replace(assignment_of(trial), checkpoint=None)
    store = prepare(assignment.data)
    labels = store.labels("test")
    predicted = evaluate_split(assignment, checkpoint, "test", store=store)
    recalls = recall_score(labels, predicted, average=None, labels=range(10), zero_division=0)
    return {
        "top1": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, average="macro")),
        "recall_of_rare": float(recalls[list(RARE)].mean()),
        "recall_of_common": float(np.delete(recalls, list(RARE)).mean()),
    }


def in_short(values: list[float]) -> dict[str, float | int | None]:
    """Mean, standard deviation (``None`` of one value) and n."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "sd": deviation, "n": len(values)}


if __name__ == "__main__":
    main()
