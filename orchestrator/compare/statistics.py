"""Means with intervals and tests between two families, by their textbook definitions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

Array = np.ndarray
LEVEL = 0.95
ALPHA = 0.05
POWER = 0.8


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its two-sided interval at ``level``; no ends where nothing tells them."""

    mean: float
    low: float | None
    high: float | None
    level: float = LEVEL


@dataclass(frozen=True, kw_only=True)
class MeanInterval(Interval):
    """The mean of ``n`` independent values and its interval."""

    n: int


def standard_error(values: Sequence[float] | Array) -> float | None:
    """Of the mean of ``values``; ``None`` for fewer than two."""
    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)


def t_quantile(share: float, freedom: float) -> float:
    """Quantile of Student's t: what ``scipy.stats.t.ppf`` gives, many times as fast."""
    from scipy import special

    return float(special.stdtrit(freedom, share))


def t_below(t: float, freedom: float) -> float:
    """Probability that Student's t lies below ``t``."""
    from scipy import special

    return float(special.stdtr(freedom, t))


def mean_interval(
    values: Sequence[float],
    level: float = LEVEL,
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> MeanInterval:
    """Mean with Student's t interval over ``n`` independent values; no interval when n < 2.

    ``bounds`` are those of the quantity itself: cutting the interval there loses no coverage.
    """
    n, mean, error = len(values), math.fsum(values) / len(values), standard_error(values)
    if error is None:
        return MeanInterval(mean=mean, low=None, high=None, level=level, n=n)
    half = t_quantile(0.5 + level / 2, n - 1) * error
    low, high = max(bounds[0], mean - half), min(bounds[1], mean + half)
    return MeanInterval(mean=mean, low=low, high=high, level=level, n=n)


ImageVariances = tuple[tuple[float, float], ...]  # of an accuracy, with their degrees of freedom


def image_variance(top1: float, images: int, sets: int = 1) -> ImageVariances:
    """Variance of an accuracy over so many images, mean over independent ``sets`` of them; nothing
    where ``images`` is 0, which is unknown.

    Binomial, with one hit and one miss added (Agresti and Caffo 2000): above zero also where all
    answers are right.
    """
    if not images:
        return ()
    share = (top1 * images + 1) / (images + 2)
    return ((share * (1 - share) / (images + 2) / sets, float(max(1, images * sets - 1))),)


def over_images(
    values: Sequence[float],
    images: ImageVariances,
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    level: float = LEVEL,
) -> MeanInterval:
    """Mean of ``values``, one a seed, with its interval over seeds and ``images``.

    The variance over seeds, which holds what each model makes of the images as well, and those of
    the images are added, which errs to the careful side; degrees of freedom by Satterthwaite
    (1946). No ends where nothing varied and no images are known: no interval has zero width.
    """
    n, error = len(values), standard_error(values)
    parts = (*images, *(() if error is None else ((error**2, float(n - 1)),)))
    mean, variance = math.fsum(values) / n, math.fsum(part for part, _ in parts)
    unknown = MeanInterval(mean=mean, low=None, high=None, level=level, n=n)
    if variance == 0:
        return unknown
    freedom = 1 / math.fsum((part / variance) ** 2 / freedom for part, freedom in parts)
    half = t_quantile(0.5 + level / 2, freedom) * math.sqrt(variance)
    low, high = max(bounds[0], mean - half), min(bounds[1], mean + half)
    return replace(unknown, low=low, high=high) if low < high else unknown


def accuracy_interval(values: Sequence[float], images: int) -> MeanInterval:
    """Mean accuracy of ``values``, one a seed, with its interval over seeds and ``images`` (0:
    unknown), within [0, 1]."""
    mean = math.fsum(values) / len(values)
    return over_images(values, image_variance(mean, images), bounds=(0.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class MeanSeries:
    """Means over ``n`` values at each place, with their intervals: (...) each."""

    n: int
    mean: Array
    low: Array | None = None
    high: Array | None = None


def mean_series(
    values: Array, interval: Callable[[Sequence[float]], MeanInterval] | None = None
) -> MeanSeries:
    """The mean at every place of ``values``, (n, ...), with its ``interval`` (:func:`mean_interval`
    by default); no ends unless all places have some."""
    columns = values.reshape(len(values), -1).T.tolist()
    places = [(interval or mean_interval)(column) for column in columns]
    has_ends = all(place.low is not None for place in places)
    parts = {
        part: np.reshape([getattr(place, part) for place in places], values.shape[1:])
        for part in (("mean", "low", "high") if has_ends else ("mean",))
    }
    return MeanSeries(n=len(values), **parts)


def share_interval(hits: int, n: int) -> MeanInterval:
    """Share ``hits / n`` with its exact interval (Clopper and Pearson 1934); ``n`` >= 1."""
    from scipy import stats

    ends = stats.binomtest(hits, n).proportion_ci(LEVEL)
    return MeanInterval(mean=hits / n, low=float(ends.low), high=float(ends.high), n=n)


def mcnemar(a: Array, b: Array) -> float:
    """Exact two-sided p-value of McNemar's test (1947) on paired correctness, bool (N,) each."""
    from scipy import stats

    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(b & ~a))
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b).pvalue)


