"""python -m benchmarks.asha [--repetitions N] [--quick]

Does pruning find what full training finds, for a third of the epochs? 64 trials of at most 27
epochs, reduction factor 3, grace 1, on 4 slots: once without pruning (random search), once under
ASHA, once under PASHA, on the same synthetic curves (benchmarks/worlds.py), whose truth is known.
The decisions are those of a run: ``FamilyScheduler``, the ledger's records and ``winners``,
driven by a clock instead of Tune's loop.

Stated before measuring, on the world ``crossing``, over 20 repetitions with fresh curves:
``asha_fraction`` and ``pasha_fraction``, the mean share of random search's epochs, are at most 1/3,
and the mean true accuracy, at full length, of the trial that each chose is not below the 95 %
interval (Student's t over repetitions) of that of random search's choice. Beside it: the paired
difference; what random search finds for ASHA's epochs (fewer trials, all at full length); and the
world ``late bloomers``, made to mislead, to which no threshold applies.

Arithmetic alone, below a minute. The result goes to benchmarks/results/asha.json, a summary to the
last line of stdout.
"""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from ray.tune.experiment import Trial
from scipy import stats

from benchmarks.common import arguments, finish
from benchmarks.worlds import WORLDS, Trials, draw
from orchestrator.compare.statistics import mean_interval
from orchestrator.compare.winners import winners
from orchestrator.engine.scheduler import CONTINUE, METRIC, PAUSE, FamilyScheduler
from orchestrator.ledger.state import State, apply, replay
from orchestrator.spec.limits import SchedulerSpec

FAMILY = "synthetic"
MAX_EPOCHS = 27
TRIALS, QUICK_TRIALS = 64, 16
REPETITIONS, QUICK_REPETITIONS = 20, 2
SLOTS = 4
SHARE_ALLOWED = 1 / 3
DECLARED = "crossing"


class Clock:
    """Trials on ``SLOTS`` slots in simulated time, asking a scheduler as Tune's loop does."""

    def __init__(self, curves: Trials, kind: str) -> None:
        self.state = replay(_submitted(len(curves.pace)))
        self._curves = curves
        self._now = 0.0
        self._running: list[tuple[float, int, SimpleNamespace]] = []  # (when, index, trial)
        self._scheduler = FamilyScheduler(
            {FAMILY: SchedulerSpec(kind=kind, max_epochs=MAX_EPOCHS)},
            self.state,
            self._decide,
            seed=0,
        )
        self._trials = [
            SimpleNamespace(index=i, config={"trial": name}, status=Trial.PENDING, last_result={})
            for i, name in enumerate(self.state.trials)
        ]

    def run(self) -> State:
        """To the end of every trial; the ledger's state."""
        while self._start_all() or self._running:
            self._now, _, trial = heapq.heappop(self._running)
            self._report(trial)
        return self.state

    def _start_all(self) -> bool:
        while len(self._running) < SLOTS:
            trial = self._scheduler.choose_trial_to_run(self)
            if trial is None:
                break
            trial.status = Trial.RUNNING
            self._train(trial)
        return bool(self._running)

    def _train(self, trial: SimpleNamespace) -> None:
        heapq.heappush(
            self._running, (self._now + self._curves.pace[trial.index], trial.index, trial)
        )

    def _report(self, trial: SimpleNamespace) -> None:
        name = trial.config["trial"]
        epoch = self.state.trials[name].epoch + 1
        value = float(self._curves.seen[trial.index, epoch - 1])
        self._record("reported", name, epoch=epoch, metrics={METRIC: value})
        trial.last_result = {"epoch": epoch, METRIC: value}
        action = self._scheduler.on_trial_result(self, trial, trial.last_result)
        if epoch == MAX_EPOCHS:
            self._record("finished", name, epoch=epoch)
            self.stop_trial(trial)
        elif action == CONTINUE:
            self._train(trial)
        elif action == PAUSE:
            trial.status = Trial.PAUSED
        else:
            self.stop_trial(trial)

    def _decide(self, event: str, name: str, **fields: Any) -> None:
        self._record(event, name, **fields)

    def _record(self, event: str, name: str, **fields: Any) -> None:
        apply(self.state, {"time": self._now, "event": event, "trial": name, **fields})

    # What the scheduler asks of Tune's controller.

    def get_trials(self) -> list[SimpleNamespace]:
        return self._trials

    def get_live_trials(self) -> list[SimpleNamespace]:
        return [trial for trial in self._trials if trial.status != Trial.TERMINATED]

    def stop_trial(self, trial: SimpleNamespace) -> None:
        trial.status = Trial.TERMINATED
        self._scheduler.on_trial_complete(self, trial, trial.last_result)


