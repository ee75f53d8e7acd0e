"""Encoded pictures of any size and mode -> square RGB pixels, and the folders that hold them:
``train/CLASS/…``, with ``val/`` and ``test/`` if there are, or ``CLASS/…``.

The only file that imports PIL. torchvision's decoders read a JPEG at its full size only, know fewer
formats, and are deprecated since 0.29; PIL decodes one at a half, a quarter or an eighth of its
size, and lets other threads go on meanwhile.
"""

from __future__ import annotations

import io
import logging
import os
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainables.config import DEFAULT_SHORT_SIDE, DataSpec
from trainables.data.store import Chunk, Images, Reading, Source
from trainables.errors import UserError, one_line

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

SMALLEST_SIDE = 8
CHUNK_IMAGES = 512
NAMED_CORRUPT = 3
# What EXTENSIONS announce; JPEG's reader takes a camera's MPO, too. PIL knows sixty more formats by
# the bytes of a file, whatever its name; for one of them it starts Ghostscript.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
MOST_PIXELS = 89_478_485  # where PIL begins to warn of a bomb: a quarter of a GB at three bytes
DECODED_BYTES_AT_ONCE = 2**29
NO_PICTURE = "not a picture in JPEG, PNG, GIF, BMP, WebP, TIFF or PPM"

Picture = bytes | str | Path | None  # encoded, or its file; None: the row is empty
Item = tuple[str, Picture, int]  # how to name it in an error, where it is, its label
Items = Callable[[], Iterator[Item]]  # in the same order whenever it is called


def _open(picture: Picture) -> Image.Image:
    """The picture, not decoded yet. Raises ``ValueError`` for one of too many pixels."""
    from PIL import Image

    if picture is None:
        raise ValueError("no bytes")
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # it is an error below
    opened = io.BytesIO(picture) if isinstance(picture, bytes) else picture
    image = Image.open(opened, formats=FORMATS)
    width, height = image.size
    if width * height > MOST_PIXELS:
        image.close()
        raise ValueError(
            f"{width} x {height} px are more than {MOST_PIXELS / 1e6:.0f} million; scale it down"
        )
    return image