def paired_t(differences: Sequence[float]) -> float | None:
    """Two-sided p-value of Student's paired t test; ``None`` for n < 2 or without spread."""
    from scipy import stats

    if len(differences) < 2 or np.ptp(differences) == 0:
        return None
    return float(stats.ttest_1samp(differences, 0).pvalue)


def permutation(differences: Array, *, resamples: int = 20_000, seed: int = 0) -> float:
    """Two-sided p-value of the paired permutation test (sign flips, Fisher 1935) of mean zero.

    ``differences``: (N,), one a pair. Equal magnitudes flip as one binomial draw, so 10,000
    images cost what their few distinct values cost. The observed order counts as a resample.
    """
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    observed = abs(float(np.sum(differences)))
    drawn = np.random.default_rng(seed).binomial(counts, 0.5, size=(resamples, counts.size))
    sums = np.abs((2 * drawn - counts) @ sizes)
    extreme = int(np.sum(sums >= observed - 1e-9))
    return (extreme + 1) / (resamples + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the given order, family-wise error controlled (Holm 1979)."""
    values = np.asarray(p_values, dtype=float)
    order = np.argsort(values, kind="stable")
    scaled = np.minimum(1, np.arange(values.size, 0, -1) * values[order])
    return [float(p) for p in np.maximum.accumulate(scaled)[np.argsort(order)]]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Estimated difference of two accuracies, its standard error > 0 and degrees of freedom."""

    mean: float
    error: float
    freedom: float

    @property
    def p_value(self) -> float:
        """Two-sided p-value of Student's t test of no difference."""
        return 2 * t_below(-abs(self.mean) / self.error, self.freedom)

    def interval(self, level: float = LEVEL) -> Interval:
        """Two-sided interval of the difference."""
        half = t_quantile(0.5 + level / 2, self.freedom) * self.error
        return Interval(mean=self.mean, low=self.mean - half, high=self.mean + half, level=level)

    def detectable(self, alpha: float, power: float = POWER) -> float:
        """Smallest true difference a test at ``alpha`` finds with probability ``power``."""
        steps = t_quantile(1 - alpha / 2, self.freedom) + t_quantile(power, self.freedom)
        return steps * self.error


def difference(
    a: Sequence[float], b: Sequence[float], per_example: Array | None
) -> Difference | None:
    """Difference of mean accuracy between families, over seeds and, where known, over examples.

    ``a``, ``b``: accuracy of each seed, two or more each. ``per_example``: (N,) difference of
    correctness averaged over seeds, on the shared test images. The variance is Welch's over
    seeds (1947) plus that of the examples' mean, which counts the seed-by-example interaction
    twice and so errs to the careful side; degrees of freedom by Satterthwaite (1946). ``None``
    when nothing varied: a spread of zero seen in a few seeds does not make a result certain.
    """
    parts = [(float(np.var(seeds, ddof=1)) / len(seeds), len(seeds) - 1) for seeds in (a, b)]
    if per_example is not None:
        n = per_example.size
        parts.append((float(np.var(per_example, ddof=1)) / n, n - 1))
    variance = math.fsum(part for part, _ in parts)
    if variance == 0:
        return None
    freedom = variance**2 / math.fsum(part**2 / freedom for part, freedom in parts)
    mean = math.fsum(a) / len(a) - math.fsum(b) / len(b)
    return Difference(mean=mean, error=math.sqrt(variance), freedom=freedom)
