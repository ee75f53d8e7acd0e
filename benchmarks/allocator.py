"""python -m benchmarks.allocator [--data PARQUET] [--quick]

What it gains on a CPU that freed memory stays with the process (``FREED_MEMORY_KEPT`` of
``trainables/config.py``, as slots hand it to their workers). Forward,
backward and step of one resident batch, in a thread that is not the process's first, as in a slot,
all processors at work. Each measurement has a process of its own, for the C library reads its
options as it starts; the two take turns. ``speed_ratio`` is images/s with the memory kept over
images/s by the C library's default, the median over pairs, beside page faults a step and the
process's peak memory.
About 10 minutes on 2 cores. The result goes to benchmarks/results/allocator.json, a summary to the
last line of stdout.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import arguments, finish, in_words, pictures, spread
from benchmarks.rivals import Plain, from_random_weights
from trainables.config import FREED_MEMORY_KEPT, DataSpec, Recipe
from trainables.data.build import prepare

WARM_UP_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Case:
    """One backbone, and how many steps are measured after the warm-up."""

    family: str
    scale: str
    batch_size: int
    steps: int


CASES = (
    Case(family="resnet", scale="tiny", batch_size=128, steps=20),
    Case(family="vit", scale="tiny", batch_size=128, steps=20),
    Case(family="hybrid", scale="tiny", batch_size=128, steps=20),
    Case(family="convnext", scale="tiny", batch_size=128, steps=40),
    Case(family="resnet", scale="small", batch_size=32, steps=5),
    Case(family="hybrid", scale="small", batch_size=32, steps=5),
)
QUICK = (Case(family="vit", scale="tiny", batch_size=4, steps=1),)


def main() -> None:
    options = arguments(__doc__, "allocator.json").parse_args()
    cases, pairs = (QUICK, 1) if options.quick else (CASES, 6)
    measured: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = pictures(options.data, folder, quick=options.quick)
        data = DataSpec(source=str(path), folder=str(folder / "stores"))
        prepare(data)
        for case in cases:
            rounds = [(_apart(case, data, True), _apart(case, data, False)) for _ in range(pairs)]
            name = f"{case.family} {case.scale}"
            measured[name] = judge(rounds)
            ratio = in_words(measured[name]["speed_ratio"])
            print(f"{name}: {ratio}", file=sys.stderr, flush=True)
    summary = {
        key: {name: round(found[key]["median"], 3) for name, found in measured.items()}
        for key in ("speed_ratio", "peak_memory_ratio", "faults_per_step_by_default")
    }
    threads = len(os.sched_getaffinity(0))
    finish({"data": path.name, "threads": threads, "measured": measured}, options.out, summary)


def _apart(case: Case, data: DataSpec, kept: bool) -> dict[str, float]:
    """The measurement in a process of its own."""
    context = multiprocessing.get_context("spawn")
    before = dict(os.environ)
    os.environ.update(FREED_MEMORY_KEPT if kept else {})
    try:
        with ProcessPoolExecutor(1, context) as pool:
            return pool.submit(in_a_thread, case, data).result()
    finally:
        for name in FREED_MEMORY_KEPT.keys() - before.keys():
            os.environ.pop(name, None)


def in_a_thread(case: Case, data: DataSpec) -> dict[str, float]:
    """The measurement in a thread that is not the first."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(measure, case, data).result()


def measure(case: Case, data: DataSpec) -> dict[str, float]:
    """``images_per_second`` and ``faults`` of a step (medians), ``peak_mb`` of the process."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    recipe = Recipe(batch_size_per_worker=case.batch_size)
    assignment = from_random_weights(case.family, case.scale, recipe, data)
    plain = Plain(assignment, prepare(data), torch.device("cpu"))
    plain.on_resident_batch(WARM_UP_STEPS)
    speeds, faults = [], []
    for _ in range(case.steps):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        speeds.append(plain.on_resident_batch(1))
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return {
        "images_per_second": statistics.median(speeds),
        "faults": statistics.median(faults),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def judge(rounds: list[tuple[dict[str, float], dict[str, float]]]) -> dict[str, Any]:
    """Ratios of pairs (kept, by default), and both sides' own figures; each with its spread."""
    found: dict[str, Any] = {
        name: spread([kept[key] / default[key] for kept, default in rounds])
        for name, key in (("speed_ratio", "images_per_second"), ("peak_memory_ratio", "peak_mb"))
    }
    for side, index in (("kept", 0), ("by_default", 1)):
        found[f"faults_per_step_{side}"] = spread([pair[index]["faults"] for pair in rounds])
        speeds = [pair[index]["images_per_second"] for pair in rounds]
        found[f"images_per_second_{side}"] = spread(speeds)
    return found


if __name__ == "__main__":
    main()
