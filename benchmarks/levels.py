"""python -m benchmarks.learning --levels [--data PARQUET] [--epochs N] [--seeds N] [--processes N]
    [--stop-after MINUTES] [--quick]

Do the published levels of augmentation teach a ViT from scratch more than the geometric ones did?
Tiny ViT (patch 4) learns 10,000 images of CIFAR-10 from random weights with the default recipe, at
level medium and at level heavy, of each set, over 5 seeds; a seed has the same first weights and
the same order of images in both sets. ``published_minus_geometric`` is the difference in top-1 on
the validation images after the last epoch, the mean over seeds with Student's 95 % interval of the
pairs.

20 trainings, two at a time with one thread each: about 35 minutes on 2 cores. Each is
written down as it ends, in ``RESULT.runs.jsonl`` beside the result, and is not trained again when
the command is repeated; ``--stop-after`` starts none after that many minutes. The result, of the
seeds that all sets have by then, goes to benchmarks/results/levels.json, a summary to the last line
of stdout.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from benchmarks.common import arguments, finish, pictures
from trainables.config import Assignment, BackboneSpec, DataSpec, Recipe
from trainables.data.build import prepare
from trainables.finetune import fine_tune

BACKBONE = BackboneSpec(family="vit", patch=4, weights="none")
SETS = ("geometric", "published")
LEVELS = ("heavy", "medium")
SEEDS, IMAGES, EPOCHS = 5, 10_000, 4
PROCESSES = 2
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training; what is on record of it is found by these."""

    level: str
    augment_set: str
    seed: int
    epochs: int
    images: int
    data: str


Result = dict[str, Any]  # a run's fields with ``top1``, ``train_loss`` and ``seconds``


def main() -> None:
    parser = arguments(__doc__, "levels.json")
    parser.add_argument("--levels", action="store_true", help="this benchmark")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--stop-after", type=float, metavar="MINUTES")
    options = parser.parse_args()
    epochs, seeds, images = options.epochs, options.seeds, IMAGES
    if options.quick:
        epochs, seeds, images = 1, 2, 128
    record = options.out.with_suffix(".runs.jsonl")
    minutes = float("inf") if options.stop_after is None else options.stop_after
    deadline = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = pictures(options.data, folder, quick=options.quick)
        data = DataSpec(source=str(path), train_limit=images, folder=str(folder / "stores"))
        prepare(data)
        wanted = runs(seeds=seeds, epochs=epochs, images=images, data=path.name)
        done = on_record(record, wanted)
        left = [run for run in wanted if run not in done]
        for result in train_all(left, data, processes=options.processes, deadline=deadline):
            record.parent.mkdir(parents=True, exist_ok=True)
            with record.open("a", encoding="utf-8") as lines:
                lines.write(f"\n{json.dumps(result)}\n")  # also after a line cut short
    results = list(on_record(record, wanted).values())
    summary = {
        "complete": len(results) == len(wanted),
        "trainings": f"{len(results)} of {len(wanted)}",
        "published_minus_geometric": {level: difference(results, level) for level in LEVELS},
        "top1": {f"{level} {of}": spread(results, level, of) for level, of in arms()},
    }
    facts = {"data": path.name, "images": images, "epochs": epochs, "confidence": CONFIDENCE}
    finish({**facts, "runs": results}, options.out, summary)


def arms() -> list[tuple[str, str]]:
    """Level and set of each."""
    return [(level, chosen) for level in LEVELS for chosen in SETS]


def runs(*, seeds: int, epochs: int, images: int, data: str) -> list[Run]:
    """Level by level and seed by seed, so that a record cut short has whole pairs."""
    return [
        Run(level=level, augment_set=of, seed=seed, epochs=epochs, images=images, data=data)
        for level in LEVELS
        for seed in range(seeds)
        for of in SETS
    ]


def on_record(file: Path, wanted: Sequence[Run]) -> dict[Run, Result]:
    """The results of those that were trained before; a line cut short is none."""
    done: dict[Run, Result] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            result = json.loads(line)
        except ValueError:
            continue
        run = Run(**{one.name: result[one.name] for one in fields(Run)})
        if run in wanted:
            done[run] = result
    return done


def train_all(
    left: Sequence[Run], data: DataSpec, *, processes: int, deadline: float
) -> Iterator[Result]:
    """Results as trainings end; none begins after ``deadline`` (of the monotonic clock)."""
    context = multiprocessing.get_context("spawn")
    waiting = list(left)
    running: set[Future[Result]] = set()
    with ProcessPoolExecutor(
        processes, context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        while running or (waiting and time.monotonic() < deadline):
            while waiting and len(running) < processes and time.monotonic() < deadline:
                running.add(pool.submit(train, waiting.pop(0), data))
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                result = future.result()
                line = "{level} {augment_set} seed {seed}: top-1 {top1:.4f} in {seconds:.0f} s"
                print(line.format(**result), file=sys.stderr, flush=True)
                yield result


def train(run: Run, data: DataSpec) -> Result:
    """Train it from scratch; top-1 after the last epoch."""
    assignment = Assignment(
        trial_id=f"{run.level}-{run.augment_set}-{run.seed}",
        attempt=0,
        backbone=BACKBONE,
        recipe=Recipe(augment=run.level, augment_set=run.augment_set),
        data=data,
        seed=run.seed,
        epochs=run.epochs,
    )
    metrics = [report.metrics for report in fine_tune(assignment)]
    return {
        **asdict(run),
        "top1": metrics[-1]["val_top1"],
        "train_loss": metrics[-1]["train_loss"],
        "seconds": sum(m["train_seconds"] + m["data_seconds"] for m in metrics),
    }


def top1_by_seed(results: Sequence[Result], level: str, of: str) -> dict[int, float]:
    """Of one arm."""
    return {
        result["seed"]: result["top1"]
        for result in results
        if (result["level"], result["augment_set"]) == (level, of)
    }


def difference(results: Sequence[Result], level: str) -> dict[str, Any] | None:
    """Published minus geometric over the seeds that both have; ``None`` for fewer than two."""
    old, new = (top1_by_seed(results, level, of) for of in SETS)
    pairs = [new[seed] - old[seed] for seed in sorted(old.keys() & new.keys())]
    if len(pairs) < 2:
        return None
    interval = stats.ttest_1samp(pairs, 0.0).confidence_interval(CONFIDENCE)
    return {
        "mean": statistics.mean(pairs),
        "interval": [float(interval.low), float(interval.high)],
        "n": len(pairs),
    }


def spread(results: Sequence[Result], level: str, of: str) -> dict[str, Any] | None:
    """Mean and standard deviation over seeds; ``None`` for fewer than two."""
    values = list(top1_by_seed(results, level, of).values())
    if len(values) < 2:
        return None
    return {"mean": statistics.mean(values), "sd": statistics.stdev(values), "n": len(values)}


if __name__ == "__main__":
    main()
