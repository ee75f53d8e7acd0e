"""The pictures behind predictions, from the image store, where that is on this machine.

An image is known by the digest of its pixels, so any store of the same data at the same side will
do, however it was split.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from functools import cached_property

import numpy as np

from orchestrator.compare.runs import CandidateTrials
from trainables.data.store import SPLITS, ImageStore, default_folder
from trainables.errors import UserError, one_line

log = logging.getLogger(__name__)

Place = tuple[str, int]  # split and row in the store


class Pictures:
    """The images that the finals of ``candidates`` predict, in a store with one of
    ``content_hashes``. Nothing is fetched or built, and the store is not read through."""

    def __init__(
        self, candidates: Sequence[CandidateTrials], content_hashes: Collection[str]
    ) -> None:
        trials = (curve.state for each in candidates for curve in each.curves)
        data = (trial.assignment.data for trial in trials if trial.stage == "final")
        self._folders = tuple(dict.fromkeys(map(default_folder, data)))
        self._hashes = content_hashes
        self._places: dict[str, list[str] | None] = {}  # by split

    @property
    def missing(self) -> str | None:
        """Why no picture can be shown; ``None`` where they can."""
        return None if self._store is not None else "the image store is not on this machine"

    @cached_property
    def _store(self) -> ImageStore | None:
        from trainables.data.build import find_by_content

        stores = (find_by_content(folder, self._hashes) for folder in self._folders)
        return next(filter(None, stores), None)

    @cached_property
    def _index(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """By split the digests in ascending order, and their rows."""
        index = {}
        for split in SPLITS if self._store else ():
            assert self._store is not None
            digests = np.asarray(self._store.digests(split))
            order = np.argsort(digests, kind="stable")
            index[split] = digests[order], order
        return index

    def place(self, digest: int) -> Place | None:
        """Where the store has the image; test is looked at first, then val and train."""
        for split in reversed(SPLITS):
            if split not in self._index:
                return None
            digests, rows = self._index[split]
            at = int(np.searchsorted(digests, np.uint64(digest)))
            if at < len(digests) and int(digests[at]) == digest:
                return split, int(rows[at])
        return None

    def _path(self, place: Place | None) -> str | None:
        if place is None or self._store is None:
            return None
        split, row = place
        if split not in self._places:
            self._places[split] = self._store.places(split)
        lines = self._places[split]
        return None if lines is None else lines[row]

    def paths(self, digests: Sequence[int]) -> list[str | None]:
        """Where in the source each image is; ``None`` where the store is missing, or of a version
        that did not keep it."""
        return [self._path(self.place(digest)) for digest in digests]

    def thumbnail(self, digest: int, side: int) -> bytes | None:
        """The image as WebP of ``side`` pixels at most; ``None`` where it is not there."""
        from trainables.data.pictures import thumbnail

        place = self.place(digest)
        if place is None or self._store is None:
            return None
        split, row = place
        try:
            pixels = self._store.split(split).images[np.array([row])]
        except (OSError, UserError) as error:
            log.debug(f"the picture at row {row} of {split} cannot be shown: {one_line(error)}")
            return None
        return thumbnail(np.asarray(pixels)[0], side)
