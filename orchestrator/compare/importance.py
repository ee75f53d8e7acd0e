"""Which axes of the recipe matter, at a budget that every trial of the family spent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.compare.runs import Array, Curve
from orchestrator.spec.spaces import Choice, Domain, LogUniform, Space

FEWEST = 8  # trials below which nothing is said
MOST = 300  # trials that a forest sees, drawn at random from more
SEEDS = 5
TREES = 30
HELD_OUT = 0.25
REPEATS = 3
RATE = "recipe.learning_rate"
NEAR_DECADES = 1.0  # the local fit sees learning rates this far from the best one
WITHIN = 0.02


@dataclass(frozen=True, kw_only=True)
class Trials:
    """The ended trials of a family after one ``epoch``: what they drew and what they reached.

    ``values``: validation accuracy, shape (N,). ``columns``: each searched axis as numbers, shape
    (N,), a logarithm where its range is logarithmic, a code in order of value where it is not a
    number. Failed trials are left out.
    """

    epoch: int
    curves: tuple[Curve, ...]
    values: Array
    columns: dict[str, Array]


def at_equal_budget(search: Sequence[Curve], space: Space) -> Trials | None:
    """The family's trials after the last epoch that all of them reached; None without any."""
    ended = [c for c in search if c.status in ("finished", "pruned") and c.epoch.size and c.axes]
    if not ended:
        return None
    epoch = min(int(curve.epoch[-1]) for curve in ended)
    at_epoch = [(curve, value) for curve in ended if (value := curve.at(epoch)) is not None]
    axes = list(dict.fromkeys(axis for curve, _ in at_epoch for axis in curve.axes))
    columns = {a: _numbers([c.axes.get(a) for c, _ in at_epoch], space.get(a)) for a in axes}
    return Trials(
        epoch=epoch,
        curves=tuple(curve for curve, _ in at_epoch),
        values=np.array([value for _, value in at_epoch]),
        columns={axis: column for axis, column in columns.items() if np.ptp(column) > 0},
    )


def _numbers(values: Sequence[Any], domain: Domain | None) -> Array:
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        numbers = np.array(values, dtype=float)
        logarithmic = isinstance(domain, LogUniform) and (numbers > 0).all()
        return np.log10(numbers) if logarithmic else numbers
    listed = domain.values if isinstance(domain, Choice) else ()
    order = list(dict.fromkeys([*map(str, listed), *sorted(map(str, values))]))
    return np.array([order.index(str(value)) for value in values], dtype=float)


@dataclass(frozen=True, kw_only=True)
class AxisImportance:
    """The rise of the squared error on held-out trials when ``axis`` is shuffled, as a ``share`` of
    the variance of the accuracies; ``low`` and ``high`` are its extremes over ``SEEDS`` seeds."""

    axis: str
    share: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Importance:
    """A family's axes over ``n`` trials after ``epoch``, most important first.

    ``explained`` is the R² on held-out trials: where it is not above 0, the forest learned
    nothing and the shares say nothing.
    """

    family: str
    epoch: int
    n: int
    explained: float
    axes: tuple[AxisImportance, ...]


def importance(label: str, trials: Trials | None) -> Importance | None:
    """Permutation importance (Breiman 2001) of each axis in a random forest.

    Means over ``SEEDS`` seeds of split, forest and shuffle. ``None`` with fewer than 8 trials,
    without axes or without differences.
    """
    if trials is None or len(trials.values) < FEWEST or not trials.columns:
        return None
    if np.ptp(trials.values) == 0:
        return None
    axes = list(trials.columns)
    x, y = np.column_stack(list(trials.columns.values())), trials.values
    if len(y) > MOST:
        chosen = np.random.default_rng(0).permutation(len(y))[:MOST]
        x, y = x[chosen], y[chosen]
    forests = [_one_forest(x, y, seed) for seed in range(SEEDS)]
    shares = np.array([share for share, _ in forests])  # (SEEDS, axes)
    order = np.argsort(-shares.mean(axis=0), kind="stable")
    return Importance(
        family=label, epoch=trials.epoch, n=len(trials.values),
        explained=float(np.mean([explained for _, explained in forests])),
        axes=tuple(
            AxisImportance(axis=axes[i], share=float(shares[:, i].mean()),
                           low=float(shares[:, i].min()), high=float(shares[:, i].max()))
            for i in order
        ),
    )  # fmt: skip


def _one_forest(x: Array, y: Array, seed: int) -> tuple[Array, float]:
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance
    from sklearn.model_selection import train_test_split

    fit_x, held_x, fit_y, held_y = train_test_split(x, y, test_size=HELD_OUT, random_state=seed)
    forest = RandomForestRegressor(TREES, random_state=seed, n_jobs=1).fit(fit_x, fit_y)
    shuffled = permutation_importance(
        forest, held_x, held_y, scoring="neg_mean_squared_error", n_repeats=REPEATS,
        random_state=seed,
    )  # fmt: skip
    error = float(np.mean((forest.predict(held_x) - held_y) ** 2))
    variance = float(np.var(y))
    return shuffled.importances_mean / variance, 1 - error / variance


@dataclass(frozen=True, kw_only=True)
class LearningRateFit:
    """The top of a parabola through the trials near the best learning rate, and its basin.

    ``best`` is cut to the rates tried; ``low`` to ``high``, the basin, is where the parabola lies
    ``within`` of its top, cut likewise, and ``decades`` its width. ``at_edge`` names the end of the
    tried rates where the accuracy still rises.
    """

    epoch: int
    n: int
    best: float
    low: float
    high: float
    decades: float
    within: float
    at_edge: str | None


def learning_rate_fit(trials: Trials | None) -> LearningRateFit | None:
    """Best learning rate at equal budget and the width of its basin, by a local fit.

    A parabola in log10 of the rate is fitted by least squares to the accuracies of the trials
    within one decade of the best trial's rate. ``None`` with fewer than 8 such trials, or where the
    parabola opens upward.
    """
    if trials is None or RATE not in trials.columns or not trials.values.size:
        return None
    rate = np.log10([float(curve.axes[RATE]) for curve in trials.curves])
    near = np.abs(rate - rate[np.argmax(trials.values)]) <= NEAR_DECADES
    rate, value = rate[near], trials.values[near]
    if rate.size < FEWEST or np.unique(rate).size < 3:
        return None
    square, slope, constant = np.polyfit(rate, value, 2)
    if square >= 0:
        return None
    low, high = float(rate.min()), float(rate.max())
    vertex = float(-slope / (2 * square))
    best = min(max(vertex, low), high)
    top = np.polyval([square, slope, constant], best)
    half = math.sqrt((np.polyval([square, slope, constant], vertex) - top + WITHIN) / -square)
    basin = max(low, vertex - half), min(high, vertex + half)
    return LearningRateFit(
        epoch=trials.epoch, n=int(rate.size), within=WITHIN,
        best=10**best, low=10 ** basin[0], high=10 ** basin[1], decades=basin[1] - basin[0],
        at_edge="high" if vertex >= high else "low" if vertex <= low else None,
    )  # fmt: skip
