"""python -m benchmarks.asha [--repetitions N] [--quick]

Does pruning find what full training finds, for a third of the epochs, and does it beat the simplest
rival? 64 trials of at most 27 epochs, reduction factor 3, grace 1, on 4 slots, simulated with the
decisions of a run (orchestrator/simulate) on curves whose truth is known:

none     no pruning: random search
asha, pasha   as the product has them
top_k    every trial for one epoch, the K best of them to the end (Egele, Guyon, Sun, Balaprakash,
         "Is One Epoch All You Need For Multi-Fidelity Hyperparameter Optimization?", ESANN 2023),
         K such that it costs what ASHA did on the same curves
equal    random search with ASHA's epochs: fewer trials, all at full length
possible   the best trial there was

Stated before measuring, on the world ``crossing``, over 20 repetitions with fresh curves:
``asha_fraction`` and ``pasha_fraction``, the mean share of random search's epochs, are at most 1/3,
and the mean true accuracy, at full length, of the trial that each chose is not below the 95 %
interval (Student's t over repetitions) of that of random search's choice. Beside it the world
``late bloomers``, made to mislead, and ``chance at first``, to which no threshold applies.

``recorded`` is the same on real curves: a sweep of three families without pruning (its ledger is
benchmarks/results/recorded-curves.jsonl, 24 trials each of 9 epochs on 2,000 natural images), its
trials in 100 orders of arrival; accuracy is then the one on record at full length.

Arithmetic alone, some minutes. The result goes to benchmarks/results/asha.json, a summary to the
last line of stdout.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from scipy import stats

from benchmarks.common import RESULTS, arguments, finish
from orchestrator.compare.statistics import mean_interval
from orchestrator.compare.winners import winners
from orchestrator.ledger.events import read
from orchestrator.ledger.state import State, TrialState
from orchestrator.ledger.state import replay as replay_records
from orchestrator.simulate.replay import recorded_order
from orchestrator.simulate.run import simulate
from orchestrator.simulate.worlds import WORLDS, A, World, tournament
from orchestrator.spec.limits import SchedulerSpec
from orchestrator.spec.run import RunSpec

MAX_EPOCHS = 27
TRIALS, QUICK_TRIALS = 64, 16
REPETITIONS, QUICK_REPETITIONS = 20, 2
ORDERS, QUICK_ORDERS = 100, 2
SLOTS = 4
SHARE_ALLOWED = 1 / 3
DECLARED = "crossing"
# By the names that they have here; of "null" one family is taken.
CURVES = {
    DECLARED: WORLDS["null"],
    "late bloomers": WORLDS["late bloomers"],
    "chance at first": WORLDS["chance at first"],
}
VAL_IMAGES = 1_500
RECORDED = RESULTS / "recorded-curves.jsonl"
KINDS = ("asha", "pasha", "top_k", "equal")

Reached = dict[str, dict[str, float]]  # by kind: epochs spent, and the truth of the trial chosen


def race(spec: RunSpec, world: World, kind: str, slots: int) -> State:
    """The spec's trials under a scheduler of that kind, to the end of every one."""
    sweeps = tuple(
        replace(sweep, scheduler=replace(sweep.scheduler, kind=kind)) for sweep in spec.sweeps
    )
    with tempfile.TemporaryDirectory() as folder:
        return simulate(replace(spec, sweeps=sweeps), world, Path(folder), slots=slots).state


def rivals(
    spec: RunSpec, world: World, slots: int, truth: Callable[[TrialState], float]
) -> tuple[Reached, list[TrialState]]:
    """Each kind on the same curves, in the same order of arrival, of a spec of one family; and the
    trials at full length."""
    reached: Reached = {}
    states = {kind: race(spec, world, kind, slots) for kind in ("none", "asha", "pasha")}
    for kind, state in states.items():
        spent = sum(trial.epoch for trial in state.trials.values())
        chosen = next(iter(winners(state).values()), None)
        reached[kind] = {"epochs": spent, "truth": 0.0 if chosen is None else truth(chosen)}
    whole = list(states["none"].trials.values())
    length, spent = spec.sweeps[0].scheduler.max_epochs, reached["asha"]["epochs"]
    count = max(1, round((spent - len(whole)) / (length - 1)))
    best_first = sorted(whole, key=lambda trial: -_top1(trial, 1))
    reached["top_k"] = _chosen(best_first[:count], truth)
    reached["top_k"]["epochs"] += len(whole) - count  # the others' one epoch
    reached["equal"] = _chosen(whole[: max(1, round(spent / length))], truth)
    reached["possible"] = {"epochs": 0, "truth": max(map(truth, whole))}
    return reached, whole


def _chosen(trials: Sequence[TrialState], truth: Callable[[TrialState], float]) -> dict[str, float]:
    """The best of trials that are all trained to the end."""
    best = max(trials, key=lambda trial: trial.best()[0] or 0.0)
    return {"epochs": sum(trial.epoch for trial in trials), "truth": truth(best)}


