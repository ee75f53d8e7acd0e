"""python -m benchmarks.samplers [--repetitions N] [--quick]

With few trials, which sampler finds the better recipe at equal cost? Searches of 8 and 16 trials,
all trained to the end (so that equal trials are equal cost) on 2 slots, their recipes suggested by
the product's own code (orchestrator/spec/spaces.py):

random    independent draws
sobol     scrambled Sobol points
tpe_10    TPE once ten trials have ended, Sobol points before
tpe_4     TPE once four have

each ``alone``, and with trial 0 at a given recipe (``from_recipe``), as a published one is: decent,
and not the best.

On worlds of known truth (two axes; orchestrator/simulate/worlds.py), where the given recipe lies
0.4 above the middle of both ranges of -1 to 1; and on recorded curves (benchmarks/results/
recorded-curves.jsonl, 24 trials a family, five axes): a recipe that is drawn there has the curve of
the *nearest recorded trial* (Euclidean, each axis by its quantile in its range, another level of
augmentation one apart), the given one is the product's default. What is found cannot be better than
the best of the 24, and twenty-four points in five dimensions are few: these figures say whether a
sampler does harm on real surfaces more than by how much it helps.

``true_top1``: of the trial with the best validation accuracy, the truth at full length (on record).
``difference``: less that of random draws of the same search, the same seeds and given recipe; mean
and 95 % Student interval over searches. A sampler becomes the default where the interval of the
difference over all curves together lies above 0 for 8 trials, the default number.

Arithmetic alone, some minutes in one process. The result goes to benchmarks/results/samplers.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from benchmarks.asha import interval
from benchmarks.common import arguments, finish
from benchmarks.rungs import recorded_state
from orchestrator.ledger.state import TrialState
from orchestrator.simulate.worlds import SPACE, WORLDS, A, SyntheticWorld, tournament
from orchestrator.spec.spaces import (
    TPE_STARTUP_TRIALS,
    Axes,
    Choice,
    Domain,
    LogUniform,
    Observation,
    Space,
    suggest,
)
from trainables.config import Recipe

REPETITIONS, QUICK_REPETITIONS = 200, 2
TRIALS = (8, 16)
SLOTS = 2
FEWER_STARTUP_TRIALS = 4
SAMPLERS: Mapping[str, tuple[str, int]] = {  # sampler, trials before TPE acts
    "random": ("random", TPE_STARTUP_TRIALS),
    "sobol": ("sobol", TPE_STARTUP_TRIALS),
    f"tpe_{TPE_STARTUP_TRIALS}": ("tpe", TPE_STARTUP_TRIALS),
    f"tpe_{FEWER_STARTUP_TRIALS}": ("tpe", FEWER_STARTUP_TRIALS),
}
IN_WORLDS = ("null", "noisy validation", "late bloomers")
GIVEN_PLACE = 0.4


class Surface(Protocol):
    """Recipes and what comes of them."""

    @property
    def space(self) -> Space:
        """The axes that are searched."""

    @property
    def given(self) -> Axes:
        """A decent recipe."""

    def train(self, axes: Axes, index: int, seed: int) -> tuple[Mapping[int, float], float]:
        """Validation accuracy by epoch of trial ``index`` of search ``seed``, and the truth."""


@dataclass(frozen=True, kw_only=True)
class InWorld:
    """A synthetic world of two axes, another one for each search."""

    world: SyntheticWorld
    space: Space = field(default_factory=lambda: SPACE)

    @property
    def given(self) -> Axes:
        """See :class:`Surface`."""
        return {path: axis.at((1 + GIVEN_PLACE) / 2) for path, axis in self.space.items()}

    def train(self, axes: Axes, index: int, seed: int) -> tuple[Mapping[int, float], float]:
        """See :class:`Surface`."""
        world = replace(self.world, seed=seed)
        (sweep,) = tournament(candidates=(A,), searches=1, seed=seed).sweeps
        assignment = sweep.assignment(index, axes)
        values = [metrics["val_top1"] for metrics in world.train(assignment).metrics]
        return dict(enumerate(values, start=1)), world.accuracy(assignment)


@dataclass(frozen=True, kw_only=True)
class OnRecord:
    """A family's recorded trials: each recipe has the curve of the nearest one."""

    space: Space
    trials: Sequence[TrialState]

    @property
    def given(self) -> Axes:
        """See :class:`Surface`."""
        recipe = Recipe(label_smoothing=0.1)
        axes = {path: getattr(recipe, path.partition(".")[2]) for path in self.space}
        warmup = self.space["recipe.warmup_epochs"]
        return {**axes, "recipe.warmup_epochs": warmup.at(0.5)}

    def train(self, axes: Axes, index: int, seed: int) -> tuple[Mapping[int, float], float]:
        """See :class:`Surface`."""
        nearest = min(self.trials, key=lambda trial: self._distance(axes, trial.axes or {}))
        return nearest.values(), nearest.best()[0] or 0.0

    def _distance(self, a: Axes, b: Axes) -> float:
        return math.hypot(
            *(_apart(domain, a[path], b[path]) for path, domain in self.space.items())
        )


