"""Images of val and test whose label is suspected to be wrong, by what all finals predict of them.

No final was trained on the images that it predicts here: test is opened after all training, and a
search's val is never trained on, though its winner was chosen by it. An image that several finals
predict has the mean of their probabilities, in which each candidate counts alike. Images of train
are not predicted out of fold, so their labels are not looked at.

An image that is hard and one that is labelled wrong look alike from here. What share of the listed
ones is wrong was measured on flipped labels (``benchmarks/label_noise.py``); it depends on how
often the models are right. Below ``LEAST_RIGHT`` more than three of four labels that they
contradict are right, and nothing is listed: at that bar half of the first hundred were flips, more
with many images, less with few. The share of wrong labels that the confident joint estimates is not
told: with models that are right in four images of five it was 13 % where 5 % were wrong.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.compare.confident_learning import label_errors
from orchestrator.compare.finals import finished, newest_round
from orchestrator.compare.pictures import Pictures
from orchestrator.compare.predicted import named
from orchestrator.compare.runs import Array, CandidateTrials
from orchestrator.wording import percent
from trainables.errors import UserError
from trainables.evaluate.predictions import Predictions

SPLITS = ("test", "val")
MOST_VALUES = 100_000_000  # probabilities at once: 400 MB
LEAST_RIGHT = 0.7  # of the images, by the mean of all finals; ``weaker`` in the benchmark
MOST_IN_JSON = 100
COLUMNS = (
    "split", "row", "path", "digest", "label", "suggested", "label_probability",
    "suggested_probability", "finals",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """An image whose label is suspected. ``row`` is that of its split in the image store (of val:
    in the carve of the first search that has it), ``digest`` that of its pixels, ``path`` where it
    is in the source, as far as that is known here; ``finals``: how many predict it."""

    split: str
    row: int
    digest: str
    label: str
    suggested: str
    label_probability: float
    suggested_probability: float
    finals: int
    path: str | None = None


@dataclass(frozen=True, kw_only=True)
class SuspectReport:
    """All ``suspects``, the most suspicious first, of so many ``images`` by split; ``missing``: why
    nothing was looked at."""

    images: dict[str, int]
    suspects: tuple[Suspect, ...]
    missing: str | None = None

    def count(self, split: str) -> int:
        """How many of the suspects are of ``split``."""
        return sum(one.split == split for one in self.suspects)

    @property
    def sentence(self) -> str:
        """How many labels are suspected, of how many."""
        if self.missing is not None:
            return f"Labels were not looked at: {self.missing}."
        total, all_images = len(self.suspects), sum(self.images.values())
        of = " and ".join(
            f"{self.count(split)} of {n} in {split}" for split, n in self.images.items()
        )
        share = f"{100 * total / all_images:.1f} %"
        return (
            f"{total} of {all_images} labels are suspected to be wrong ({share}; {of}), by what "
            "finals predict that were not trained on these images. Training images are not "
            "predicted out of fold, so their labels were not looked at."
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; the ``MOST_IN_JSON`` most suspicious, all of them counted."""
        counts = {split: self.count(split) for split in self.images}
        first = [vars(one) for one in self.suspects[:MOST_IN_JSON]]
        return {**vars(self), "suspected": counts, "suspects": first}


def find_suspects(
    candidates: Sequence[CandidateTrials], class_names: Sequence[str], pictures: Pictures
) -> SuspectReport | None:
    """By the newest finals of all candidates; ``None`` where no final has kept its predictions.
    Raises ``UserError`` where a file of them is damaged."""
    pool = _Pool()
    for candidate in candidates:
        finals = finished(newest_round(candidate))
        for final in finals:
            for split in SPLITS:
                pool.add(final.predictions(split), 1.0 / len(finals))
    if not pool.parts:
        return None
    if pool.is_too_large:
        why = f"more than {MOST_VALUES:,} probabilities"
        return SuspectReport(images={}, suspects=(), missing=why)
    joined = pool.joined()
    counts = np.bincount(joined.splits, minlength=len(SPLITS))
    images = {split: int(n) for split, n in zip(SPLITS, counts, strict=True) if n}
    right = float((joined.probabilities.argmax(1) == joined.labels).mean())
    if right < LEAST_RIGHT:
        why = (
            f"the finals together are right in {percent(right)} of these images, and below "
            f"{percent(LEAST_RIGHT)} more than three of four labels that they contradict are "
            "right, where 5 % are wrong"
        )
        return SuspectReport(images=images, suspects=(), missing=why)
    errors = label_errors(joined.labels, joined.probabilities)
    rows = np.flatnonzero(errors.suspected)
    own = joined.probabilities[rows, joined.labels[rows]]
    other = joined.probabilities[rows, errors.suggested[rows]]
    names = named(class_names, joined.probabilities.shape[1])
    suspects = [
        Suspect(
            split=SPLITS[joined.splits[row]], row=int(joined.rows[row]),
            digest=f"{int(joined.digests[row]):016x}", label=names[joined.labels[row]],
            suggested=names[errors.suggested[row]], label_probability=float(own[place]),
            suggested_probability=float(other[place]), finals=int(joined.finals[row]),
        )
        for place, row in sorted(enumerate(rows), key=lambda pair: own[pair[0]] - other[pair[0]])
    ]  # fmt: skip
    paths = pictures.paths([int(one.digest, 16) for one in suspects])
    suspects = [replace(one, path=path) for one, path in zip(suspects, paths, strict=True)]
    return SuspectReport(images=images, suspects=tuple(suspects))