def _top1(trial: TrialState, epoch: int) -> float:
    return trial.reports[epoch].metrics["val_top1"] if epoch in trial.reports else 0.0


def synthetic(name: str, trials: int, seed: int) -> tuple[Reached, dict[str, float]]:
    """One repetition in a synthetic world, and how far each rung's order is the true one."""
    world = replace(CURVES[name], seed=seed, val_images=VAL_IMAGES)
    scheduler = SchedulerSpec(max_epochs=MAX_EPOCHS)
    spec = tournament(
        candidates=(A,), trials=trials, scheduler=scheduler, searches=1, final_seeds=0, seed=seed
    )
    reached, whole = rivals(spec, world, SLOTS, lambda one: world.accuracy(one.assignment))
    true = [world.accuracy(trial.assignment) for trial in whole]
    taus = {
        str(rung): float(stats.kendalltau([_top1(trial, rung) for trial in whole], true)[0])
        for rung in scheduler.rungs()
    }
    return reached, taus


def recorded(family: str, seed: int) -> Reached:
    """One order of arrival of a family's recorded trials."""
    state = replay_records(read(RECORDED))
    spec, world = recorded_order(state, {family: SchedulerSpec(max_epochs=_length(state))}, seed)
    return rivals(spec, world, 2, lambda trial: trial_truth(state, world.order[trial.trial]))[0]


def trial_truth(state: State, name: str) -> float:
    """What the trial reached at full length, on record."""
    return state.trials[name].best()[0] or 0.0


def _length(state: State) -> int:
    return next(iter(state.trials.values())).assignment.epochs


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean with its 95 % Student interval, standard deviation and n."""
    student = mean_interval(values, 0.95)
    return {"mean": student.mean, "low": student.low, "high": student.high,
            "sd": statistics.stdev(values), "n": student.n}  # fmt: skip


def judge(repetitions: Sequence[Reached]) -> dict[str, Any]:
    """Each kind against random search: the criterion, and the paired difference."""
    full = interval([found["none"]["truth"] for found in repetitions])
    result: dict[str, Any] = {"random_search": {"true_top1": full}}
    for kind in KINDS:
        shares = [found[kind]["epochs"] / found["none"]["epochs"] for found in repetitions]
        reached = interval([found[kind]["truth"] for found in repetitions])
        result[kind] = {
            "fraction": interval(shares),
            "largest_fraction": max(shares),
            "true_top1": reached,
            "difference": interval(
                [found[kind]["truth"] - found["none"]["truth"] for found in repetitions]
            ),
            "difference_from_asha": interval(
                [found[kind]["truth"] - found["asha"]["truth"] for found in repetitions]
            ),
            "within_interval": reached["mean"] >= full["low"],
        }
    result["possible"] = interval([found["possible"]["truth"] for found in repetitions])
    return result


def summarise(worlds: Mapping[str, Any], on_record: Mapping[str, Any], n: int) -> dict[str, Any]:
    """The line that is printed last."""
    declared = worlds[DECLARED]
    summary: dict[str, Any] = {"world": DECLARED, "n": n}
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
    summary["top_k_less_asha"] = {
        name: {
            k: round(one["top_k"]["difference_from_asha"][k], 4) for k in ("mean", "low", "high")
        }
        for name, one in {**worlds, **on_record}.items()
    }
    return summary


def main() -> None:
    parser = arguments(__doc__, "asha.json", reads_pictures=False)
    parser.add_argument("--repetitions", type=int)
    options = parser.parse_args()
    trials = QUICK_TRIALS if options.quick else TRIALS
    count = options.repetitions or (QUICK_REPETITIONS if options.quick else REPETITIONS)
    orders = QUICK_ORDERS if options.quick else ORDERS
    worlds, on_record = {}, {}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for name in CURVES:
            results = list(pool.map(synthetic, [name] * count, [trials] * count, range(count)))
            taus = [tau for _, tau in results]
            worlds[name] = {
                **judge([found for found, _ in results]),
                "kendall_tau_by_rung": {
                    rung: statistics.mean(tau[rung] for tau in taus) for rung in taus[0]
                },
            }
        families = [sweep.family for sweep in replay_records(read(RECORDED)).spec.sweeps]
        for family in families:
            of_family = list(pool.map(recorded, [family] * orders, range(orders)))
            on_record[f"recorded: {family}"] = judge(of_family)
    settings = {
        "trials": trials,
        "max_epochs": MAX_EPOCHS,
        "grace_epochs": 1,
        "reduction_factor": 3,
        "slots": SLOTS,
        "orders_of_recorded_curves": orders,
    }
    result = {"settings": settings, "worlds": worlds, "recorded": on_record}
    finish(result, options.out, summarise(worlds, on_record, count))


if __name__ == "__main__":
    main()
