"""Paths of data, weights and runs: as any worker finds them, and where they are kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trainables.config import DataSpec
from trainables.data.sources import KNOWN_DATASETS
from trainables.storage.object_storage import is_remote, working_copy


def absolute_data(data: DataSpec) -> DataSpec:
    """Paths made absolute: a worker's working directory is not the user's."""
    source = data.source
    if source not in KNOWN_DATASETS:
        source = str(Path(source).expanduser().resolve())
    archive, folder = (
        None if path is None else str(Path(path).expanduser().resolve())
        for path in (data.archive, data.folder)
    )
    return replace(data, source=source, archive=archive, folder=folder)


def dataset_name(source: str) -> str:
    """The data's part of a run's default name: its own name, or its path's last one."""
    return source if source in KNOWN_DATASETS else Path(source).resolve().stem


def absolute_weights(weights: str) -> str:
    """A path to weights made absolute; ``hub`` and ``none`` as they are."""
    return weights if weights in ("hub", "none") else str(Path(weights).expanduser().resolve())


def remote_of(storage: str, name: str) -> str | None:
    """The URI of a run that is kept in object storage; ``None`` for one in a folder."""
    return f"{storage.rstrip('/')}/{name}" if is_remote(storage) else None


def run_folder(storage: str, name: str) -> Path:
    """The run's folder; this machine's working copy of it where it is kept in object storage."""
    remote = remote_of(storage, name)
    return Path(storage) / name if remote is None else working_copy(remote)