def _submitted(trials: int) -> list[dict[str, Any]]:
    detail = {"assignment": {"epochs": MAX_EPOCHS}, "axes": {}}
    return [
        {
            "time": 0.0,
            "event": "submitted",
            "trial": f"{FAMILY}-{index:04d}",
            "family": FAMILY,
            "detail": detail,
        }
        for index in range(trials)
    ]


def repetition(curves: Trials) -> dict[str, dict[str, float]]:
    """By kind: ``epochs`` spent, and the true accuracy at full length of the trial chosen."""
    found = {}
    states = {kind: Clock(curves, kind).run() for kind in ("none", "asha", "pasha")}
    for kind, state in states.items():
        spent = sum(trial.epoch for trial in state.trials.values())
        found[kind] = {"epochs": spent, "true_top1": _truth(curves, winners(state)[FAMILY].trial)}
    # Random search with ASHA's epochs: as many trials at full length as they pay for.
    affordable = max(1, round(found["asha"]["epochs"] / MAX_EPOCHS))
    best = max(range(affordable), key=lambda index: float(curves.seen[index].max()))
    found["equal"] = {
        "epochs": affordable * MAX_EPOCHS,
        "true_top1": float(curves.truth[best, -1]),
    }
    found["possible"] = {"epochs": 0, "true_top1": float(curves.truth[:, -1].max())}
    return found


def _truth(curves: Trials, name: str) -> float:
    return float(curves.truth[int(name.rpartition("-")[2]), -1])


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean with its 95 % Student interval, standard deviation and n."""
    student = mean_interval(values, 0.95)
    return {"mean": student.mean, "low": student.low, "high": student.high,
            "sd": statistics.stdev(values), "n": student.n}  # fmt: skip


def judge(repetitions: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """The criterion on one world."""
    full = interval([found["none"]["true_top1"] for found in repetitions])
    result: dict[str, Any] = {"random_search": {"true_top1": full}}
    for kind in ("asha", "pasha", "equal"):
        shares = [found[kind]["epochs"] / found["none"]["epochs"] for found in repetitions]
        reached = interval([found[kind]["true_top1"] for found in repetitions])
        result[kind] = {
            "fraction": interval(shares),
            "largest_fraction": max(shares),
            "true_top1": reached,
            "difference": interval(
                [found[kind]["true_top1"] - found["none"]["true_top1"] for found in repetitions]
            ),
            "within_interval": reached["mean"] >= full["low"],
        }
    result["possible"] = interval([found["possible"]["true_top1"] for found in repetitions])
    return result


def rank_agreement(curves: Trials) -> dict[str, float]:
    """Kendall's tau of the order seen at each rung with the true order at full length."""
    rungs = SchedulerSpec(max_epochs=MAX_EPOCHS).rungs()
    final = curves.truth[:, -1]
    return {str(r): float(stats.kendalltau(curves.seen[:, r - 1], final)[0]) for r in rungs}


def main() -> None:
    parser = arguments(__doc__, "asha.json", reads_pictures=False)
    parser.add_argument("--repetitions", type=int)
    options = parser.parse_args()
    trials = QUICK_TRIALS if options.quick else TRIALS
    count = options.repetitions or (QUICK_REPETITIONS if options.quick else REPETITIONS)
    worlds = {}
    for name, world in WORLDS.items():
        drawn = [draw(world, trials=trials, epochs=MAX_EPOCHS, seed=seed) for seed in range(count)]
        taus = [rank_agreement(curves) for curves in drawn]
        worlds[name] = {
            **judge([repetition(curves) for curves in drawn]),
            "kendall_tau_by_rung": {
                rung: statistics.mean(tau[rung] for tau in taus) for rung in taus[0]
            },
        }
    declared = worlds[DECLARED]
    summary: dict[str, Any] = {"world": DECLARED, "n": count}
    for kind in ("asha", "pasha"):
        fraction = declared[kind]["fraction"]["mean"]
        summary |= {
            f"{kind}_fraction": round(fraction, 4),
            f"{kind}_within_interval": declared[kind]["within_interval"],
            f"{kind}_true_top1": round(declared[kind]["true_top1"]["mean"], 4),
        }
    full = declared["random_search"]["true_top1"]
    summary["random_search_true_top1"] = {k: round(full[k], 4) for k in ("mean", "low", "high")}
    summary["thresholds_met"] = all(
        summary[f"{kind}_fraction"] <= SHARE_ALLOWED and summary[f"{kind}_within_interval"]
        for kind in ("asha", "pasha")
    )
    settings = {
        "trials": trials,
        "max_epochs": MAX_EPOCHS,
        "grace_epochs": 1,
        "reduction_factor": 3,
        "slots": SLOTS,
    }
    finish({"settings": settings, "worlds": worlds}, options.out, summary)


if __name__ == "__main__":
    main()
