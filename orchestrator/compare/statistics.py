"""Means with intervals and tests between two candidates, by their textbook definitions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

Array = np.ndarray
LEVEL = 0.95
ALPHA = 0.05
SHARES_APART = (-1.0, 1.0)  # bounds of a difference between two shares
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


def share_interval(hits: int, n: int, *, method: str = "exact") -> MeanInterval:
    """Share ``hits / n`` with its exact interval (Clopper and Pearson 1934), or with ``wilson``'s
    (1927), which covers as much on average; ``n`` >= 1."""
    from scipy import stats

    ends = stats.binomtest(hits, n).proportion_ci(LEVEL, method)
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


Part = tuple[float, float]  # variance of a mean, degrees of freedom


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An estimate, its standard error > 0 and degrees of freedom."""

    mean: float
    error: float
    freedom: float

    @classmethod
    def of(cls, mean: float, parts: Sequence[Part]) -> Estimate | None:
        """From independent sources of chance, whose variances add up; degrees of freedom by
        Satterthwaite (1946). ``None`` when nothing varied."""
        variance = math.fsum(part for part, _ in parts)
        if variance == 0:
            return None
        freedom = 1 / math.fsum((part / variance) ** 2 / freedom for part, freedom in parts)
        return cls(mean=mean, error=math.sqrt(variance), freedom=freedom)

    @property
    def p_value(self) -> float:
        """Two-sided p-value of Student's t test of no difference."""
        return 2 * t_below(-abs(self.mean) / self.error, self.freedom)

    def p_equivalent(self, margin: float) -> float:
        """p-value of two one-sided t tests that it is within ``margin`` of 0 (Schuirmann 1987)."""
        return t_below((abs(self.mean) - margin) / self.error, self.freedom)

    def interval(
        self, level: float = LEVEL, *, bounds: tuple[float, float] = (-math.inf, math.inf)
    ) -> Interval:
        """Its two-sided interval, cut at the ``bounds`` of the quantity itself, which loses no
        coverage."""
        half = t_quantile(0.5 + level / 2, self.freedom) * self.error
        low, high = max(bounds[0], self.mean - half), min(bounds[1], self.mean + half)
        return Interval(mean=self.mean, low=low, high=high, level=level)

    def detectable(self, alpha: float, power: float = POWER) -> float:
        """Smallest true difference a test at ``alpha`` finds with probability ``power``."""
        steps = t_quantile(1 - alpha / 2, self.freedom) + t_quantile(power, self.freedom)
        return steps * self.error


Groups = Sequence[Sequence[float]]  # an accuracy a final, by search


def mean_of(groups: Groups) -> float:
    """Each search counts as much as another, however many of its finals ended."""
    return math.fsum(math.fsum(group) / len(group) for group in groups) / len(groups)


def spread_part(groups: Groups) -> list[Part]:
    """What the accuracies vary by: over searches, in which the seeds of each are contained, or of
    one search over its seeds; nothing for a single value."""
    values = [math.fsum(group) / len(group) for group in groups] if len(groups) > 1 else groups[0]
    error = standard_error(values)
    return [] if error is None else [(error**2, len(values) - 1)]


def images_part(
    per_image: Array, *, pseudo: Sequence[float], clusters: Array | None = None
) -> Part:
    """What the mean over images would vary by with other images. ``per_image``: (N,).

    A few images that are all right do not show that all images are: ``pseudo`` images are added
    (Agresti and Coull 1998, two right and two wrong; Agresti and Min 2005 for differences).

    Images of one patient are not independent. With ``clusters`` (N,), the group of each image, it
    is the groups that would be others: the cluster-robust variance of a mean (Liang and Zeger 1986;
    Cameron and Miller 2015, equation 11, with G / (G - 1) for few groups) with one degree of
    freedom less than there are groups. Each of the ``pseudo`` is then a group of mean size: smaller
    ones leave accuracies near 1 covered too seldom (tests/unit/compare/test_image_groups.py).
    """
    if clusters is None:
        values = np.concatenate([per_image, np.asarray(pseudo, dtype=float)])
        return float(np.var(values, ddof=1)) / values.size, values.size - 1
    sums, sizes = cluster_sums(per_image, clusters)
    groups = sums.size
    pseudo_size = per_image.size / groups
    sums = np.concatenate([sums, pseudo_size * np.asarray(pseudo, dtype=float)])
    sizes = np.concatenate([sizes, np.full(len(pseudo), pseudo_size)])
    return _clustered_variance(sums, sizes), groups - 1


