"""Groups: images that belong together, as those of a patient, a video or a plate, and their splits.

Pictures of one patient resemble each other more than those of two. With some of them in train and
others in test a score measures how well patients are recognised (Kapoor and Narayanan, "Leakage and
the reproducibility crisis in machine-learning-based science", 2023: the commonest leak but one). A
group lies in one split where splits are carved; a leak between a source's own is counted and named.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from trainables.config import ImageGroups
from trainables.errors import UserError

Rows = npt.NDArray[np.int64]
Digests = npt.NDArray[np.uint64]
Counts = Sequence[tuple[int, int]]  # a class and how many images of it

PAIRS = (("val", "train"), ("test", "train"), ("test", "val"))
NAMED = 3


def pattern_of(text: str) -> re.Pattern[str]:
    """The regular expression that finds the group in a path. Raises ``UserError`` where it is none,
    or has not one capture."""
    fix = "Fix: --set 'data.group=REGEX', such as 'data.group=/(patient[0-9]+)_'"
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise UserError(
            "data.group of an image folder must be a regular expression that is searched for in "
            f"each path; got {text!r} ({error}). {fix}"
        ) from None
    if pattern.groups != 1:
        raise UserError(
            "data.group of an image folder needs one capture, in parentheses, which is the group; "
            f"got {text!r} with {pattern.groups}. {fix}"
        )
    return pattern


def groups_of_paths(pattern: re.Pattern[str], paths: Sequence[str]) -> list[str]:
    """The group of each of ``paths`` (n,). Raises ``UserError`` where one has none."""
    matches = (pattern.search(path) for path in paths)
    groups = [match[1] if match else None for match in matches]
    without = [path for path, group in zip(paths, groups, strict=True) if not group]
    if without:
        raise UserError(
            f"every picture needs a group; data.group={pattern.pattern!r} finds none in "
            f"{len(without)} of {len(paths)} paths, such as {without[0]!r}. Fix: a pattern that "
            "fits every path below the folder, or remove such pictures"
        )
    return [str(group) for group in groups]


def carve_groups(
    labels: Rows, digests: Digests, groups: Rows, keys: Digests, *, count: int, leave: int = 1
) -> Rows:
    """About ``count`` row numbers, whole groups of them and stratified as well as these allow, that
    leave every class a group at least, or ``leave`` of them where it is in as many.

    Groups that share an image (the same digest) go together. They are tried in an order that
    depends on ``digests`` (N,) and their seeded ``keys`` (N,) alone; each is taken where it brings
    what there is of the classes nearer to their share of ``count``: the sum of
    (have - share)^2 / share falls. Then one is added for each class that has none yet and can spare
    one, the one that costs least.
    """
    unit = _joined(groups, digests)
    _, classes = np.unique(labels, return_inverse=True)
    sizes = np.bincount(classes)
    share = (count / len(labels) * sizes).tolist()
    held = _held(unit, classes, len(sizes))
    left = [0] * len(sizes)  # by class, units that train keeps
    for _, numbers in held:
        for label, _ in numbers:
            left[label] += 1
    have = [0] * len(sizes)
    chosen: list[int] = []

    def cost(numbers: Counts) -> float:
        return math.fsum(n * (2 * (have[c] - share[c]) + n) / share[c] for c, n in numbers)

    def take(number: int, numbers: Counts) -> None:
        chosen.append(number)
        for label, images in numbers:
            have[label] += images
            left[label] -= 1

    by_size = np.lexsort((digests, unit))
    first = by_size[np.unique(unit[by_size], return_index=True)[1]]  # of each unit
    order = np.lexsort((digests[first], keys[first])).tolist()
    for number in order:
        numbers = held[number][1]
        if cost(numbers) < 0 and all(left[label] > leave for label, _ in numbers):
            take(number, numbers)
    for label in np.argsort(sizes, kind="stable").tolist():
        if have[label]:
            continue
        able = [
            number
            for number in order
            if any(c == label for c, _ in held[number][1])
            and all(left[c] > leave for c, _ in held[number][1])
        ]
        if able:
            number = min(able, key=lambda n: cost(held[n][1]))
            take(number, held[number][1])
    return np.flatnonzero(np.isin(unit, chosen)).astype(np.int64)


def _held(unit: Rows, classes: Rows, number_of_classes: int) -> list[tuple[int, Counts]]:
    """By unit, in their order, its number and what it holds of each class."""
    pairs, images = np.unique(unit * number_of_classes + classes, return_counts=True)
    held: list[tuple[int, list[tuple[int, int]]]] = []
    for pair, count in zip(pairs.tolist(), images.tolist(), strict=True):
        number, label = divmod(pair, number_of_classes)
        if not held or held[-1][0] != number:
            held.append((number, []))
        held[-1][1].append((label, count))
    return list(held)


def _joined(groups: Rows, digests: Digests) -> Rows:
    """By row, the number of what goes together, (N,), from 0: groups that share a digest are one,
    and so on until nothing more is shared."""
    _, unit = np.unique(groups, return_inverse=True)
    _, image = np.unique(digests, return_inverse=True)
    unit = unit.astype(np.int64)
    while True:
        lowest = np.full(image.max() + 1, len(unit))
        np.minimum.at(lowest, image, unit)
        by_unit = np.full(unit.max() + 1, len(unit))
        np.minimum.at(by_unit, unit, lowest[image])
        joined = by_unit[unit]
        if (joined == unit).all():
            return np.unique(unit, return_inverse=True)[1].astype(np.int64)
        unit = joined


def count_groups(rule: str, groups: Mapping[str, Rows], names: Sequence[str]) -> ImageGroups:
    """What there is of ``groups`` (N,), numbers of ``names``, by split."""
    between, images, shared = {}, {}, np.empty(0, np.int64)
    for first, second in PAIRS:
        both = np.intersect1d(groups[first], groups[second])
        between[f"{first}/{second}"] = len(both)
        images[f"{first}/{second}"] = int(np.isin(groups[first], both).sum())
        shared = np.union1d(shared, both)
    return ImageGroups(
        rule=rule,
        counts={split: len(np.unique(numbers)) for split, numbers in groups.items()},
        between=between,
        images=images,
        examples=tuple(names[number] for number in shared[:NAMED].tolist()),
    )


def leak(groups: ImageGroups) -> str | None:
    """What is wrong with the source's own splits; ``None`` where they share no group."""
    shared = [
        f"{count} groups of {pair.partition('/')[0]}, {groups.images[pair]} images, "
        f"in {pair.partition('/')[2]} too"
        for pair, count in groups.between.items()
        if count
    ]
    if not shared:
        return None
    return (
        f"the source's own splits share groups by {groups.rule!r} ({'; '.join(shared)}; such as "
        f"{', '.join(groups.examples)}): a score on them is partly one of recognising the group. "
        "They are left as they are. Fix: move each group to one split, or give train alone, from "
        "which val and test are carved by group"
    )


def sentence(groups: ImageGroups) -> str:
    """How many groups there are, in a line."""
    counts = ", ".join(f"{count} in {split}" for split, count in groups.counts.items())
    return f"groups by {groups.rule!r}: {counts}"
