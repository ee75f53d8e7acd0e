"""What other test images would change of a figure that finals measured, from their stored
predictions.

A mean over images (top-5 accuracy, the loss, the recall of a class over its own images) varies as
the images do. What is none is resampled: the paired bootstrap (Efron 1979; Davison and Hinkley,
Bootstrap Methods and their Application, 1997, section 2.3) draws as many images again, the same
ones for all finals of all candidates, so that what is hard for every model cancels out of a
difference. Its variance is one source of chance beside that over searches and seeds. Where images
are of groups (patients, videos), whole groups are drawn.

A few images that are all right do not show that all images are, so one image more of each class,
on which a model errs, is added to the variance (as the pseudo-images of
:func:`statistics.images_part` are). benchmarks/metric_intervals.py measures coverage and errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from orchestrator.compare.runs import Array, Curve, grouped
from orchestrator.compare.statistics import (
    ONE_MODEL,
    TWO_MODELS,
    Part,
    images_part,
    independent_units,
)
from trainables.evaluate.predictions import Predictions, read_predictions
from trainables.metrics import Metric
from trainables.storage.trial_files import predictions_file

RESAMPLES = 400
FEWEST_RESAMPLES = 100
MOST_DRAWS = 20_000_000  # images of all resamples together: bounds memory and time
MOST_SORTED = 100_000_000  # the same times classes, where images are summed up in order for each
NOT_STORED = "no predictions of test images are stored for all finals"
OTHER_IMAGES = "the finals met different test images"
NOT_EXACT = "its stored predictions have not all probabilities"
NO_IMAGES = "too few test images tell it"
ONE_GROUP = "all test images are of one group, which tells nothing of others"


@dataclass(frozen=True, kw_only=True)
class ImageChance:
    """The variance over ``images`` test images, with its degrees of freedom; of so many ``groups``
    of them, where groups are what would be others. ``shared``: of a share of images, how many
    independent ones it is a share of."""

    part: Part
    images: int
    groups: int | None = None
    shared: float | None = None

    def centre(self, mean: float) -> float | None:
        """Where the interval of a share of images is formed, away from 0 and 1 as
        :func:`statistics.accuracy_interval` has it; ``None``: at the mean itself."""
        return None if self.shared is None else (mean * self.shared + 2) / (self.shared + 4)


def of_one(
    finals: Sequence[Curve], metric: Metric, class_names: Sequence[str]
) -> ImageChance | str:
    """Of one candidate's figure, the mean over its searches and their finals; or why it is not
    known."""
    measured = _measured(finals, metric, class_names)
    return measured if isinstance(measured, str) else _chance([measured], metric)


def of_two(
    a: Sequence[Curve], b: Sequence[Curve], metric: Metric, class_names: Sequence[str]
) -> ImageChance | str:
    """The same of the difference between two candidates."""
    both = [_measured(finals, metric, class_names) for finals in (a, b)]
    measured = [one for one in both if not isinstance(one, str)]
    if len(measured) < 2:
        return next(one for one in both if isinstance(one, str))
    if measured[0].split != measured[1].split:
        return OTHER_IMAGES
    return _chance(measured, metric)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Measured:
    """What finals contribute: ``values`` by image, (N,), of a metric that is a mean of them, and
    the group of each, ``clusters`` (N,), where there are groups; else the figure on each resample,
    (B,). ``counts``: images, or groups with images, of each class, (K,), that the metric is over;
    ``images`` and ``groups`` all of the split; ``split`` tells one from another."""

    values: Array
    counts: Array
    images: int
    groups: int | None
    split: int
    clusters: Array | None = None


def _measured(
    finals: Sequence[Curve], metric: Metric, class_names: Sequence[str]
) -> _Measured | str:
    """Averaged over the finals of a search and then over searches."""
    index = class_names.index(metric.class_name) if metric.class_name in class_names else None
    by_search = []
    each: list[_Measured] = []
    for group in grouped(finals):
        own = []
        for final in group:
            path = None if final.answers is None else predictions_file(final.answers, "test")
            if path is None or not path.is_file():
                return NOT_STORED
            groups = None if final.groups is None else final.groups.astype(np.int64).tobytes()
            one = _of_file(path, path.stat().st_mtime_ns, metric, index, groups)
            if isinstance(one, str):
                return one
            own.append(one.values)
            each.append(one)
        by_search.append(np.mean(own, axis=0))
    if len({one.split for one in each}) > 1:
        return OTHER_IMAGES
    return replace(each[0], values=np.mean(by_search, axis=0))


def _chance(measured: Sequence[_Measured], metric: Metric) -> ImageChance | str:
    """Of one candidate, or of the difference between two."""
    first, is_pair = measured[0], len(measured) == 2
    values = first.values - measured[1].values if is_pair else first.values
    if is_image_mean(metric):
        pseudo = () if not metric.is_share else TWO_MODELS if is_pair else ONE_MODEL
        if values.size < 2 or (first.clusters is not None and np.ptp(first.clusters) == 0):
            return NO_IMAGES
        shared: float | None = None
        if metric.is_share and not is_pair:
            clusters = first.clusters
            shared = values.size if clusters is None else independent_units(values, clusters)
        part = images_part(values, pseudo=pseudo, clusters=first.clusters)
        return ImageChance(part=part, images=first.images, groups=first.groups, shared=shared)
    told = values[np.isfinite(values)]
    if told.size < FEWEST_RESAMPLES / 2:
        return NO_IMAGES
    variance = float(np.var(told, ddof=1))
    if first.groups is not None:  # a bootstrap of few groups varies too little
        variance *= first.groups / (first.groups - 1)
    variance += (1 + is_pair) * _one_more_image(metric, first.counts)
    freedom = min(told.size - 1.0, _freedom(first.counts), (first.groups or math.inf) - 1)
    return ImageChance(part=(variance, freedom), images=first.images, groups=first.groups)


def is_image_mean(metric: Metric) -> bool:
    """Whether the figure is a mean over images, or over those of one class."""
    is_recall = metric.class_name is not None and metric.least_recall is None
    return is_recall or metric.name in ("top5", "loss")


def _one_more_image(metric: Metric, counts: Array) -> float:
    """Variance that one image more of each class adds, on which a model errs: a whole image of
    recall, half of one among the pairs that an area under a ROC curve counts."""
    if metric.least_recall is not None:  # among those that are taken for the class
        return float(1 / (metric.least_recall * counts[0] + 2) ** 2)
    of_classes = float(np.sum(1 / (counts + 2.0) ** 2)) / counts.size**2
    return of_classes / 4 if metric.name == "auroc" else of_classes


def _freedom(counts: Array) -> float:
    """Degrees of freedom of a mean over classes with so many images or groups, which vary alike: by
    Satterthwaite (1946), few where a few classes have few images. (K,)"""
    shares = 1 / (counts + 1.0)
    return float(np.sum(shares) ** 2 / np.sum(shares**2 / counts))


@lru_cache(maxsize=512)
def _of_file(
    path: Path, written_at: int, metric: Metric, index: int | None, groups: bytes | None = None
) -> _Measured | str:
    """Of one final's file, as it is since ``written_at``; ``index`` of the metric's class,
    ``groups`` the group of each image, (N,) int64."""
    made = read_predictions(path)
    if made is None:
        return NOT_STORED
    if metric.needs_probabilities and not made.exact:
        return NOT_EXACT
    labels, units, num_groups = made.labels, np.arange(len(made.labels)), None
    if groups is not None:
        _, units = np.unique(np.frombuffer(groups, np.int64), return_inverse=True)
        num_groups = int(units.max()) + 1
        if num_groups < 2:
            return ONE_GROUP
    of_units = labels
    if num_groups is not None:  # each group once for each class that it has an image of
        of_units = np.unique(np.stack([labels, units]), axis=1)[0]
    counts = np.bincount(of_units)
    counts = counts[counts > 0] if index is None else np.array([np.sum(of_units == index)])
    if not counts.size or not counts.all() or (metric.name == "auroc" and counts.size < 2):
        return NO_IMAGES
    if is_image_mean(metric):
        values = _by_image(made, metric, index)
        own = labels == index if metric.class_name is not None else slice(None)
        clusters = None if groups is None else units[own]
    else:
        clusters = None
        draws: Sequence[Array] = resampled(num_groups or len(labels), len(labels))
        if metric.name == "auroc":
            draws = _first(draws, round(MOST_SORTED / len(labels) / counts.size))
        repeat = REPEATED[metric.name.partition(":")[0]]
        values = np.concatenate([repeat(made, metric, index, draw[:, units]) for draw in draws])
    return _Measured(
        values=values, counts=counts, images=len(labels), groups=num_groups, clusters=clusters,
        split=hash((labels.tobytes(), groups)),
    )  # fmt: skip


def _by_image(made: Predictions, metric: Metric, index: int | None) -> Array:
    rows = np.arange(len(made.labels))
    own = made.probabilities[rows, made.labels].astype(float)
    if metric.name == "loss":
        return np.asarray(-np.log(np.maximum(own, np.finfo(np.float32).tiny)))
    if metric.name == "top5":
        ahead = np.sum(made.probabilities > own[:, None], axis=1)
        return np.asarray(ahead < 5, dtype=float)
    return np.asarray(made.predicted[made.labels == index] == index, dtype=float)


@lru_cache(maxsize=2)
def resampled(units: int, images: int) -> tuple[Array, ...]:
    """How often each image, or each group of them, is drawn in each resample, (B, units) in blocks
    of resamples: the same for all finals."""
    resamples = int(np.clip(MOST_DRAWS / images, FEWEST_RESAMPLES, RESAMPLES))
    rng, share = np.random.default_rng(0), np.full(units, 1 / units)
    blocks = np.array_split(np.arange(resamples), max(1, resamples * images // 2_000_000))
    return tuple(rng.multinomial(units, share, size=len(b)).astype(np.float32) for b in blocks)


def _first(draws: Sequence[Array], resamples: int) -> list[Array]:
    """So many of them, not fewer than the fewest."""
    left = max(FEWEST_RESAMPLES, resamples)
    first: list[Array] = []
    for block in draws:
        first.append(block[:left])
        left = max(0, left - len(block))
    return first


Repeat = Callable[[Predictions, Metric, int | None, Array], Array]


def _class_counts(made: Predictions, draw: Array) -> tuple[Array, Array, Array]:
    """Images of each class that has any, those taken for it and those rightly so, on each resample:
    (B, K) each."""
    present, own = np.unique(made.labels, return_inverse=True)
    predicted = made.predicted
    taken = np.searchsorted(present, predicted)
    taken = np.where(np.isin(predicted, present), taken, present.size)  # as one class more
    right = np.where(taken == own, own, present.size)

    def counted(classes: Array) -> Array:
        cells = np.arange(len(draw))[:, None] * (present.size + 1) + classes  # (B, N)
        sums = np.bincount(cells.ravel(), draw.ravel(), len(draw) * (present.size + 1))
        return np.asarray(sums.reshape(len(draw), -1)[:, :-1])

    return counted(own), counted(taken), counted(right)


def _mean_of_classes(values: Array, of_class: Array) -> Array:
    """Over the classes that a resample has: (B,)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.sum(np.where(of_class > 0, values, 0), axis=1)
                          / np.sum(of_class > 0, axis=1), dtype=float)  # fmt: skip


