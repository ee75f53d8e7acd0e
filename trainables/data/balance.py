"""How many images each class has, in a few lines, and what is to be said where they differ much.

A class that is absent from val has no say in which trial is best, and one that is absent from test
none in the verdict; accuracy over all images is that of the large classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trainables.config import DatasetFacts, DataSpec
from trainables.printable import escaped

MOST_LISTED = 10  # classes, that are all named
NAMED, LONGEST_NAME = 3, 40
WIDE_RATIO = 10
FEW_IMAGES = 10  # of a class to train on


def counts_lines(facts: DatasetFacts) -> list[str]:
    """The images of each class, a line a split: of all classes where these are few, else of the
    smallest and the largest. None where they are not known."""
    lines = []
    for split, counts in (facts.class_counts or {}).items():
        named = sorted(zip(facts.class_names, counts, strict=True), key=lambda pair: -pair[1])
        if len(named) <= MOST_LISTED:
            lines.append(f"{split}: {_listed(named)}")
            continue
        lines.append(
            f"{split}: {len(named)} classes of {named[-1][1]} to {named[0][1]} images; most: "
            f"{_listed(named[:NAMED])}; fewest: {_listed(named[-NAMED:])}"
        )
    return lines


def images_used(facts: DatasetFacts, data: DataSpec) -> int:
    """How many images a trial trains on: ``data.train_limit`` first, then ``data.fraction``."""
    total = facts.counts.get("train", 0)
    return min(total, max(1, round(data.fraction * min(total, data.train_limit or total))))


def limited(facts: DatasetFacts, data: DataSpec) -> Iterator[str]:
    """What is wrong with a part of train that is too small for the classes, where all of it is
    not."""
    used, total = images_used(facts, data), facts.counts.get("train", 0)
    counts = [count for count in (facts.class_counts or {}).get("train", ()) if count]
    if counts and used < total and used * min(counts) < FEW_IMAGES * total <= total * min(counts):
        yield (
            f"a trial trains on {used:,} of {total:,} images, fewer than {FEW_IMAGES} of the "
            "smallest class: what is learned of so few is mostly chance. Fix: raise --set "
            "data.train_limit or data.fraction"
        )


def imbalance(facts: DatasetFacts) -> Iterator[str]:
    """What is wrong with how many images the classes have, a line each, with what to do."""
    if facts.class_counts is None:
        return
    train = dict(zip(facts.class_names, facts.class_counts["train"], strict=True))
    present = [name for name, count in train.items() if count]
    most, fewest = max(present, key=train.__getitem__), min(present, key=train.__getitem__)
    if train[most] >= WIDE_RATIO * train[fewest]:
        yield (
            f"the largest class has {train[most] / train[fewest]:.0f} times as many training "
            "images as the smallest "
            f"({_listed([(most, train[most]), (fewest, train[fewest])])}): top-1 is mostly about "
            "large classes. Fix: --metric macro_f1 or balanced_accuracy, where each class counts "
            "alike, and --set 'recipe.class_weights=[none,balanced,effective]' or --set "
            "'recipe.sampler=[shuffle,balanced]' to search what helps"
        )
    few = [(name, count) for name, count in train.items() if 0 < count < FEW_IMAGES]
    if few:
        yield (
            f"{_of_classes(few)} fewer than {FEW_IMAGES} images to train on, "
            f"{_listed(sorted(few, key=lambda pair: pair[1])[:NAMED])}: what is learned of so few "
            "is mostly chance. Fix: add images, join them with a class that is alike, or leave "
            "them out"
        )
    for split in ("val", "test"):
        counts = dict(zip(facts.class_names, facts.class_counts[split], strict=True))
        absent = [(name, train[name]) for name in counts if train[name] and not counts[name]]
        if absent:
            decision = "choosing a trial" if split == "val" else "the verdict"
            yield (
                f"{_of_classes(absent)} no image in {split} ({_names(absent)}) and no say in "
                f"{decision}. Fix: add images, or where {split} is carved, raise --set "
                f"data.{split}_fraction"
            )


def _of_classes(classes: Sequence[tuple[str, int]]) -> str:
    return "1 class has" if len(classes) == 1 else f"{len(classes)} classes have"


def _listed(classes: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{_shown(name)} {count}" for name, count in classes)


def _names(classes: Sequence[tuple[str, int]]) -> str:
    more = ", …" if len(classes) > NAMED else ""
    return ", ".join(_shown(name) for name, _ in classes[:NAMED]) + more


def _shown(name: str) -> str:
    shown = escaped(name, keep="")
    return shown if len(shown) <= LONGEST_NAME else f"{shown[: LONGEST_NAME - 1]}…"
