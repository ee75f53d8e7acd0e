"""python -m benchmarks.bare LEDGER OUT [--processes N]

Part (a) of ``benchmarks.sweep``: the trials of a run again, in bare Python processes and nothing
else. Each takes the next trial in the order in which the run began them, trains it by ``fine_tune``
to the epoch at which the run ended it, with the same evaluation and checkpoints, and keeps the
newest checkpoint, as a slot does. Threads and nice level are a slot's. The run may still be under
way, as long as it is ahead: ``waited`` tells how long a process had to wait for it. What happened
when goes to OUT, one JSON record a line as in a ledger.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

from orchestrator.ledger.events import tail
from orchestrator.ledger.state import State, TrialState, apply, replay
from trainables.config import FREED_MEMORY_KEPT, Assignment

RAY_WORKER_NICENESS = 15  # what Ray gives its workers unless told otherwise


def work_of(records: list[dict[str, Any]]) -> list[tuple[Assignment, int]]:
    """(assignment, epochs) of each trial of a ledger, in the order in which they began."""
    trials = replay(records).trials
    begun = dict.fromkeys(record["trial"] for record in records if record["event"] == "started")
    return [(trials[name].assignment, len(trials[name].reports)) for name in begun]


class Followed:
    """A run's ledger, as far as it has got."""

    def __init__(self, ledger: Path) -> None:
        self._path, self._offset, self._state = ledger, 0, State()
        self._begun: dict[str, None] = {}
        self.waited_s = 0.0

    def trial(self, index: int) -> TrialState | None:
        """The one that the run began as number ``index``; ``None`` when there are no more."""
        trials = self._state.trials
        self._until(lambda: len(self._begun) > index or len(self._begun) == len(trials))
        return trials[list(self._begun)[index]] if index < len(self._begun) else None

    def goes_on(self, trial: TrialState, epoch: int) -> bool:
        """Whether the run trained the trial further than ``epoch``."""
        self._until(lambda: len(trial.reports) > epoch or trial.status.is_final)
        return len(trial.reports) > epoch

    def _until(self, known: Callable[[], bool]) -> None:
        started = time.monotonic()
        while True:
            records, self._offset = tail(self._path, self._offset)
            for record in records:
                apply(self._state, record)
                if record["event"] == "started":
                    self._begun.setdefault(record["trial"])
            if known():
                break
            time.sleep(0.05)
        self.waited_s += time.monotonic() - started


def process(number: int, ledger: Path, position: Synchronized[int], out: Path) -> None:
    """One process of the right niceness and threads, its objects frozen, then :func:`serve`."""
    os.nice(max(0, RAY_WORKER_NICENESS - os.nice(0)))
    import torch

    import trainables.finetune  # noqa: F401 - a slot has it before it asks

    torch.set_num_threads(1)
    gc.freeze()
    serve(number, ledger, position, out)


def serve(number: int, ledger: Path, position: Synchronized[int], out: Path) -> None:
    """Trials until there are no more."""
    from trainables.finetune import fine_tune

    run = Followed(ledger)
    with out.open("a", buffering=1) as log:

        def tell(event: str, **fields: Any) -> None:
            record = {"time": time.time(), "event": event, "slot": f"bare-{number}", **fields}
            log.write(json.dumps(record) + "\n")

        tell("ready")
        while True:
            with position.get_lock():
                index, position.value = position.value, position.value + 1
            trial = run.trial(index)
            if trial is None:
                tell("waited", seconds=run.waited_s)
                return
            assignment, name = trial.assignment, trial.trial
            folder = out.parent / "bare-checkpoints" / out.stem / name
            tell("started", trial=name)
            reports = fine_tune(
                replace(assignment, attempt=1, checkpoint_folder=str(folder)),
                should_stop=lambda: False,
            )
            newest: str | None = None
            epochs = 0
            while run.goes_on(trial, epochs):
                report, epochs = next(reports), epochs + 1
                tell("reported", trial=name, epoch=report.epoch, metrics=report.metrics)
                if newest is not None and report.checkpoint not in (None, newest):
                    shutil.rmtree(newest, ignore_errors=True)
                newest = report.checkpoint or newest
            reports.close()  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ledger", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    os.environ.update(FREED_MEMORY_KEPT)  # of the processes to come
    context = multiprocessing.get_context("spawn")
    position = context.Value("i", 0)
    started = [
        context.Process(target=process, args=(number, options.ledger, position, options.out))
        for number in range(options.processes)
    ]
    for one in started:
        one.start()
    for one in started:
        one.join()
    if any(one.exitcode for one in started):
        raise SystemExit("a bare process failed")


if __name__ == "__main__":
    main()
