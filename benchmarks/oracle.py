"""python -m benchmarks.oracle [--world W] [--repeats N] [--quick]

How often is each sentence that the product prints wrong? Whole tournaments between two families,
at the defaults (8 trials, 9 epochs, ASHA, 3 finals; 2 slots), simulated with the product's own
decisions in worlds whose truth is known (orchestrator/simulate/worlds.py), compared and answered by
the product's own code. For each world:

sentences   how often each was printed, and how often that was wrong. ``better`` is wrong where the
            families do not differ so in truth; ``better_recipe`` is the same sentence read as one
            about the two winners' recipes. ``no_difference`` is wrong where they differ.
            ``order_changes`` (with the unit of an equal budget) is always wrong: in none of these
            worlds is there a second order.
intervals   coverage of the printed 95 % intervals: of a winner's accuracy over new seeds and
            images (``accuracy``), of the two winners' difference (``difference_recipes``), of the
            families' (``difference_families``), and of the gap from validation to test
            (``to_test``, against its mean over all tournaments).
power       how often ``better`` was printed for the family that is better.
learning_rate   of the best rate that the report names: how often it names one, by which factor it
            is off (median), how often the printed interval holds the best one, and how many decades
            wide it is (median).

Shares have exact 95 % intervals (Clopper and Pearson 1934). Nothing here is a threshold: what is
found wrong is for the product to mend. About 0.1 s a tournament; 500 of each world by default. The
result goes to benchmarks/results/oracle.json, a table to stdout, a summary to its last line.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import arguments, finish
from orchestrator.compare.comparison import compare
from orchestrator.compare.finals import PairVerdict
from orchestrator.compare.statistics import Interval, share_interval
from orchestrator.ledger.state import State
from orchestrator.simulate.run import simulate
from orchestrator.simulate.worlds import SPACE, WORLDS, A, B, SyntheticWorld, tournament
from trainables.config import Assignment

REPEATS, QUICK_REPEATS = 500, 20
SLOTS = 2
SENTENCES = ("better", "better_recipe", "no_difference", "order_changes")
INTERVALS = ("accuracy", "difference_recipes", "difference_families", "to_test")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One tournament: ``printed`` and ``wrong`` by sentence, ``covered`` by interval (one entry an
    interval), what ``to_test`` printed, and the learning rates."""

    answer: str
    printed: Mapping[str, bool]
    wrong: Mapping[str, bool]
    right_better: bool
    covered: Mapping[str, Sequence[bool]]
    to_test: Sequence[Interval]
    rate_factors: Sequence[float]
    rate_in_interval: Sequence[bool]
    rate_decades: Sequence[float]
    failed_finals: int
    epochs: int


