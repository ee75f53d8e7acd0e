"""python -m benchmarks.oracle [--world W] [--repeats N] [--searches R] [--trials T]

How often is each sentence that the product prints wrong? Whole tournaments between two families,
at the defaults (4 searches of 8 trials of 9 epochs, ASHA, a final each; 2 slots), simulated with
the product's own decisions in worlds whose truth is known (orchestrator/simulate/worlds.py),
compared and answered by the product's own code. For each world:

sentences   how often each was printed, and how often that was wrong. With several searches
            ``better`` speaks of the families, with one of the two winners' recipes, and is wrong
            where these do not differ so in truth. ``equivalent`` is wrong where they differ by the
            margin or more. ``not_told_apart`` and ``not_tested`` claim nothing. ``order_changes``
            (with the unit of an equal budget) is always wrong: in none of these worlds is there a
            second order.
intervals   coverage of the printed 95 % intervals: of a family's accuracy (``accuracy``: what its
            search leads to in the mean, over new searches, seeds and images; of one search, what
            its winner does), of the two families' difference (``difference``), and of the gap from
            validation to test (``to_test``, against its mean over all tournaments).
power       how often ``better`` was printed for the family that is better.
rivals      how often other tests of the same numbers find a difference at 5 %: Student's with one
            variance for both families, and paired by search, whose arms share validation images.
learning_rate   of the best rate that the report names: how often it names one, by which factor it
            is off (median), how often the printed interval holds the best one, and how many decades
            wide it is (median).

Other numbers of searches, trials and final seeds can be asked for: how a budget is best split.

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
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.common import arguments, finish
from orchestrator.compare.comparison import compare
from orchestrator.compare.finals import by_search, finished
from orchestrator.compare.runs import CandidateTrials, collect
from orchestrator.compare.statistics import ALPHA, Interval, share_interval
from orchestrator.compare.verdicts import PairVerdict
from orchestrator.launch.options import FINAL_SEEDS, SEARCHES
from orchestrator.ledger.state import State
from orchestrator.simulate.run import simulate
from orchestrator.simulate.worlds import SPACE, WORLDS, A, B, SyntheticWorld, tournament
from orchestrator.spec.run import RunSpec
from trainables.config import Assignment

REPEATS, QUICK_REPEATS = 500, 20
SLOTS = 2
SENTENCES = ("better", "equivalent", "not_told_apart", "not_tested", "order_changes")
INTERVALS = ("accuracy", "difference", "to_test")
MARGIN = RunSpec.margin


@dataclass(frozen=True, kw_only=True)
class Design:
    """How much of everything a tournament has, for each family."""

    searches: int = SEARCHES
    trials: int = 8
    final_seeds: int = FINAL_SEEDS


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """A family's printed interval, and what its winners' accuracies are in truth, in the mean."""

    family: str
    interval: Interval
    winners: float


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One tournament: ``printed`` and ``wrong`` by sentence, whether the ``difference`` was covered
    (one entry an interval), what ``accuracies`` and ``to_test`` printed, and the learning rates."""

    answer: str
    printed: Mapping[str, bool]
    wrong: Mapping[str, bool]
    right_better: bool
    difference: Sequence[bool]
    accuracies: Sequence[Accuracy]
    to_test: Sequence[Interval]
    rate_factors: Sequence[float]
    rate_in_interval: Sequence[bool]
    rate_decades: Sequence[float]
    failed_finals: int
    epochs: int
    p_rivals: Mapping[str, float]