def write_suspects(report: SuspectReport | None, path: Path) -> int:
    """As CSV, all of them; how many they are. Raises ``UserError`` where there was nothing to look
    at."""
    why = "no final has kept what it predicts" if report is None else report.missing
    if report is None or why is not None:
        raise UserError(
            f"suspected labels are found by what finals predict, and {why}. "
            "Fix: leave out --suspects, or train finals (--final-seeds) that are right more often"
        )
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(vars(one) for one in report.suspects)
    return len(report.suspects)


@dataclass(kw_only=True, eq=False)
class _Part:
    """What is added up over the finals that predict the same images of a split in one order."""

    split: int
    labels: Array
    digests: Array
    total: Array  # (N, classes), probabilities by their weight
    weight: float
    finals: int


@dataclass(frozen=True, kw_only=True, eq=False)
class _Joined:
    """One row an image: (N,) each but ``probabilities`` (N, classes)."""

    splits: Array
    rows: Array
    digests: Array
    labels: Array
    finals: Array
    probabilities: Array


class _Pool:
    """Adds up the predictions of finals; their val images may be other ones, as they are carved."""

    def __init__(self) -> None:
        self.parts: dict[tuple[int, bytes], _Part] = {}

    @property
    def is_too_large(self) -> bool:
        return sum(part.total.size for part in self.parts.values()) > MOST_VALUES

    def add(self, predictions: Predictions | None, weight: float) -> None:
        """Nothing where they are missing, or have no digests to know the images by."""
        if predictions is None or predictions.digests is None or self.is_too_large:
            return
        split = SPLITS.index(predictions.split)
        key = split, predictions.digests.tobytes() + predictions.labels.tobytes()
        weighted = predictions.probabilities * np.float32(weight)
        if key in self.parts:
            part = self.parts[key]
            part.total += weighted
            part.weight += weight
            part.finals += 1
        else:
            self.parts[key] = _Part(
                split=split, labels=predictions.labels, digests=predictions.digests,
                total=weighted, weight=weight, finals=1,
            )  # fmt: skip

    def joined(self) -> _Joined:
        """The mean over all finals that predict an image, known by its pixels and its label; test
        comes first."""
        parts = sorted(self.parts.values(), key=lambda part: part.split)
        sizes = [len(part.labels) for part in parts]
        labels = np.concatenate([part.labels for part in parts])
        digests = np.concatenate([part.digests for part in parts])
        keys = np.stack([digests, labels.astype(np.uint64)], axis=1)
        _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        inverse = inverse.reshape(-1)

        def summed(values: Sequence[float]) -> Array:
            return np.bincount(inverse, weights=np.repeat(values, sizes), minlength=len(first))

        width = max(part.total.shape[1] for part in parts)
        total = np.zeros((len(first), width), np.float32)
        start = 0
        for part, size in zip(parts, sizes, strict=True):
            np.add.at(total[:, : part.total.shape[1]], inverse[start : start + size], part.total)
            start += size
        total /= summed([part.weight for part in parts])[:, None].astype(np.float32)
        rows = np.concatenate([np.arange(size) for size in sizes])
        splits = np.repeat([part.split for part in parts], sizes)
        return _Joined(
            splits=splits[first], rows=rows[first], digests=digests[first], labels=labels[first],
            finals=summed([part.finals for part in parts]).astype(int), probabilities=total,
        )  # fmt: skip
