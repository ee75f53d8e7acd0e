"""What a claim's measurement gives: effects with a value a seed, and what to draw of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from orchestrator.compare.statistics import LEVEL

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
