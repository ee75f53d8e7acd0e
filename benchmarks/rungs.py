"""python -m benchmarks.rungs [--repetitions N] [--quick]

Does a first rung after warm-up, or a rule that spares trials within the noise, find better recipes
than plain ASHA, and what does it cost? Searches at the defaults otherwise (8 trials of 9 epochs, a
reduction factor of 3, 2 slots), decided by a run's own scheduler, all variants on the same curves:

plain     ASHA with its first rung after epoch 1 and nobody spared
grace_3   the first rung after epoch 3, as it follows from a warm-up of up to a fifth of the trial
cutoff, chance, both   scheduler.noise_rule, with the first rung after epoch 1
grace_3_cutoff, grace_3_both   the rule and the later rung together
factor_2  plain ASHA that prunes half, not two thirds: another way to spend more

For each: ``winner_pruned``, the share of searches that pruned their eventual winner, which is the
trial that the same search without pruning would have chosen; ``cost``, its epochs over those of the
search without pruning; ``difference``, the true accuracy at full length of what it chose less that
of what plain ASHA chose; and ``at_equal_cost``, the same less what plain ASHA chose from so many
more trials that both cost the same in the mean. A rule earns its cost where that is above 0.

Worlds of known truth (orchestrator/simulate/worlds.py): ``null``, ``noisy validation`` (200 images,
not 5,000) and ``chance at first``, where a trial stays at chance for up to three epochs. And real
curves: eight of the 24 trials of each family in benchmarks/results/recorded-curves.jsonl (without
pruning, 2,000 validation images), drawn anew and in a new order each time; accuracy is the one on
record at full length. Shares have exact intervals, means Student's, 95 %.

Arithmetic alone, some minutes in one process. The result goes to benchmarks/results/rungs.json.
"""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from benchmarks.asha import RECORDED, interval, trial_truth
from benchmarks.common import arguments, finish
from orchestrator.compare.statistics import share_interval
from orchestrator.engine.brackets import Action
from orchestrator.engine.scheduler import Scheduler
from orchestrator.ledger.events import read
from orchestrator.ledger.header import RunHeader
from orchestrator.ledger.state import State, TrialState
from orchestrator.ledger.state import replay as replay_records
from orchestrator.simulate.replay import recorded_order
from orchestrator.simulate.worlds import WORLDS, A, Training, World, tournament
from orchestrator.spec.limits import SchedulerSpec
from orchestrator.spec.run import RunSpec
from trainables.config import Assignment, DatasetFacts

REPETITIONS, QUICK_REPETITIONS = 500, 3
TRIALS, SLOTS = 8, 2
PLAIN = SchedulerSpec()
VARIANTS: Mapping[str, SchedulerSpec] = {
    "plain": PLAIN,
    "grace_3": replace(PLAIN, grace_epochs=3),
    "cutoff": replace(PLAIN, noise_rule="cutoff"),
    "chance": replace(PLAIN, noise_rule="chance"),
    "both": replace(PLAIN, noise_rule="both"),
    "grace_3_cutoff": replace(PLAIN, grace_epochs=3, noise_rule="cutoff"),
    "grace_3_both": replace(PLAIN, grace_epochs=3, noise_rule="both"),
    "factor_2": replace(PLAIN, reduction_factor=2),
}
IN_WORLDS = ("null", "noisy validation", "chance at first")


