"""The pictures of the report: suspected labels, disagreements and costly mistakes, as small WebP
pictures inside the page, at most ``MOST_PICTURES`` of ``MOST_BYTES`` together."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.compare.comparison import ByImage
from orchestrator.compare.mistakes import ClassMistakes, Example
from orchestrator.compare.pictures import Pictures
from orchestrator.compare.suspects import Suspect
from orchestrator.wording import count, percent

MOST_PICTURES = 240
MOST_BYTES = 2_500_000  # of the page, for all of them
SIDE_PX = 96
SUSPECTS = 24
WITHOUT = "left out of this report (--no-images)"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One image: its ``picture`` as a data URI, ``None`` where there is none; ``alt`` says what it
    shows to whoever cannot see it, ``lines`` are beneath it, ``place`` is where it comes from."""

    picture: str | None
    alt: str
    lines: tuple[str, ...]
    place: str


@dataclass(frozen=True, kw_only=True)
class ClassGallery:
    """A class with the mistakes of each candidate: what was wrong of how many, and the images."""

    name: str
    wrong: int
    candidates: tuple[tuple[ClassMistakes, tuple[Shown, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """``missing``: why there are no pictures; ``without``: how many have none because the page
    would grow too large."""

    suspects: tuple[Shown, ...]
    disagreements: tuple[Shown, ...]
    classes: tuple[ClassGallery, ...]
    missing: str | None
    without: int


def gallery_of(by_image: ByImage, pictures: Pictures | None) -> Gallery:
    """What is shown of ``by_image``; without ``pictures``, in words alone."""
    album = _Album(pictures)
    mistakes, suspects = by_image.mistakes, by_image.suspects
    classes: dict[str, list[ClassMistakes]] = {}
    for one in mistakes.classes if mistakes else ():
        classes.setdefault(one.name, []).append(one)
    first = suspects.suspects[:SUSPECTS] if suspects else ()
    return Gallery(
        suspects=tuple(map(album.suspect, first)),
        disagreements=tuple(map(album.example, mistakes.disagreements if mistakes else ())),
        classes=tuple(album.of_class(name, each) for name, each in classes.items()),
        missing=WITHOUT if pictures is None else pictures.missing,
        without=album.without,
    )


class _Album:
    """Hands out pictures until there are enough."""

    def __init__(self, pictures: Pictures | None) -> None:
        self._pictures = pictures if pictures and pictures.missing is None else None
        self._left, self._bytes_left = MOST_PICTURES, MOST_BYTES
        self.without = 0

    def suspect(self, one: Suspect) -> Shown:
        return Shown(
            picture=self._uri(one.digest),
            alt=f"{one.split} image labelled {one.label}, suggested {one.suggested}",
            lines=(
                f"labelled {one.label}, {percent(one.label_probability)}",
                f"rather {one.suggested}, {percent(one.suggested_probability)}",
            ),
            place=one.path or f"{one.split} row {one.row}",
        )

    def example(self, one: Example) -> Shown:
        answers = [f"{a.candidate}: {a.predicted}, {percent(a.probability)}" for a in one.answers]
        return Shown(
            picture=self._uri(one.digest),
            alt=f"test image labelled {one.label}; {'; '.join(answers)}",
            lines=(f"labelled {one.label}", *answers),
            place=one.path or f"test row {one.row}",
        )

    def of_class(self, name: str, candidates: Sequence[ClassMistakes]) -> ClassGallery:
        return ClassGallery(
            name=name,
            wrong=sum(one.wrong for one in candidates),
            candidates=tuple((one, tuple(map(self._mistake, one.examples))) for one in candidates),
        )

    def _mistake(self, one: Example) -> Shown:
        (answer,) = one.answers
        return Shown(
            picture=self._uri(one.digest),
            alt=f"test image labelled {one.label}, predicted {answer.predicted}",
            lines=(
                f"predicted {answer.predicted}, {percent(answer.probability)}",
                f"{one.label}: {percent(answer.label_probability)}",
            ),
            place=one.path or f"test row {one.row}",
        )

    def _uri(self, digest: str | None) -> str | None:
        if self._pictures is None or digest is None:
            return None
        if self._left == 0:
            self.without += 1
            return None
        picture = self._pictures.thumbnail(int(digest, 16), SIDE_PX)
        if picture is None:
            return None
        uri = f"data:image/webp;base64,{base64.b64encode(picture).decode()}"
        if len(uri) > self._bytes_left:
            self._left = 0
            self.without += 1
            return None
        self._left, self._bytes_left = self._left - 1, self._bytes_left - len(uri)
        return uri


def without_text(gallery: Gallery) -> str | None:
    """How many images have no picture for want of room; ``None`` where all have."""
    if not gallery.without:
        return None
    limit = f"{MOST_PICTURES} pictures or {count(MOST_BYTES)}B"
    return f"{gallery.without} images are without a picture: a report holds {limit} at most."
