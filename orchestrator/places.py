"""Paths of data and weights as any worker finds them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trainables.assignment import DataSpec

NAMED_DATASETS = ("digits", "cifar10", "cifar100")


def absolute_data(data: DataSpec) -> DataSpec:
    """Paths made absolute: a worker's working directory is not the user's."""
    source = data.source
    if source not in NAMED_DATASETS:
        source = str(Path(source).expanduser().resolve())
    archive, folder = (
        None if path is None else str(Path(path).expanduser().resolve())
        for path in (data.archive, data.folder)
    )
    return replace(data, source=source, archive=archive, folder=folder)


def absolute_weights(weights: str) -> str:
    """A path to weights made absolute; ``hub`` and ``none`` as they are."""
    return weights if weights in ("hub", "none") else str(Path(weights).expanduser().resolve())
