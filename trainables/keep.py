"""Checkpoints that nobody needs leave the disk, in an order that no crash can hurt.

A trial's checkpoints are folders ``TRIAL/attempt-N/NAME``. By the last two names one is known:
the run's folder may have been moved since a path was written down.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

STATE_FILE = "state.json"  # of a checkpoint, without which it is none


def name_of(recorded: str) -> str:
    """``attempt-N/NAME`` of the checkpoint that was recorded as ``recorded``."""
    return "/".join(Path(recorded).parts[-2:])


def place(trial_folder: Path, recorded: str) -> Path:
    """Where the checkpoint that was recorded as ``recorded`` lies now."""
    return trial_folder / name_of(recorded)


def keep_only(trial_folder: Path, kept: Collection[str], *, attempt: int | None = None) -> None:
    """Remove every checkpoint of a trial but those ``kept``, and what a killed writer left.

    ``attempt`` is the caller's own: later ones may be another worker's and stay as they are.
    ``None`` says that nobody writes there. What is gone already is no error.
    """
    places = {place(trial_folder, path) for path in kept}
    for folder in trial_folder.glob("attempt-*"):
        if attempt is not None and int(folder.name.removeprefix("attempt-")) > attempt:
            continue
        with suppress(FileNotFoundError):
            for checkpoint in folder.iterdir():
                if checkpoint not in places:
                    _remove(checkpoint)
        with suppress(OSError):
            folder.rmdir()
    with suppress(OSError):
        trial_folder.rmdir()


def _remove(checkpoint: Path) -> None:
    # Renamed first: a crash in the middle leaves no half of it under a name the ledger knows.
    doomed = checkpoint.with_name(f".{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):
        checkpoint.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
