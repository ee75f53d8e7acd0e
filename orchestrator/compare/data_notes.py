"""What is said of the images: how often their test split was opened, which are there twice, and
what their classes are like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.compare.runs import RunData
from trainables.config import DatasetFacts, DataSpec
from trainables.data import balance, duplicates, groups


def test_split_caveats(runs: Sequence[RunData], facts: DatasetFacts | None) -> Iterator[str]:
    """Why the test images are not as fresh as a reader expects, in a few words each."""
    yield from _later_openings(runs)
    shared = facts.duplicates.between if facts and facts.duplicates else {}
    for other in ("train", "val"):
        if count := shared.get(f"test/{other}"):
            yield f"{count} of the test images are in {other} too"
        if facts and facts.groups and (count := facts.groups.images.get(f"test/{other}", 0)):
            yield f"{count} of the test images are of groups that are in {other} too"


def _later_openings(runs: Sequence[RunData]) -> Iterator[str]:
    """Each opening of a test split that was not its first."""
    for run in runs:
        for opening in run.state.split_openings:
            if opening.number > 1:
                yield f"run {run.name} is {opening.text}"


def data_warnings(runs: Sequence[RunData], facts: DatasetFacts | None) -> Iterator[str]:
    """What takes from the weight of a test accuracy, a line each: an opening of the test split that
    was not the first, images that its splits share."""
    for opening in _later_openings(runs):
        yield (
            f"{opening}: what was chosen since the first one may have been chosen for these very "
            "images"
        )
    if facts is not None and facts.groups is not None and (problem := groups.leak(facts.groups)):
        yield problem
    if facts is not None and facts.duplicates is not None:
        if problem := duplicates.leak(facts.duplicates):
            yield problem
        if facts.duplicates.mislabelled:
            yield (
                f"in {facts.duplicates.mislabelled} groups of images with the same pixels the "
                "labels differ: no model can be right on all of them"
            )


def image_lines(facts: DatasetFacts, data: DataSpec) -> list[str]:
    """How many images the classes of a data set have, how many of train ``data`` uses, and how
    many groups there are."""
    lines = balance.counts_lines(facts)
    used, total = balance.images_used(facts, data), facts.counts.get("train", 0)
    if used < total:
        lines.append(f"a trial trains on {used:,} of the {total:,} images of train")
    return lines if facts.groups is None else [*lines, groups.sentence(facts.groups)]


def image_warnings(facts: DatasetFacts, data: DataSpec) -> Iterator[str]:
    """What is wrong with the images of a data set before anything is trained on them, a line
    each, with what to do."""
    if facts.duplicates is not None and (problem := duplicates.leak(facts.duplicates)):
        yield problem
    yield from group_and_class_warnings(facts)
    yield from balance.limited(facts, data)


def group_and_class_warnings(facts: DatasetFacts) -> Iterator[str]:
    """The same without what is there twice."""
    if facts.groups is not None and (problem := groups.leak(facts.groups)):
        yield problem
    yield from balance.imbalance(facts)


def copies_lines(facts: DatasetFacts, store: Path | None = None) -> list[str]:
    """All that is known of copies in a data set, a line each, or how to get it; ``store`` is the
    folder of its pixels, where it is on this machine."""
    if facts.duplicates is not None:
        return duplicates.sentences(facts.duplicates)
    if store is None:
        return ["missing: the run is of an earlier version. Fix: orchestrator data info DATASET"]
    return [
        "copies: missing, they are counted when an image store is built, and this one is of an "
        f"earlier version. Fix: rm -r {store}, then the same command"
    ]