def judge(name: str, design: Design, seed: int) -> Judged:
    """Simulate a tournament in the world, have it compared, and hold it against the truth."""
    world = replace(WORLDS[name], seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        run = simulate(tournament(seed=seed, **vars(design)), world, Path(folder), slots=SLOTS)
        comparison = compare([run.data], forests=False)
    winners: dict[str, list[float]] = {}
    for winner in run.state.frozen.trials.values() if run.state.frozen else ():
        assignment = run.state.trials[winner].assignment
        winners.setdefault(assignment.backbone.family, []).append(world.accuracy(assignment))
    means = {family: statistics.mean(accuracies) for family, accuracies in winners.items()}
    effect = world.effect.get(A, 0.0) - world.effect.get(B, 0.0)
    pair = next(iter(comparison.pairs), None)
    truth = effect if design.searches > 1 else means.get(A, math.nan) - means.get(B, math.nan)
    verdict = pair.verdict if pair else PairVerdict.NOT_TESTED
    turn = 1 if pair is None or pair.a == A else -1
    sign = {PairVerdict.A_BETTER: turn, PairVerdict.B_BETTER: -turn}.get(verdict, 0)
    printed = {
        "better": sign != 0,
        "equivalent": verdict is PairVerdict.EQUIVALENT,
        "not_told_apart": verdict is PairVerdict.NOT_TOLD_APART,
        "not_tested": verdict is PairVerdict.NOT_TESTED,
        "order_changes": comparison.budget.flips,
    }
    wrong = {
        "better": sign != 0 and sign * truth <= 0,
        "equivalent": printed["equivalent"] and abs(truth) >= MARGIN,
        "not_told_apart": False,
        "not_tested": False,
        "order_changes": printed["order_changes"],
    }
    fits = [entry.learning_rate_fit for entry in comparison.families if entry.learning_rate_fit]
    best = best_rate(name)
    return Judged(
        answer=comparison.answer,
        printed=printed,
        wrong=wrong,
        right_better=sign * truth > 0,
        difference=_covers(pair.difference, turn * truth) if pair else [],
        accuracies=[
            Accuracy(family=e.family, interval=e.final.test_top1, winners=means[e.family])
            for e in comparison.families
            if e.final
        ],
        to_test=[gap.to_test for gap in comparison.gap],
        rate_factors=[math.exp(abs(math.log(fit.best / best))) for fit in fits],
        rate_in_interval=[fit.low <= best <= fit.high for fit in fits],
        rate_decades=[fit.decades for fit in fits],
        failed_finals=_failed_finals(run.state),
        epochs=sum(trial.epoch for trial in run.state.trials.values()),
        p_rivals=_rivals(collect([run.data])),
    )


def _rivals(families: Sequence[CandidateTrials]) -> dict[str, float]:
    """p-values of other tests on the searches' mean accuracies; none where there is one search."""
    sides = [[statistics.mean(g) for g in by_search(finished(f.curves))] for f in families]
    if len(sides) != 2 or len(sides[0]) != len(sides[1]) or len(sides[0]) < 2:
        return {}
    return {
        "one_variance": float(stats.ttest_ind(*sides).pvalue),
        "paired": float(stats.ttest_rel(*sides).pvalue),
    }


def _covers(interval: Interval, truth: float) -> list[bool]:
    if interval.low is None or interval.high is None:
        return []
    return [interval.low <= truth <= interval.high]


def accuracies_covered(judged: Sequence[Judged], design: Design) -> list[bool]:
    """Whether each family's interval holds what its search leads to in the mean, of one search what
    its own winner does."""
    winners: dict[str, list[float]] = {}
    for one in judged:
        for accuracy in one.accuracies:
            winners.setdefault(accuracy.family, []).append(accuracy.winners)
    means = {family: statistics.mean(values) for family, values in winners.items()}
    return [
        hit
        for one in judged
        for accuracy in one.accuracies
        for hit in _covers(
            accuracy.interval,
            means[accuracy.family] if design.searches > 1 else accuracy.winners,
        )
    ]


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


def summarise(judged: Sequence[Judged], effect: float, design: Design) -> dict[str, Any]:
    """What all tournaments of one world say together."""
    n = len(judged)
    gaps = [gap for one in judged for gap in one.to_test]
    true_gap = statistics.mean(gap.mean for gap in gaps) if gaps else math.nan
    intervals = {
        "accuracy": accuracies_covered(judged, design),
        "difference": [hit for one in judged for hit in one.difference],
        "to_test": [hit for gap in gaps for hit in _covers(gap, true_gap)],
    }
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
        "rivals": {
            test: share(
                sum(one.p_rivals[test] < ALPHA for one in judged if one.p_rivals),
                sum(bool(one.p_rivals) for one in judged),
            )
            for test in judged[0].p_rivals
        },
        "failed_finals": sum(one.failed_finals for one in judged),
        "epochs_mean": round(statistics.mean(one.epochs for one in judged), 1),
        "example": judged[0].answer,
    }


def table(worlds: Mapping[str, Mapping[str, Any]]) -> str:
    """A line a world, shares in percent."""

    def percent(value: Mapping[str, Any] | None) -> str:
        return "missing" if value is None else f"{100 * value['share']:.1f}"

    heads = {"better": "better", "equivalent": "equivalent", "not_told_apart": "not told apart",
             "not_tested": "not tested", "order_changes": "order ch."}  # fmt: skip
    wrong = ("better", "equivalent", "order_changes")
    rows = [
        ("world", "n", *heads.values(), *(f"{heads[key]} wrong" for key in wrong), "power",
         *(f"cov. {key}" for key in INTERVALS), "rate off"),
    ]  # fmt: skip
    for name, one in worlds.items():
        said, covers = one["sentences"], one["coverage"]
        rows.append((
            name, str(one["n"]), *(percent(said[key]["printed"]) for key in heads),
            *(percent(said[key]["wrong"]) for key in wrong), percent(one["power"]),
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
    for option, default in vars(Design()).items():
        parser.add_argument(f"--{option.replace('_', '-')}", type=int, default=default)
    options = parser.parse_args()
    repeats = options.repeats or (QUICK_REPEATS if options.quick else REPEATS)
    design = Design(**{option: getattr(options, option) for option in vars(Design())})
    worlds = {}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for name in options.world or WORLDS:
            judge_world = partial(judge, name, design)
            judged = list(pool.map(judge_world, range(repeats), chunksize=5))
            effect = WORLDS[name].effect.get(A, 0.0) - WORLDS[name].effect.get(B, 0.0)
            worlds[name] = summarise(judged, effect, design)
            print(f"{name}: {repeats} tournaments", flush=True)
    print(table(worlds), flush=True)
    null = [one for name, one in worlds.items() if not WORLDS[name].effect]
    wrong = {
        key: [one["sentences"][key]["wrong"]["share"] for one in worlds.values()]
        for key in ("equivalent", "order_changes")
    }
    summary = {
        "n": repeats,
        "false_better_largest": max(
            (one["sentences"]["better"]["wrong"]["share"] for one in null), default=None
        ),
        **{f"false_{key}_largest": max(shares) for key, shares in wrong.items()},
        "power": {name: one["power"]["share"] for name, one in worlds.items() if one["power"]},
        "coverage_smallest": {
            key: min(one["coverage"][key]["share"] for one in worlds.values())
            for key in INTERVALS
            if all(one["coverage"][key] for one in worlds.values())
        },
    }
    settings = {**vars(design), "max_epochs": 9, "scheduler": "asha", "slots": SLOTS}
    finish({"settings": settings, "worlds": worlds}, options.out, summary)


if __name__ == "__main__":
    main()
