"""The rule that all claims share: from one value a seed to supported, refuted or undetermined.

A claim says that its effect exceeds the smallest one of interest, d. Over n seeds with mean m and
standard error s, Student's t with n - 1 degrees of freedom tests both sides of d at level alpha:

    supported      the effect is shown to be above d
    refuted        the effect is shown to be below d, were it zero or against the claim
    undetermined   neither, or an arm is where its scale says nothing

Every world is on one side of d, so a verdict can be wrong in one way only, and is with
probability alpha at most. t wants values that are about normal; differences between two arms,
whose noise is alike, are at least symmetric. Where a claim has several effects (an optimizer
each, a budget each), Holm's correction (1979) holds alpha over all of them, the direction included
(Shaffer 1980); the claim is supported when all are, refuted when one is.

Whoever changes this rule, or how ``results.py`` reads results, raises ``claim.RULE_VERSION``. What
the rule gives for known values (:func:`known_verdicts`) is part of every claim's hash besides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from orchestrator.compare.statistics import (
    LEVEL,
    POWER,
    MeanInterval,
    holm,
    mean_interval,
    standard_error,
    t_below,
    t_quantile,
)

Array = np.ndarray
Json = dict[str, Any]  # a JSON object: of a verdict, an effect, a diagram

SUPPORTED, REFUTED, UNDETERMINED = "supported", "refuted", "undetermined"
# In words, for whoever reads a declaration.
TESTS = {
    "test": "Student's t over seeds, one-sided, on both sides of the smallest effect",
    "correction": "Holm (1979) over the effects that decide",
    "verdict": "supported when all effects are, refuted when one is",
}
ROUNDING = 1e-9  # seeds closer than this differ by rounding: one image in a million is more


class NoVerdict(Exception):
    """The experiment cannot speak; the message says why, as the end of a sentence."""


def have_spread(values: Sequence[float]) -> bool:
    """Whether seeds differ by more than rounding: without, nothing tells how sure they are."""
    return max(values) - min(values) > ROUNDING


def interval_over(values: Sequence[float], level: float) -> MeanInterval:
    """Mean with Student's t interval over seeds. There is none where seeds have no spread: one of
    no width would promise certainty."""
    interval = mean_interval(values, level)
    return interval if have_spread(values) else replace(interval, low=None, high=None)


@dataclass(frozen=True)
class Effect:
    """One contrast. ``values`` has one number a seed, above 0 where it speaks for the claim.

    ``unit``: ``points`` (a difference of fractions), ``ratio`` (log10 of one) or ``decades``.
    ``bound`` says what the values are of the true ones: ``exact``, ``at least`` or ``at most``
    them, where an optimum or a time was cut off, or ``unknown``.
    """

    name: str
    values: Sequence[float]
    unit: str = "points"
    bound: str = "exact"

    @property
    def is_finite(self) -> bool:
        """Whether it is known in every seed."""
        return all(map(math.isfinite, self.values))

    def summary(self, alpha: float) -> Json:
        """Mean and interval over seeds, JSON-ready; each side of the interval at ``alpha``."""
        return {
            "name": self.name,
            "unit": self.unit,
            "bound": self.bound,
            "values": list(self.values),
            **vars(interval_over(self.values, 1 - 2 * alpha)),
        }


def points(differences: Mapping[str, Array]) -> list[Effect]:
    """Effects that are differences of fractions, (seeds,) by name."""
    return [Effect(name, values.tolist()) for name, values in differences.items()]


def line(
    name: str, place: int, x: Array | Sequence[float], values: Array, *, stepped: bool = False
) -> Json:
    """One line of a diagram: at each of ``x``, (points,), the mean of ``values``, (seeds, points),
    with its 95 % interval, ``None`` at points where seeds have no spread. ``place`` colours it as
    the family at that place; a stepped one keeps its height until the next point."""
    places = [interval_over(column, LEVEL) for column in values.T.tolist()]
    rounded: Json = {"mean": [_digits(place.mean) for place in places], "low": None, "high": None}
    if len(values) > 1:
        rounded["low"] = [_digits(place.low) for place in places]
        rounded["high"] = [_digits(place.high) for place in places]
    x_values = np.asarray(x, dtype=float).tolist()
    line = {"name": name, "place": place, "stepped": stepped, "x": x_values, "n": len(values)}
    return {**line, **rounded}


def _digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def lines(x: Array | Sequence[float], rows: Mapping[str, Array]) -> list[Json]:
    """A line for each of ``rows``, (seeds, points) by name, over the same ``x``, (points,)."""
    return [line(name, place, x, values) for place, (name, values) in enumerate(rows.items())]


def diagram(
    title: str,
    x_label: str,
    series: Sequence[Json],
    *,
    y_label: str = "validation accuracy, %",
    x_log: bool = False,
    ticks: Sequence[str] = (),
) -> Json:
    """Lines with their axes, y in percent; ``ticks`` name the places of x where it is no number."""
    return {
        "title": title,
        "x_label": x_label,
        "series": series,
        "y_label": y_label,
        "x_log": x_log,
        "ticks": list(ticks),
        "y_unit": "percent",
    }


@dataclass(frozen=True, kw_only=True)
class Measured:
    """``effects`` decide, ``others`` are described. ``pictures`` draws up the diagrams: a verdict
    does not need them, and they take longer. ``undetermined`` says why there is no effect to
    judge, where an arm is at an end of its scale; there are no ``effects`` then."""

    effects: Sequence[Effect] = ()
    undetermined: str | None = None
    others: Sequence[Effect] = ()
    pictures: Callable[[], Sequence[Json]] = tuple
    notes: Sequence[str] = ()


def judge(effects: Sequence[Effect], *, smallest: float, alpha: float) -> tuple[str, list[Json]]:
    """The verdict over ``effects``, and each of them with interval, p-value and verdict of its
    own. An interval's two sides are each at level ``alpha``, before Holm's correction."""
    tests = [_one_sided(effect, smallest, alpha / len(effects)) for effect in effects]
    adjusted = holm([p_value for p_value, _, _ in tests])
    judged = [
        {
            **effect.summary(alpha),
            "p_value": p_value,
            "p_value_holm": p_holm,
            "verdict": side if p_holm <= alpha else UNDETERMINED,
            "detectable": detectable,
        }
        for effect, (p_value, side, detectable), p_holm in zip(
            effects, tests, adjusted, strict=True
        )
    ]
    verdicts = {effect["verdict"] for effect in judged}
    if REFUTED in verdicts:
        return REFUTED, judged
    return SUPPORTED if verdicts == {SUPPORTED} else UNDETERMINED, judged


# Alone, the second effect is shown; two of it are not, after Holm's correction. The third is
# against the claim, the fourth a bound that speaks for one side only.
_KNOWN = {
    "clear": Effect("clear", (0.031, 0.012, 0.044, 0.027, 0.019)),
    "weak": Effect("weak", (0.030, 0.000, 0.050, 0.010, 0.025)),
    "against": Effect("against", (-0.031, -0.012, -0.044, -0.027, -0.019)),
    "bound": Effect("bound", (0.031, 0.012, 0.044, 0.027, 0.019), bound="at most"),
}
_TOGETHER = (("weak",), ("weak", "weak"), ("clear", "weak"), ("clear", "against"), ("bound",))


def known_verdicts() -> list[Json]:
    """What :func:`judge` makes of known effects, by themselves and together, to six digits: another
    test, correction or way from effects to a verdict gives something else."""
    verdicts = []
    for names in _TOGETHER:
        verdict, judged = judge([_KNOWN[name] for name in names], smallest=0.0, alpha=0.05)
        numbers = [
            [round(effect[key], 6) for key in ("p_value", "p_value_holm", "low", "high")]
            for effect in judged
        ]
        sides = [effect["verdict"] for effect in judged]
        verdicts.append({"verdict": verdict, "effects": sides, "numbers": numbers})
    return verdicts


def _one_sided(effect: Effect, smallest: float, alpha: float) -> tuple[float, str, float | None]:
    """The smaller of the two one-sided p-values, what it speaks for, and the smallest true effect
    that as many seeds, as noisy, would support at ``alpha`` 4 times in 5.

    A cut-off effect speaks for one side only. Fewer than two seeds, and seeds without any
    spread, show nothing: no spread in a few values is no certainty.
    """
    error, freedom = standard_error(effect.values), len(effect.values) - 1
    if not error or not have_spread(effect.values):
        return 1.0, UNDETERMINED, None
    t = (math.fsum(effect.values) / len(effect.values) - smallest) / error
    below = t_below(t, freedom)
    against_support = 1 - below if effect.bound in ("exact", "at least") else 1.0
    against_refutation = below if effect.bound in ("exact", "at most") else 1.0
    p_value, side = min((against_refutation, REFUTED), (against_support, SUPPORTED))
    steps = t_quantile(1 - alpha, freedom) + t_quantile(POWER, freedom)
    return p_value, side, smallest + steps * error