def _clustered_variance(sums: Array, sizes: Array) -> float:
    """Of the mean over images of groups with these ``sums`` and ``sizes``, (G,) each."""
    residuals = sums - sums.sum() / sizes.sum() * sizes
    correction = sums.size / (sums.size - 1)
    return correction * float(np.sum(residuals**2)) / float(sizes.sum()) ** 2


def independent_units(per_image: Array, clusters: Array) -> float:
    """As many independent images as tell what these do, by the design effect (Kish 1965): between
    the number of groups, also where all images are alike and nothing tells, and that of images."""
    sums, sizes = cluster_sums(per_image, clusters)
    independent = float(np.var(per_image, ddof=1)) / per_image.size
    clustered = _clustered_variance(sums, sizes)
    if independent == 0 or clustered == 0:
        return float(sums.size if independent == 0 else per_image.size)
    return float(np.clip(per_image.size * independent / clustered, sums.size, per_image.size))


def cluster_sums(per_image: Array, clusters: Array) -> tuple[Array, Array]:
    """Sum over the images of each group and how many these are, (G,) each; of values and groups
    (N,)."""
    _, code, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    return np.bincount(code, weights=per_image), sizes.astype(float)


ONE_MODEL, TWO_MODELS = (0, 0, 1, 1), (-1, 1)  # pseudo-images


def binomial_part(top1: float, images: int) -> Part:
    """:func:`images_part` of an accuracy of which only the number of images is known."""
    adjusted = (top1 * images + 2) / (images + 4)
    return adjusted * (1 - adjusted) / (images + 4), images + 3


@dataclass(frozen=True, kw_only=True)
class AccuracyInterval(MeanInterval):
    """A mean figure over ``n`` finals of ``searches`` independent searches, for new searches (of
    one search: for new seeds of its winner) and new images. ``images``: how many there were;
    ``None`` where that is not known, and the interval does not cover them. ``groups``: of how many
    groups these are, where groups are what would be others."""

    searches: int = 1
    images: int | None = None
    groups: int | None = None


def accuracy_interval(
    groups: Groups,
    images: Array | int | None,
    *,
    clusters: Array | None = None,
    level: float = LEVEL,
) -> AccuracyInterval:
    """Of the accuracies of one candidate's finals. ``images``: correctness of each, averaged over
    the finals, (N,), or their number; ``clusters`` (N,) the group of each, where there are groups.
    No ends for one value on images that are not known.

    Formed on the arcsine scale (Anscombe 1948): the best of several draws crowd below what is
    possible, and a symmetric interval of a few of them misses the mean too often. So do
    Satterthwaite's degrees of freedom, which grow where a few searches happen to agree: of several
    searches the fewest of any part are taken.
    """
    mean, of_images, count = mean_of(groups), None, None
    if isinstance(images, int):
        count, of_images = images, binomial_part(mean, images)
    elif images is not None:
        count = images.size
        of_images = images_part(images, pseudo=ONE_MODEL, clusters=clusters)
    # Away from 0 and 1, where the scale ends, as in binomial_part.
    units: float | None = count
    if clusters is not None and isinstance(images, np.ndarray):
        units = independent_units(images, clusters)
    centre = mean if units is None else (mean * units + 2) / (units + 4)
    made = figure_interval(groups, of_images, count=count, centre=centre, level=level)
    return made if clusters is None else replace(made, groups=len(np.unique(clusters)))