class _MemoryLimit:
    """Pictures that are decoded at the same moment share ``limit`` bytes; one that needs more is
    decoded alone."""

    def __init__(self, limit: int) -> None:
        self._limit, self._used = limit, 0
        self._changed = threading.Condition()

    @contextmanager
    def reserved(self, size: int) -> Iterator[None]:
        """Wait until there is room for ``size`` bytes, and hold it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + size <= self._limit)
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()


_MEMORY = _MemoryLimit(DECODED_BYTES_AT_ONCE)


@contextmanager
def _opened(picture: Picture, side: int) -> Iterator[Image.Image]:
    """The picture, a JPEG at the fraction of its size that ``side`` needs, once there is memory to
    decode it."""
    with _open(picture) as image:
        if min(image.size) > 2 * side:
            image.draft(None, (2 * side, 2 * side))
        # PIL's own pixels and one copy of them, or the int64 that 16 bits go through.
        bytes_per_pixel = 28 if image.mode[0] in "IF" else 12
        with _MEMORY.reserved(image.width * image.height * bytes_per_pixel):
            yield image


def decode(picture: Picture, side: int) -> Images:
    """RGB uint8 (side, side, 3): the centre square, resized to ``side`` pixels, bicubic.

    EXIF orientation is applied; alpha is dropped, as torchvision's loader does; 16-bit grey is
    scaled to 8. Raises whatever PIL raises on what it cannot read.
    """
    from PIL import Image, ImageOps

    with _opened(picture, side) as image:
        ImageOps.exif_transpose(image, in_place=True)
        rgb: Image.Image = image
        if rgb.mode.startswith("I"):
            wide = np.asarray(rgb).astype(np.int64)
            if rgb.mode != "I" or wide.max(initial=0) > 255:
                wide = wide >> 8
            rgb = Image.fromarray(wide.clip(0, 255).astype(np.uint8))
        if rgb.mode == "P":  # PIL warns when it drops a palette's alpha itself
            rgb = rgb.convert("RGBA")
        if rgb.mode != "RGB":
            rgb = rgb.convert("RGB")
        return _square(np.array(rgb, dtype=np.uint8), side)


def _square(pixels: Images, side: int) -> Images:
    """The centre square of (H, W, 3), resized to (S, S, 3).

    By torch, in a third of PIL's time; hardly a pixel differs, by two levels of 255 at most.
    """
    import torch
    from torch.nn import functional as F

    short = min(pixels.shape[:2])
    top, left = ((length - short) // 2 for length in pixels.shape[:2])
    square = pixels[top : top + short, left : left + short]
    if short == side:
        return np.ascontiguousarray(square)
    batch = torch.from_numpy(square).permute(2, 0, 1)[None]  # (1, 3, H, W)
    resized = F.interpolate(batch, (side, side), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).contiguous().numpy()  # (S, S, 3)


def read_pictures(
    class_names: tuple[str, ...],
    splits: Mapping[str, Items],
    *,
    sample: Iterable[Picture],
    count: int,
    encoded_bytes: int,
    spec: DataSpec,
) -> Reading:
    """The pictures of all ``splits``, ``count`` of ``encoded_bytes`` in all, decoded when their
    chunks are asked for.

    Their side in pixels is ``data.short_side`` (or 64) or the median short side of the ``sample``,
    whichever is smaller. Where sizes differ, so that most images are resized anyway, it is cut to
    a multiple of 8, which patches divide.
    """
    sizes = []
    for picture in sample:
        with suppress(Exception), _open(picture) as image:  # what is broken is named when decoded
            sizes.append(image.size)
    side = spec.short_side or DEFAULT_SHORT_SIDE
    median = int(np.median([min(size) for size in sizes])) if sizes else side
    if median < side:
        side = max(SMALLEST_SIDE, median - median % 8 if len(set(sizes)) > 1 else median)

    def chunks() -> Iterator[Chunk]:
        for split, items in splits.items():
            yield from _decode_chunks(split, items(), side, spec.skip_corrupt)

    return Reading(
        class_names=class_names,
        side=side,
        count=count,
        chunks=chunks,
        encoded=lambda split: (_content(picture) for _, picture, _ in splits[split]()),
        encoded_bytes=encoded_bytes,
    )


def _content(picture: Picture) -> bytes:
    if picture is None or isinstance(picture, bytes):
        return picture or b""
    return Path(picture).read_bytes()


def _size(picture: Picture) -> int:
    if picture is None or isinstance(picture, bytes):
        return len(picture or b"")
    return Path(picture).stat().st_size


def _decode_chunks(
    split: str, items: Iterator[Item], side: int, skip_corrupt: bool
) -> Iterator[Chunk]:
    """Decode in a few threads (PIL releases the interpreter), a bounded number at a time.

    Raises ``UserError`` naming the corrupt images of the first chunk that has any, unless
    ``skip_corrupt``; then they are left out and counted.
    """

    def attempt(item: Item) -> Images | str:
        name, picture, _ = item
        try:
            return decode(picture, side)
        except Exception as error:  # PIL's readers raise anything on broken bytes
            # PIL names the in-memory buffer by its address, which helps nobody
            unknown = str(error).startswith("cannot identify image file")
            return f"{name} ({NO_PICTURE if unknown else one_line(error)})"

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        first = 0
        while batch := list(islice(items, CHUNK_IMAGES)):
            results = list(pool.map(attempt, batch))
            corrupt = [result for result in results if isinstance(result, str)]
            if corrupt and not skip_corrupt:
                more = len(corrupt) - NAMED_CORRUPT
                raise UserError(
                    "every image must be readable; cannot read "
                    f"{', '.join(corrupt[:NAMED_CORRUPT])}{f' and {more} more' if more > 0 else ''}"
                    ". Fix: replace or remove them, or leave them out with "
                    "--set data.skip_corrupt=true"
                )
            decoded = [
                (pixels, item)
                for pixels, item in zip(results, batch, strict=True)
                if not isinstance(pixels, str)
            ]
            yield Chunk(
                split=split,
                images=np.array([pixels for pixels, _ in decoded], np.uint8),
                labels=np.array([label for _, (_, _, label) in decoded], np.int64),
                places=[name for _, (name, _, _) in decoded],
                encoded_sizes=[_size(picture) for _, (_, picture, _) in decoded],
                corrupt=[first + i for i, result in enumerate(results) if isinstance(result, str)],
            )
            first += len(batch)


EXTENSIONS = (
    ".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm",
)  # fmt: skip
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}
SAMPLED_IMAGES = 512
Files = dict[tuple[str, str], list[str]]  # paths of pictures by split and class
LAYOUT_HELP = "expected CLASS/picture.jpg, or train/CLASS/picture.jpg with val/ and test/"


def locate(path: Path, spec: DataSpec) -> Source:
    """An image folder whose layout is right; opens no image.

    Raises ``UserError`` where it is empty, has one class only, or a split has classes that
    train lacks.
    """
    roots = _split_roots(path)
    files, ignored = _list(roots)
    names = tuple(name for split, name in files if split == "train")
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
    for split, name in files:
        if name not in names:
            raise UserError(
                f"classes of {split} must be classes of train; {roots[split]} has {name!r}, "
                f"and train has {', '.join(names[:10])}. Fix: rename or remove that folder"
            )

    def identity() -> list[Any]:
        stats = ((file, Path(file).stat()) for file in chain.from_iterable(files.values()))
        return [[str(path.resolve())], *([file, s.st_size, s.st_mtime_ns] for file, s in stats)]

    def items(wanted: str) -> Iterator[Item]:
        for (split, name), pictures in files.items():
            if split == wanted:
                label = names.index(name)
                yield from ((file, file, label) for file in pictures)

    def read() -> Reading:
        _log_unused(roots, names, ignored)
        train = [picture for _, picture, _ in items("train")]
        return read_pictures(
            names,
            {split: partial(items, split) for split in roots},
            sample=train[:: -(-len(train) // SAMPLED_IMAGES)],
            count=sum(map(len, files.values())),
            encoded_bytes=sum(map(_size, chain.from_iterable(files.values()))),
            spec=spec,
        )

    return Source(name=path.resolve().name, identity=identity, read=read)


def _split_roots(path: Path) -> dict[str, Path]:
    """The folder of each split; the whole folder is train unless it has ``train/CLASS/``."""
    folders = _folders(path)
    splits: dict[str, Path] = {}
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
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _list(roots: Mapping[str, Path]) -> tuple[Files, int]:
    """Pictures by split and class, and how many other files were passed over."""
    files: Files = {}
    ignored = 0
    for split, root in roots.items():
        ignored += sum(entry.is_file() for entry in root.iterdir())
        for folder in _folders(root):
            for file in _walk(folder, set()):
                if file.lower().endswith(EXTENSIONS):
                    files.setdefault((split, folder.name), []).append(file)
                else:
                    ignored += 1
    return files, ignored


def _walk(folder: str | Path, visited: set[str]) -> Iterator[str]:
    """Paths of the files below ``folder`` in a fixed order; links are followed, each real folder
    once."""
    real = os.path.realpath(folder)
    if real in visited:
        return
    visited.add(real)
    with os.scandir(folder) as entries:
        shown = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    yield from (entry.path for entry in shown if not entry.is_dir())
    for entry in reversed(shown):
        if entry.is_dir():
            yield from _walk(entry.path, visited)


def _log_unused(roots: Mapping[str, Path], names: Collection[str], ignored: int) -> None:
    if ignored:
        log.info(f"{ignored} files ignored: their names are not those of pictures")
    train = roots["train"]
    if train.name.lower() in SPLIT_FOLDERS["train"]:
        for folder in _folders(train.parent):
            if folder not in roots.values():
                log.info(f"{folder} is not used: it is not a split with class folders")
    empty = [folder.name for folder in _folders(train) if folder.name not in names]
    if empty:
        log.info(f"{len(empty)} folders without a picture are no class: {', '.join(empty[:5])}")
