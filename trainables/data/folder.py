"""An image folder: ``train/CLASS/…``, with ``val/`` and ``test/`` if there are, or ``CLASS/…``."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainables.config import DataSpec
from trainables.data.store import Chunk, Reading, Source
from trainables.errors import UserError

log = logging.getLogger(__name__)

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
)
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}
SAMPLED_IMAGES = 512
Images = dict[tuple[str, str], list[Path]]  # files by split and class
LAYOUT_HELP = "expected CLASS/picture.jpg, or train/CLASS/picture.jpg with val/ and test/"


def locate(path: Path, spec: DataSpec) -> Source:
    """An image folder whose layout is right; opens no image.

    Raises ``UserError`` where it is empty, has one class only, or a split has classes that
    train lacks.
    """
    splits = _split_roots(path)
    classes = {
        split: [folder.name for folder in _folders(root) if any(map(_is_image, _walk(folder)))]
        for split, root in splits.items()
    }
    names = classes["train"]
    if not names:
        raise UserError(
            f"an image folder needs pictures in one folder per class; {path} has none "
            f"({LAYOUT_HELP}). Fix: give the folder that holds the class folders"
        )
    if len(names) == 1:
        raise UserError(
            f"a dataset needs at least two classes; {path} has only {names[0]!r} ({LAYOUT_HELP}). "
            "Fix: add the other classes' folders, or give the folder above"
        )
    for split, split_classes in classes.items():
        unknown = sorted(set(split_classes) - set(names))
        if unknown:
            raise UserError(
                f"classes of {split} must be classes of train; {splits[split]} has {unknown[0]!r}, "
                f"and train has {', '.join(names[:10])}. Fix: rename or remove that folder"
            )

    def identity() -> list[Any]:
        images, _ = _list(splits)
        stats = [(file, file.stat()) for files in images.values() for file in files]
        return [[str(path.resolve())], *([str(f), s.st_size, s.st_mtime_ns] for f, s in stats)]

    return Source(
        name=path.resolve().name,
        identity=identity,
        read=lambda: _read(splits, tuple(names), spec),
    )


def _split_roots(path: Path) -> dict[str, Path]:
    """The folder of each split; the whole folder is train unless it has ``train/CLASS/``."""
    splits: dict[str, Path] = {}
    folders = _folders(path)
    for split, names in SPLIT_FOLDERS.items():
        for folder in folders:
            if split not in splits and folder.name.lower() in names and _folders(folder):
                splits[split] = folder
    if splits and "train" not in splits and len(splits) == len(folders):
        raise UserError(
            f"an image folder with {' and '.join(f.name for f in splits.values())} needs train/ "
            f"beside them; {path} has none ({LAYOUT_HELP}). Fix: add train/CLASS/ folders"
        )
    return splits if "train" in splits else {"train": path}


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _walk(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Files below ``folder`` in sorted order; links are followed, each real folder once."""
    waiting, visited = [str(folder)], set()
    while waiting:
        current = waiting.pop()
        real = os.path.realpath(current)
        if real in visited:
            continue
        visited.add(real)
        with os.scandir(current) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    waiting.append(entry.path)
                else:
                    yield entry


def _is_image(entry: os.DirEntry[str]) -> bool:
    return os.path.splitext(entry.name)[1].lower() in EXTENSIONS  # noqa: PTH122 (a million times)


def _list(splits: dict[str, Path]) -> tuple[Images, int]:
    """Image files by split and class, and how many other files were passed over."""
    images: Images = {}
    ignored = 0
    for split, root in splits.items():
        ignored += sum(1 for entry in root.iterdir() if entry.is_file())
        for folder in _folders(root):
            for entry in _walk(folder):
                if _is_image(entry):
                    images.setdefault((split, folder.name), []).append(Path(entry.path))
                else:
                    ignored += 1
    return images, ignored


def _read(splits: dict[str, Path], names: tuple[str, ...], spec: DataSpec) -> Reading:
    from trainables.data.decode import common_side  # PIL only to build

    images, ignored = _list(splits)
    if ignored:
        log.info(f"{ignored} files ignored: their names are not those of pictures")
    if splits["train"].name.lower() in SPLIT_FOLDERS["train"]:
        for folder in _folders(splits["train"].parent):
            if folder not in splits.values():
                log.info(f"{folder} is not used: it is not a split with class folders")
    empty = [f.name for f in _folders(splits["train"]) if f.name not in names]
    if empty:
        log.info(f"{len(empty)} folders without a picture are no class: {', '.join(empty[:5])}")
    train = [file for (split, _), fs in images.items() if split == "train" for file in fs]
    side = common_side(train[:: -(-len(train) // SAMPLED_IMAGES)], spec.short_side)
    return Reading(
        class_names=names,
        height=side,
        width=side,
        count=sum(map(len, images.values())),
        chunks=_chunks(images, names, side, spec.skip_corrupt),
    )


def _chunks(
    images: Images, names: tuple[str, ...], side: int, skip_corrupt: bool
) -> Iterator[Chunk]:
    from trainables.data.decode import decode_chunks

    for wanted in SPLIT_FOLDERS:
        items = (
            (str(file), file, names.index(name))
            for (split, name), files in images.items()
            if split == wanted
            for file in files
        )
        yield from decode_chunks(wanted, items, side=side, skip_corrupt=skip_corrupt)