def _apart(domain: Domain, a: Any, b: Any) -> float:
    if isinstance(domain, Choice):
        return float(a != b)
    if isinstance(domain, LogUniform):
        return abs(math.log(a / b)) / math.log(domain.high / domain.low)
    return abs(a - b) / (domain.high - domain.low)


def found(surface: Surface, sampler: str, *, has_given: bool, seed: int) -> dict[int, float]:
    """By number of trials, the truth of what a search of so many chooses."""
    kind, startup_trials = SAMPLERS[sampler]
    observed: list[Observation] = []
    truths: list[float] = []
    for index in range(max(TRIALS)):
        # All but those on the other slots have ended.
        past = [
            replace(one, status="running") if index - place < SLOTS else one
            for place, one in enumerate(observed)
        ]
        axes = (
            surface.given
            if has_given and index == 0
            else suggest(
                kind,
                surface.space,
                seed=seed,
                candidate=A,
                index=index,
                past=past,
                startup_trials=startup_trials,
            )
        )
        values, truth = surface.train(axes, index, seed)
        observed.append(Observation(axes=axes, values=values, status="finished"))
        truths.append(truth)
    best = [max(one.values.values()) for one in observed]
    return {count: truths[max(range(count), key=lambda place: best[place])] for count in TRIALS}


def judge(surface: Surface, repetitions: int) -> dict[str, Any]:
    """Each sampler on the same surfaces, with the given recipe and without."""
    judged: dict[str, Any] = {}
    for start, has_given in (("alone", False), ("from_recipe", True)):
        chosen = {
            sampler: [
                found(surface, sampler, has_given=has_given, seed=seed)
                for seed in range(repetitions)
            ]
            for sampler in SAMPLERS
        }
        judged[start] = {
            str(count): {
                sampler: {
                    "true_top1": interval([one[count] for one in rows]),
                    "differences": [
                        one[count] - random[count]
                        for one, random in zip(rows, chosen["random"], strict=True)
                    ],
                }
                for sampler, rows in chosen.items()
            }
            for count in TRIALS
        }
    return judged


def together(curves: Mapping[str, Any]) -> dict[str, Any]:
    """The differences of all curves, each search one value; they leave the curves' own rows."""
    pooled: dict[str, dict[str, dict[str, Any]]] = {}
    for start in ("alone", "from_recipe"):
        pooled[start] = {}
        for count in map(str, TRIALS):
            rows = {
                sampler: [
                    value
                    for curve in curves.values()
                    for value in curve[start][count][sampler]["differences"]
                ]
                for sampler in SAMPLERS
                if sampler != "random"
            }
            pooled[start][count] = {sampler: interval(values) for sampler, values in rows.items()}
    for curve in curves.values():
        for start in curve.values():
            for counts in start.values():
                for row in counts.values():
                    row["difference"] = interval(row.pop("differences"))
    return pooled


def surfaces() -> dict[str, Surface]:
    """By name: worlds, and the families on record."""
    state = recorded_state()
    of_record = {
        f"recorded: {sweep.family}": OnRecord(
            space=sweep.space,
            trials=[trial for trial in state.trials.values() if trial.family == sweep.family],
        )
        for sweep in state.spec.sweeps
    }
    return {**{name: InWorld(world=WORLDS[name]) for name in IN_WORLDS}, **of_record}


def summarise(pooled: Mapping[str, Any], n: int) -> dict[str, Any]:
    """The line that is printed last."""
    return {
        "n": n,
        "less_random": {
            start: {
                count: {
                    sampler: {key: round(row[key], 4) for key in ("mean", "low", "high")}
                    for sampler, row in rows.items()
                }
                for count, rows in counts.items()
            }
            for start, counts in pooled.items()
        },
        "better_than_random_at_8": [
            sampler
            for sampler in SAMPLERS
            if sampler != "random"
            and all(counts[str(TRIALS[0])][sampler]["low"] > 0 for counts in pooled.values())
        ],
    }


def main() -> None:
    parser = arguments(__doc__, "samplers.json", reads_pictures=False)
    parser.add_argument("--repetitions", type=int)
    options = parser.parse_args()
    repetitions = options.repetitions or (QUICK_REPETITIONS if options.quick else REPETITIONS)
    curves = {}
    for name, surface in surfaces().items():
        curves[name] = judge(surface, repetitions)
        print(f"{name}: {repetitions} searches of each sampler", flush=True)
    pooled = together(curves)
    settings = {"trials": TRIALS, "slots": SLOTS, "given_place": GIVEN_PLACE,
                "searches_of_each_curve": repetitions}  # fmt: skip
    result = {"settings": settings, "together": pooled, "curves": curves}
    finish(result, options.out, summarise(pooled, repetitions * len(curves)))


if __name__ == "__main__":
    main()