def figure_interval(
    groups: Groups,
    of_images: Part | None = None,
    *,
    count: int | None = None,
    centre: float | None = None,
    is_share: bool = True,
    level: float = LEVEL,
) -> AccuracyInterval:
    """As :func:`accuracy_interval` of any figure, of which ``of_images`` is what other images would
    change: the variance of its mean over the finals, from ``count`` of them. Of a share the
    interval is formed around ``centre`` on the arcsine scale; any other figure is 0 or more."""
    mean, parts = mean_of(groups), spread_part(groups) + ([of_images] if of_images else [])
    low: float | None = None
    high: float | None = None
    if estimate := Estimate.of(mean, parts):
        fewest = min(freedom for _, freedom in parts)
        steps = t_quantile(0.5 + level / 2, fewest if len(groups) > 1 else estimate.freedom)
        around = mean if centre is None else centre
        if is_share:
            low, high = _share_interval(around, estimate.error, steps)
        else:
            low, high = max(0.0, around - steps * estimate.error), around + steps * estimate.error
        low, high = min(low, mean), max(high, mean)
    return AccuracyInterval(
        mean=mean, low=low, high=high, level=level, n=sum(map(len, groups)),
        searches=len(groups), images=count,
    )  # fmt: skip


def _share_interval(share: float, error: float, steps: float) -> tuple[float, float]:
    """``share`` and ``steps`` standard errors to either side, by the delta method on the arcsine of
    its root; of one that is 0 or 1, cut there."""
    if not 0 < share < 1:
        return max(0.0, share - steps * error), min(1.0, share + steps * error)
    angle = math.asin(math.sqrt(share))
    half = steps * error / (2 * math.sqrt(share * (1 - share)))
    low, high = max(0.0, angle - half), min(math.pi / 2, angle + half)
    return math.sin(low) ** 2, math.sin(high) ** 2


def mean_over(
    groups: Groups,
    images: Sequence[Part] = (),
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    level: float = LEVEL,
) -> MeanInterval:
    """Mean of what the finals of each search measured, with its interval over searches (of one
    search: over its seeds) and ``images``. No ends where neither tells them: none has zero width.

    What the values vary by holds part of what other images would change, which is counted twice
    then and errs to the careful side.
    """
    mean, count = mean_of(groups), sum(map(len, groups))
    unknown = MeanInterval(mean=mean, low=None, high=None, level=level, n=count)
    estimate = Estimate.of(mean, [*spread_part(groups), *images])
    if estimate is None:
        return unknown
    half = t_quantile(0.5 + level / 2, estimate.freedom) * estimate.error
    low, high = max(bounds[0], mean - half), min(bounds[1], mean + half)
    return replace(unknown, low=low, high=high) if low < high else unknown


@dataclass(frozen=True, kw_only=True)
class MeanSeries:
    """Means over ``n`` finals at each place, their intervals where all have one: (...) each."""

    n: int
    mean: Array
    low: Array | None = None
    high: Array | None = None


def mean_series(groups: Sequence[Array], interval: Callable[[Groups], MeanInterval]) -> MeanSeries:
    """The ``interval`` at every place of what the finals of each search measured, (n, ...) each."""
    shape = groups[0].shape[1:]
    columns = [group.reshape(len(group), -1).T.tolist() for group in groups]  # (places, n) each
    places = [interval(column) for column in zip(*columns, strict=True)]
    has_ends = all(place.low is not None for place in places)
    parts = {
        part: np.reshape([getattr(place, part) for place in places], shape)
        for part in (("mean", "low", "high") if has_ends else ("mean",))
    }
    return MeanSeries(n=sum(map(len, groups)), **parts)


def difference(
    a: Groups, b: Groups, per_image: Array | None, clusters: Array | None = None
) -> Estimate | None:
    """Difference of mean accuracy between two candidates, over searches (of one search each: over
    seeds) and, where known, over images.

    ``per_image``: (N,) difference of correctness averaged over finals, on the shared test images,
    and ``clusters`` (N,) the group of each, where there are groups.
    The variance is Welch's (1947) plus that of the images' mean, which counts the interaction of
    models and images twice and so errs to the careful side. ``None`` when nothing varied: a
    spread of zero seen in a few seeds does not make a result certain.
    """
    parts = [*spread_part(a), *spread_part(b)]
    if per_image is not None:
        parts.append(images_part(per_image, pseudo=TWO_MODELS, clusters=clusters))
    return Estimate.of(mean_of(a) - mean_of(b), parts)


def figure_difference(a: Groups, b: Groups, of_images: Part) -> Estimate | None:
    """The same of any figure, of which ``of_images`` is what other images would change of the
    difference."""
    parts = [*spread_part(a), *spread_part(b), of_images]
    return Estimate.of(mean_of(a) - mean_of(b), parts)