def _macro_f1(made: Predictions, metric: Metric, index: int | None, draw: Array) -> Array:
    of_class, of_taken, of_right = _class_counts(made, draw)
    return _mean_of_classes(2 * of_right / np.maximum(of_class + of_taken, 1), of_class)


def _balanced_accuracy(made: Predictions, metric: Metric, index: int | None, draw: Array) -> Array:
    of_class, _, of_right = _class_counts(made, draw)
    return _mean_of_classes(of_right / np.maximum(of_class, 1), of_class)


def _auroc(made: Predictions, metric: Metric, index: int | None, draw: Array) -> Array:
    """A pair of an image of the class and another counts by how often both are drawn, half where
    their probabilities tie."""
    areas, drawn = [], []
    for c in np.unique(made.labels):
        order, first, last = _ordered(made.probabilities[:, c])
        own = made.labels[order] == c
        others = np.cumsum(draw[:, order] * ~own, axis=1, dtype=float)
        others = np.concatenate([np.zeros((len(draw), 1)), others], axis=1)  # (B, N + 1)
        below = (others[:, first[own]] + others[:, last[own] + 1]) / 2
        of_class = draw[:, order[own]]
        total = of_class.sum(axis=1, dtype=float) * others[:, -1]
        areas.append(np.sum(of_class * below, axis=1) / np.maximum(total, 1))
        drawn.append(total)
    return _mean_of_classes(np.stack(areas, axis=1), np.stack(drawn, axis=1))


