"""python -m benchmarks.scale [--trials N] [--quick]

What the product's decisions cost when a run is large: 1,000, 10,000 and 100,000 trials of up to 27
epochs under ASHA on 1,000 slots, simulated (orchestrator/simulate) with the product's scheduler,
dispatcher state and ledger, each in a fresh process. An event is a record of the ledger.

``events_per_s`` of the simulation, trainings and all; ``peak_rss_mb`` of its process, which holds
the dispatcher's state and the simulated slots; ``ledger_mb`` and ``ledger_read_s``, the time to
read the ledger and replay it into a state, as a resume and every reading command do.

Stated before measuring: events_per_s at 100,000 trials at least 0.7 of that at 1,000, peak_rss_mb
at most 2,000, wall_s at most 600 on two cores. The result goes to benchmarks/results/scale.json, a
summary to the last line of stdout.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import arguments, finish, largest_rss_mb
from orchestrator.ledger.events import FILE_NAME, read
from orchestrator.ledger.state import replay
from orchestrator.simulate.run import simulate
from orchestrator.simulate.worlds import WORLDS, A, tournament
from orchestrator.spec.limits import SchedulerSpec

TRIALS, QUICK_TRIALS = (1_000, 10_000, 100_000), (100, 1_000)
SLOTS = 1_000
MAX_EPOCHS = 27


def measure(trials: int) -> dict[str, Any]:
    """One run, in this process."""
    scheduler = SchedulerSpec(max_epochs=MAX_EPOCHS)
    spec = tournament(
        candidates=(A,), trials=trials, scheduler=scheduler, searches=1, final_seeds=0
    )
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        run = simulate(spec, WORLDS["null"], Path(folder), slots=SLOTS)
        wall_s = time.perf_counter() - began
        rss_mb = largest_rss_mb()
        epochs = sum(trial.epoch for trial in run.state.trials.values())
        del run
        path = Path(folder) / FILE_NAME
        began = time.perf_counter()
        state = replay(read(path))
        read_s = time.perf_counter() - began
        with path.open("rb") as file:
            events = sum(1 for _ in file)
        size_mb = path.stat().st_size / 2**20
    assert len(state.trials) == trials
    return {
        "trials": trials,
        "epochs": epochs,
        "events": events,
        "wall_s": round(wall_s, 2),
        "events_per_s": round(events / wall_s),
        "peak_rss_mb": round(rss_mb),
        "ledger_mb": round(size_mb, 1),
        "ledger_read_s": round(read_s, 2),
    }


def main() -> None:
    parser = arguments(__doc__, "scale.json", reads_pictures=False)
    parser.add_argument("--trials", type=int, action="append")
    parser.add_argument("--one", type=int, help="measure this many in this process and print it")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    runs = []
    for trials in options.trials or (QUICK_TRIALS if options.quick else TRIALS):
        command = [sys.executable, "-m", "benchmarks.scale", "--one", str(trials)]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        runs.append(json.loads(printed.splitlines()[-1]))
        print(runs[-1], flush=True)
    largest = runs[-1]
    summary = {
        **largest,
        "events_per_s_ratio": round(largest["events_per_s"] / runs[0]["events_per_s"], 3),
    }
    settings = {"slots": SLOTS, "max_epochs": MAX_EPOCHS, "scheduler": "asha"}
    finish({"settings": settings, "runs": runs}, options.out, summary)


if __name__ == "__main__":
    main()
