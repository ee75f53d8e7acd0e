"""What a source of images hands to the builder of a store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainables.assignment import DataSpec
from trainables.data.store import Images, Labels
from trainables.errors import UserError

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some images of one source split: uint8 (n, H, W, 3), labels int64 (n,), corrupt left out."""

    split: str
    images: Images
    labels: Labels
    skipped: int = 0


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A source opened for reading: sizes in pixels, ``count`` images at most in all chunks."""

    class_names: tuple[str, ...]
    height: int
    width: int
    count: int
    chunks: Iterator[Chunk]
    mirror_safe: bool = True


@dataclass(frozen=True, kw_only=True)
class Source:
    """A dataset that was found and passed the cheap checks, not read yet.

    ``identity`` is JSON-ready and changes when the content does; computing it opens no image.
    """

    name: str
    identity: Callable[[], Any]
    read: Callable[[Say], Reading]


def refuse_one_class(source: str, held: Sequence[str]) -> None:
    """Raise ``UserError`` unless at least two classes are ``held`` by the training images."""
    if len(held) < 2:
        raise UserError(
            f"a dataset needs readable training images of at least two classes; {source} holds "
            f"{repr(held[0]) if held else 'none'} only. Fix: give data with two classes or more"
        )


def default_folder(spec: DataSpec) -> Path:
    """Where stores are kept: ``data.folder``, else $ORCHESTRATOR_DATA, else the user's cache."""
    chosen = spec.folder or os.environ.get("ORCHESTRATOR_DATA") or "~/.cache/backbone-tournament"
    return Path(chosen).expanduser().absolute()