@dataclass(kw_only=True)
class Search:
    """One search's trials and where their curves come from. ``truth`` is the accuracy at full
    length of what an assignment trains."""

    spec: RunSpec  # of one family
    world: World
    images: Mapping[str, DatasetFacts]
    truth: Callable[[Assignment], float]
    _trained: dict[int, tuple[Assignment, Training]] = field(default_factory=dict)

    def trained(self, index: int) -> tuple[Assignment, Training]:
        """Trial ``index``, and all that it would report."""
        if index not in self._trained:
            assignment = self.spec.sweeps[0].assignment(index)
            self._trained[index] = assignment, self.world.train(assignment)
        return self._trained[index]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a search came to: its epochs, the trial that it chose and what that is worth, and whom
    it pruned."""

    epochs: int
    chosen: str
    truth: float
    pruned: frozenset[str]


def race(search: Search, spec: SchedulerSpec, trials: int = TRIALS) -> Outcome:
    """The first ``trials`` of the search under the scheduler ``spec``: its own decisions, on slots
    that take a new trial as soon as one has ended. What ``simulate`` would give, without a ledger.
    """
    trained = {
        assignment.trial_id: (assignment, training)
        for assignment, training in map(search.trained, range(trials))
    }
    candidate = search.spec.sweeps[0].candidate
    state = State(
        header=RunHeader(spec=search.spec, datasets=search.images),
        trials={
            name: TrialState(trial=name, candidate=candidate, assignment=assignment)
            for name, (assignment, _) in trained.items()
        },
    )
    scheduler = Scheduler(
        {candidate: spec}, state, lambda *_, **__: None, seed=search.spec.sweeps[0].seed
    )
    waiting = iter(trained)
    events: list[tuple[float, str, int]] = []  # when a trial reports which epoch

    def train(name: str | None, epoch: int, now: float) -> None:
        if name is not None:
            heapq.heappush(events, (now + trained[name][1].seconds[epoch - 1], name, epoch))

    for _ in range(SLOTS):
        train(next(waiting, None), 1, 0.0)
    epochs, finished, pruned = 0, dict[str, float](), set[str]()
    while events:
        now, name, epoch = heapq.heappop(events)
        epochs += 1
        values = [metrics["val_top1"] for metrics in trained[name][1].metrics]
        if scheduler.on_report(name, epoch, values[epoch - 1]) is Action.STOP:
            pruned.add(name)
        elif epoch == len(values):
            finished[name] = max(values)
        else:
            train(name, epoch + 1, now)
            continue
        scheduler.on_end(name)
        train(next(waiting, None), 1, now)
    chosen = max(finished, key=finished.__getitem__)
    truth = search.truth(trained[chosen][0])
    return Outcome(epochs=epochs, chosen=chosen, truth=truth, pruned=frozenset(pruned))


def in_world(name: str, seed: int) -> Search:
    """A search in a synthetic world with curves of its own."""
    world = replace(WORLDS[name], seed=seed)
    spec = tournament(candidates=(A,), searches=1, final_seeds=0, seed=seed)
    return Search(spec=spec, world=world, images=world.images([A]), truth=world.accuracy)


@cache
def recorded_state() -> State:
    """The committed sweep without pruning."""
    return replay_records(read(RECORDED))


def on_record(family: str, seed: int) -> Search:
    """A search over trials of the family that are drawn from those on record."""
    state = recorded_state()
    spec, world = recorded_order(state, {family: PLAIN}, seed)
    return Search(
        spec=spec,
        world=world,
        images=state.header.datasets,
        truth=lambda assignment: trial_truth(state, world.order[assignment.trial_id]),
    )


def outcomes(search: Search) -> dict[str, Outcome]:
    """By variant, and ``none`` without pruning."""
    schedulers = {"none": replace(PLAIN, kind="none"), **VARIANTS}
    return {name: race(search, scheduler) for name, scheduler in schedulers.items()}


def winner_pruned(results: Mapping[str, Outcome], variant: str) -> bool:
    """Whether the variant pruned the trial that the search without pruning chose."""
    return results["none"].chosen in results[variant].pruned


def judge(searches: Sequence[Search], most_trials: int | None = None) -> dict[str, Any]:
    """Each variant on the same ``searches``; of recorded curves there are ``most_trials``."""
    results = [outcomes(search) for search in searches]
    epochs = {name: statistics.mean(r[name].epochs for r in results) for name in results[0]}
    larger: dict[int, list[float]] = {}
    judged = {}
    for name in VARIANTS:
        # Plain ASHA's cost grows with its trials, in the mean in proportion.
        trials = round(TRIALS * epochs[name] / epochs["plain"])
        trials = min(trials, most_trials or trials)
        if trials not in larger:
            larger[trials] = [race(search, PLAIN, trials).truth for search in searches]
        pruned = share_interval(sum(winner_pruned(r, name) for r in results), len(results))
        judged[name] = {
            "winner_pruned": {"share": pruned.mean, "low": pruned.low, "high": pruned.high},
            "cost": interval([r[name].epochs / r["none"].epochs for r in results]),
            "true_top1": interval([r[name].truth for r in results]),
            "difference": interval([r[name].truth - r["plain"].truth for r in results]),
            "trials_of_plain_at_equal_cost": trials,
            "at_equal_cost": interval(
                [r[name].truth - plain for r, plain in zip(results, larger[trials], strict=True)]
            ),
        }
    return {"n": len(results), "none_true_top1": interval([r["none"].truth for r in results]),
            "variants": judged}  # fmt: skip


def table(curves: Mapping[str, Mapping[str, Any]]) -> str:
    """A line a variant, shares and points in percent."""
    lines = [f"{'':28} winner pruned      cost   less plain          at equal cost"]
    for name, one in curves.items():
        for variant, row in one["variants"].items():
            pruned, cost = row["winner_pruned"], row["cost"]["mean"]
            shares = f"{100 * pruned['share']:5.1f} ({100 * pruned['low']:.1f}-"
            shares += f"{100 * pruned['high']:.1f})"
            gains = [
                f"{100 * row[key]['mean']:+.2f} ({100 * row[key]['low']:+.2f} to "
                f"{100 * row[key]['high']:+.2f})"
                for key in ("difference", "at_equal_cost")
            ]
            lines.append(
                f"{name[:16]:16} {variant:15} {shares:18} {cost:.2f}  {gains[0]}  {gains[1]}"
            )
    return "\n".join(lines)


def summarise(curves: Mapping[str, Mapping[str, Any]], n: int) -> dict[str, Any]:
    """The line that is printed last."""
    return {
        "n": n,
        "winner_pruned": _of_all(curves, lambda row: row["winner_pruned"]["share"]),
        "cost": _of_all(curves, lambda row: row["cost"]["mean"]),
        "at_equal_cost": {
            name: {
                variant: {
                    key: round(row["at_equal_cost"][key], 4) for key in ("mean", "low", "high")
                }
                for variant, row in one["variants"].items()
            }
            for name, one in curves.items()
        },
    }


def _of_all(
    curves: Mapping[str, Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float]
) -> dict[str, dict[str, float]]:
    return {
        name: {variant: round(value(row), 4) for variant, row in one["variants"].items()}
        for name, one in curves.items()
    }


def main() -> None:
    parser = arguments(__doc__, "rungs.json", reads_pictures=False)
    parser.add_argument("--repetitions", type=int)
    options = parser.parse_args()
    count = options.repetitions or (QUICK_REPETITIONS if options.quick else REPETITIONS)
    curves = {}
    for name in IN_WORLDS:
        curves[name] = judge([in_world(name, seed) for seed in range(count)])
        print(f"{name}: {count} searches", flush=True)
    state = recorded_state()
    for family in (sweep.family for sweep in state.spec.sweeps):
        recorded = sum(trial.family == family for trial in state.trials.values())
        searches = [on_record(family, seed) for seed in range(count)]
        curves[f"recorded: {family}"] = judge(searches, most_trials=recorded)
        print(f"recorded: {family}: {count} searches", flush=True)
    print(table(curves), flush=True)
    settings = {
        "trials": TRIALS,
        "slots": SLOTS,
        "variants": {name: scheduler.as_dict() for name, scheduler in VARIANTS.items()},
    }
    finish({"settings": settings, "curves": curves}, options.out, summarise(curves, count))


if __name__ == "__main__":
    main()