def _precision(made: Predictions, metric: Metric, index: int | None, draw: Array) -> Array:
    """The best precision of all bars that find enough; NaN where a resample has no such image."""
    assert index is not None
    assert metric.least_recall is not None
    order, _, last = _ordered(-made.probabilities[:, index])
    own = made.labels[order] == index
    bars = np.unique(last)  # a bar takes all images whose probabilities tie
    taken = np.cumsum(draw[:, order], axis=1, dtype=float)[:, bars]
    right = np.cumsum(draw[:, order] * own, axis=1, dtype=float)[:, bars]
    enough = right >= metric.least_recall * right[:, -1:] * (1 - 1e-12)
    precision = np.where(enough, right / np.maximum(taken, 1), 0).max(axis=1)
    return np.where(right[:, -1] > 0, precision, np.nan)


REPEATED: dict[str, Repeat] = {
    "macro_f1": _macro_f1,
    "balanced_accuracy": _balanced_accuracy,
    "auroc": _auroc,
    "precision": _precision,
}


def _ordered(values: Array) -> tuple[Array, Array, Array]:
    """Places of ``values`` in ascending order, and of each in that order the first and the last
    place of those that tie with it: (N,) each."""
    order = np.argsort(values, kind="stable")
    _, starts, tie, sizes = np.unique(
        values[order], return_index=True, return_inverse=True, return_counts=True
    )
    return order, starts[tie], (starts + sizes - 1)[tie]
