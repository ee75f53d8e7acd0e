"""Digests of a checkpoint's files, so that damage is seen before it is used.

A disk that lost blocks hands out zeros where tensors were: safetensors reads them, and a trial goes
on from a model that has learned nothing. ``state.json``, the last file of a checkpoint to be
written, holds a SHA-256 of every other file and of what it says itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainables.errors import STORAGE_ERRNOS

KEY = "digests"  # in the state


def digest_of(file: Path) -> str:
    """SHA-256 of the file's bytes, in hex. Raises ``OSError``."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def sealed(state: Mapping[str, Any], folder: Path, state_file: str) -> dict[str, Any]:
    """``state`` with the digests of the files in ``folder`` and its own, which is under the name of
    ``state_file``."""
    digests = {file.name: digest_of(file) for file in sorted(folder.iterdir())}
    return {**state, KEY: {**digests, state_file: _digest_of_state(state)}}


def damage_of(folder: Path, state_file: str, *, only: str | None = None) -> str | None:
    """Why the checkpoint in ``folder`` is not as it was written, or its file ``only`` is not;
    ``None`` where it is. One of before there were digests is taken at its word. Raises ``OSError``
    where the disk fails, which is no damage."""
    try:
        state = json.loads((folder / state_file).read_text(encoding="utf-8"))
        digests = state.pop(KEY, {})
        names = digests if only is None else {only} & set(digests)
        for name in sorted(names):
            own = name == state_file
            digest = _digest_of_state(state) if own else digest_of(folder / name)
            if digest != digests[name]:
                return f"{name} holds something else than was written"
    except OSError as error:
        if error.errno in STORAGE_ERRNOS:
            raise
        return f"{Path(str(error.filename)).name}: {error.strerror}"
    except (ValueError, AttributeError, TypeError, RecursionError):
        return f"{state_file} cannot be read"
    return None


def _digest_of_state(state: Mapping[str, Any]) -> str:
    # As it is read back: JSON has no tuples, and all of its keys are text.
    plain = json.loads(json.dumps(state))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