def judge(name: str, seed: int) -> Judged:
    """Simulate a tournament in the world, have it compared, and hold it against the truth."""
    world = replace(WORLDS[name], seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        run = simulate(tournament(seed=seed), world, Path(folder), slots=SLOTS)
        comparison = compare([run.data], forests=False)
    frozen = run.state.frozen.get("winners", {})
    truth = {
        family: world.accuracy(run.state.trials[winner["trial"]].assignment)
        for family, winner in frozen.items()
    }
    effect = world.effect.get(A, 0.0) - world.effect.get(B, 0.0)
    pair = next(iter(comparison.pairs), None)
    sign = 0
    if pair is not None and pair.verdict is not PairVerdict.OPEN:
        sign = (1 if pair.verdict is PairVerdict.A_BETTER else -1) * (1 if pair.a == A else -1)
    printed = {
        "better": sign != 0,
        "better_recipe": sign != 0,
        "no_difference": pair is not None and sign == 0,
        "order_changes": comparison.budget.flips,
    }
    of_recipes = truth[A] - truth[B] if len(truth) == 2 else math.nan
    wrong = {
        "better": sign != 0 and sign * effect <= 0,
        "better_recipe": sign != 0 and sign * of_recipes <= 0,
        "no_difference": printed["no_difference"] and effect != 0,
        "order_changes": printed["order_changes"],
    }
    covered: dict[str, list[bool]] = {key: [] for key in INTERVALS}
    for entry in comparison.families:
        if entry.final is not None:
            covered["accuracy"] += _covers(entry.final.test_top1, truth[entry.family])
    if pair is not None:
        turn = 1 if pair.a == A else -1
        covered["difference_recipes"] += _covers(pair.difference, turn * of_recipes)
        covered["difference_families"] += _covers(pair.difference, turn * effect)
    fits = [entry.learning_rate_fit for entry in comparison.families if entry.learning_rate_fit]
    best = best_rate(name)
    return Judged(
        answer=comparison.answer,
        printed=printed,
        wrong=wrong,
        right_better=sign * effect > 0,
        covered=covered,
        to_test=[gap.to_test for gap in comparison.gap],
        rate_factors=[math.exp(abs(math.log(fit.best / best))) for fit in fits],
        rate_in_interval=[fit.low <= best <= fit.high for fit in fits],
        rate_decades=[fit.decades for fit in fits],
        failed_finals=_failed_finals(run.state),
        epochs=sum(trial.epoch for trial in run.state.trials.values()),
    )


def _covers(interval: Interval, truth: float) -> list[bool]:
    if interval.low is None or interval.high is None:
        return []
    return [interval.low <= truth <= interval.high]


def _failed_finals(state: State) -> int:
    return sum(t.stage == "final" and t.status == "failed" for t in state.trials.values())


@lru_cache
def best_rate(name: str) -> float:
    """The learning rate of the highest expected accuracy at full length, in the middle of the other
    axis: what a reader takes a best rate to be."""
    world = WORLDS[name]
    domain = SPACE["recipe.learning_rate"]
    plain = tournament().sweeps[0].assignment(0)
    decay = SPACE["recipe.weight_decay"].at(0.5)
    means = []
    for place in np.linspace(0, 0.999, 81):
        rate = domain.at(float(place))
        recipe = replace(plain.recipe, learning_rate=rate, weight_decay=decay)
        means.append((_mean_accuracy(world, replace(plain, recipe=recipe)), rate))
    return max(means)[1]


def _mean_accuracy(world: SyntheticWorld, assignment: Assignment) -> float:
    """Over what is the recipe's own: the world's seed draws it."""
    worlds = [replace(world, seed=seed, chance_epochs={}) for seed in range(8)]
    return statistics.mean(each.accuracy(assignment) for each in worlds)


def share(hits: int, n: int) -> dict[str, Any] | None:
    """A share with its exact interval; ``None`` of nothing."""
    if not n:
        return None
    exact = share_interval(hits, n)
    return {"share": round(exact.mean, 4), "low": round(exact.low or 0.0, 4),
            "high": round(exact.high or 0.0, 4), "n": n}  # fmt: skip


def summarise(judged: Sequence[Judged], effect: float) -> dict[str, Any]:
    """What all tournaments of one world say together."""
    n = len(judged)
    gaps = [gap for one in judged for gap in one.to_test]
    true_gap = statistics.mean(gap.mean for gap in gaps) if gaps else math.nan
    intervals = {key: [hit for one in judged for hit in one.covered[key]] for key in INTERVALS}
    intervals["to_test"] = [hit for gap in gaps for hit in _covers(gap, true_gap)]
    factors = [factor for one in judged for factor in one.rate_factors]
    brackets = [hit for one in judged for hit in one.rate_in_interval]
    decades = [width for one in judged for width in one.rate_decades]
    return {
        "n": n,
        "sentences": {
            key: {
                "printed": share(sum(one.printed[key] for one in judged), n),
                "wrong": share(sum(one.wrong[key] for one in judged), n),
            }
            for key in SENTENCES
        },
        "coverage": {key: share(sum(hits), len(hits)) for key, hits in intervals.items()},
        "power": share(sum(one.right_better for one in judged), n) if effect else None,
        "learning_rate": {
            "off_by_factor_median": round(statistics.median(factors), 3) if factors else None,
            "interval_holds_it": share(sum(brackets), len(brackets)),
            "decades_median": round(statistics.median(decades), 2) if decades else None,
            "named": share(len(factors), n * len((A, B))),
        },
        "failed_finals": sum(one.failed_finals for one in judged),
        "epochs_mean": round(statistics.mean(one.epochs for one in judged), 1),
        "example": judged[0].answer,
    }


def table(worlds: Mapping[str, Mapping[str, Any]]) -> str:
    """A line a world, shares in percent."""

    def percent(value: Mapping[str, Any] | None) -> str:
        return "missing" if value is None else f"{100 * value['share']:.1f}"

    rows = [
        ("world", "n", "better", "wrong", "no diff.", "wrong", "order ch.", "power",
         "cov. acc.", "cov. recipes", "cov. families", "cov. to test", "rate off"),
    ]  # fmt: skip
    for name, one in worlds.items():
        said, covers = one["sentences"], one["coverage"]
        rows.append((
            name, str(one["n"]),
            percent(said["better"]["printed"]), percent(said["better"]["wrong"]),
            percent(said["no_difference"]["printed"]), percent(said["no_difference"]["wrong"]),
            percent(said["order_changes"]["printed"]), percent(one["power"]),
            *(percent(covers[key]) for key in INTERVALS),
            f"×{one['learning_rate']['off_by_factor_median']}",
        ))  # fmt: skip
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def main() -> None:
    parser = arguments(__doc__, "oracle.json", reads_pictures=False)
    parser.add_argument("--world", choices=WORLDS, action="append")
    parser.add_argument("--repeats", type=int)
    options = parser.parse_args()
    repeats = options.repeats or (QUICK_REPEATS if options.quick else REPEATS)
    worlds = {}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for name in options.world or WORLDS:
            judged = list(pool.map(judge, [name] * repeats, range(repeats), chunksize=5))
            effect = WORLDS[name].effect.get(A, 0.0) - WORLDS[name].effect.get(B, 0.0)
            worlds[name] = summarise(judged, effect)
            print(f"{name}: {repeats} tournaments", flush=True)
    print(table(worlds), flush=True)
    null = [one for name, one in worlds.items() if not WORLDS[name].effect]
    false_better = [one["sentences"]["better"]["wrong"]["share"] for one in null]
    powers = {name: one["power"]["share"] for name, one in worlds.items() if one["power"]}
    summary = {
        "n": repeats,
        "false_better_largest": max(false_better, default=None),
        "power": powers,
        "coverage_smallest": {
            key: min(one["coverage"][key]["share"] for one in worlds.values())
            for key in INTERVALS
            if all(one["coverage"][key] for one in worlds.values())
        },
    }
    settings = {"trials": 8, "max_epochs": 9, "scheduler": "asha", "final_seeds": 3, "slots": SLOTS}
    finish({"settings": settings, "worlds": worlds}, options.out, summary)


if __name__ == "__main__":
    main()
