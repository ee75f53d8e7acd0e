"""The rule that all claims share: from one value a seed to supported, refuted or undetermined.

A claim says that its effect exceeds the smallest one of interest, d. Over n seeds with mean m and
standard error s, Student's t with n - 1 degrees of freedom tests both sides of d at level alpha:

    supported      the effect is shown to be above d
    refuted        the effect is shown to be below d, were it zero or against the claim
    undetermined   neither

Every world is on one side of d, so a verdict can be wrong in one way only, and is with
probability alpha at most. t wants values that are about normal; differences between two arms,
whose noise is alike, are at least symmetric. Where a claim has several effects (an optimizer
each, a budget each), Holm's correction (1979) holds alpha over all of them, the direction included
(Shaffer 1980); the claim is supported when all are, refuted when one is.

What a claim's measurement gives: effects with a value a seed, and what to draw of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from orchestrator.compare.statistics import LEVEL, POWER, holm

Array = np.ndarray


class NoVerdict(Exception):
    """The experiment cannot speak; the message says why, as the end of a sentence."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One contrast. ``values`` has one number a seed, above 0 where it speaks for the claim.

    ``unit``: ``points`` (a difference of fractions), ``ratio`` (log10 of one) or ``decades``.
    ``bound`` says what the values are of the true ones: ``exact``, ``at least`` or ``at most``
    them, where an optimum or a time was cut off, or ``unknown``.
    """

    name: str
    values: tuple[float, ...]
    unit: str
    bound: str = "exact"


def points(name: str, values: Array) -> Effect:
    """An effect that is a difference of fractions, (seeds,)."""
    return Effect(name=name, values=tuple(map(float, values)), unit="points")


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a picture: ``values`` (seeds, points) over ``x`` (points,); ``place`` colours
    it as the family at that place; a stepped one keeps its height until the next point."""

    name: str
    place: int
    x: tuple[float, ...]
    values: Array
    stepped: bool = False


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A diagram with its data; ``y_unit`` is ``percent`` or empty, ``ticks`` name the places of
    ``x`` where it is no number."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    x_log: bool = False
    ticks: tuple[str, ...] = ()
    y_unit: str = "percent"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: for each point the mean over seeds with its 95 % interval."""
        return {
            "title": self.title,
            "x_label": self.x_label,
            "y_label": self.y_label,
            "x_log": self.x_log,
            "ticks": list(self.ticks),
            "y_unit": self.y_unit,
            "series": [_series(one) for one in self.series],
        }


def _series(one: Series) -> dict[str, Any]:
    """Mean and interval of every point at once: the values of ``compare``'s ``mean_interval``."""
    from scipy import special

    n = len(one.values)
    mean = one.values.mean(axis=0)
    drawn = {
        "name": one.name,
        "place": one.place,
        "stepped": one.stepped,
        "x": [float(x) for x in one.x],
        "mean": _rounded(mean),
        "low": None,
        "high": None,
        "n": n,
    }
    if n < 2:
        return drawn
    half = special.stdtrit(n - 1, 0.5 + LEVEL / 2) * one.values.std(axis=0, ddof=1) / np.sqrt(n)
    return {**drawn, "low": _rounded(mean - half), "high": _rounded(mean + half)}


def _rounded(values: Array) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """``effects`` decide, ``others`` are described; ``seeds`` counts those that were complete.
    ``pictures`` draws up the diagrams: a verdict does not need them, and they take longer."""

    seeds: int
    effects: tuple[Effect, ...]
    others: tuple[Effect, ...] = ()
    pictures: Callable[[], Sequence[Picture]] = tuple
    notes: tuple[str, ...] = field(default=())


SUPPORTED, REFUTED, UNDETERMINED = "supported", "refuted", "undetermined"


def judge(
    effects: Sequence[Effect], *, smallest: float, alpha: float
) -> tuple[str, list[dict[str, Any]]]:
    """The verdict over ``effects``, and each of them with interval, p-value and verdict of its
    own. An interval's two sides are each at level ``alpha``, before Holm's correction."""
    tests = [_one_sided(effect, smallest) for effect in effects]
    adjusted = holm([p_value for p_value, _ in tests])
    judged = [
        {
            **summary(effect, alpha),
            "p_value": p_value,
            "p_value_holm": p_holm,
            "verdict": side if p_holm <= alpha else UNDETERMINED,
            "detectable": _detectable(effect, smallest, alpha / len(effects)),
        }
        for effect, (p_value, side), p_holm in zip(effects, tests, adjusted, strict=True)
    ]
    verdicts = [one["verdict"] for one in judged]
    if REFUTED in verdicts:
        return REFUTED, judged
    return SUPPORTED if set(verdicts) == {SUPPORTED} else UNDETERMINED, judged


def summary(effect: Effect, alpha: float) -> dict[str, Any]:
    """An effect with its mean and interval over seeds, JSON-ready."""
    return {
        "name": effect.name,
        "unit": effect.unit,
        "bound": effect.bound,
        "values": [float(value) for value in effect.values],
        **interval(effect.values, 1 - 2 * alpha),
    }


def interval(values: Sequence[float], level: float) -> dict[str, Any]:
    """Mean with Student's t interval: ``compare``'s ``mean_interval``, twenty times as fast, which
    thousands of simulated worlds ask for."""
    from scipy import special

    n, mean, error = len(values), math.fsum(values) / len(values), standard_error(values)
    found = {"mean": mean, "low": None, "high": None, "level": level, "n": n}
    if error is None:
        return found
    half = float(special.stdtrit(n - 1, 0.5 + level / 2)) * error
    return {**found, "low": mean - half, "high": mean + half}


def _one_sided(effect: Effect, smallest: float) -> tuple[float, str]:
    """The smaller of the two one-sided p-values, and what it speaks for.

    A cut-off effect speaks for one side only. Fewer than two seeds, and seeds without any
    spread, show nothing: no spread in a few values is no certainty.
    """
    from scipy import special

    error = standard_error(effect.values)
    if not error:
        return 1.0, UNDETERMINED
    t = (math.fsum(effect.values) / len(effect.values) - smallest) / error
    below = float(special.stdtr(len(effect.values) - 1, t))
    against_support = 1 - below if effect.bound in ("exact", "at least") else 1.0
    against_refutation = below if effect.bound in ("exact", "at most") else 1.0
    if against_support < against_refutation:
        return against_support, SUPPORTED
    return against_refutation, REFUTED


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean of ``values``; ``None`` for fewer than two."""
    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)


def _detectable(effect: Effect, smallest: float, alpha: float) -> float | None:
    """The smallest true effect that as many seeds, as noisy, would support 4 times in 5."""
    from scipy import special

    error = standard_error(effect.values)
    if not error:
        return None
    freedom = len(effect.values) - 1
    steps = special.stdtrit(freedom, 1 - alpha) + special.stdtrit(freedom, POWER)
    return float(smallest + steps * error)
