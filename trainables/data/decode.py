"""Encoded pictures of any size and mode -> square RGB pixels. The only file that imports PIL."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from trainables.data.store import Chunk, Images
from trainables.errors import UserError, one_line

DEFAULT_SIDE = 64
SMALLEST_SIDE = 8
CHUNK_IMAGES = 512
NAMED_CORRUPT = 3

Picture = bytes | Path | None  # None: the row is empty
Item = tuple[str, Picture, int]  # how to name it in an error, where it is, its label


def decode(picture: Picture, side: int) -> Images:
    """RGB uint8 (side, side, 3): short side resized to ``side`` pixels, then the centre.

    EXIF orientation is applied; alpha is dropped, as torchvision's loader does; 16-bit grey is
    scaled to 8. Raises whatever PIL raises on what it cannot read.
    """
    with _open(picture) as image:
        if min(image.size) > 2 * side:
            image.draft(None, (2 * side, 2 * side))  # JPEG: decode at a fraction of the size
        upright = ImageOps.exif_transpose(image)
        rgb = _to_rgb(upright)
        if rgb.size != (side, side):
            rgb = ImageOps.fit(rgb, (side, side), method=Image.Resampling.BICUBIC)
        return np.asarray(rgb, dtype=np.uint8)  # (side, side, 3)


def _open(picture: Picture) -> Image.Image:
    if picture is None:
        raise ValueError("no bytes")
    return Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if image.mode != "I" or wide.max(initial=0) > 255:
            wide = wide >> 8
        image = Image.fromarray(wide.clip(0, 255).astype(np.uint8))
    if image.mode == "P":  # PIL warns when it drops a palette's alpha itself
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def common_side(sample: Iterable[Picture], short_side: int | None) -> int:
    """The side in pixels that all images are stored at, from a sample of them.

    ``short_side`` (or 64) or the median short side, whichever is smaller. Where sizes differ,
    so that most images are resized anyway, it is cut to a multiple of 8, which patches divide.
    """
    sizes = []
    for picture in sample:
        try:
            with _open(picture) as image:
                sizes.append(image.size)
        except Exception:  # named when it is decoded
            continue
    limit = short_side or DEFAULT_SIDE
    if not sizes:
        return limit
    median = int(np.median([min(size) for size in sizes]))
    if median >= limit:
        return limit
    if len(set(sizes)) > 1:
        median -= median % 8
    return max(SMALLEST_SIDE, median)


def decode_chunks(
    split: str, items: Iterable[Item], *, side: int, skip_corrupt: bool
) -> Iterator[Chunk]:
    """Decode in a few threads (PIL releases the interpreter), a bounded number at a time.

    Raises ``UserError`` naming the corrupt images of the first chunk that has any, unless
    ``skip_corrupt``; then they are left out and counted.
    """

    def attempt(item: Item) -> Images | str:
        try:
            return decode(item[1], side)
        except Exception as error:  # PIL's readers raise anything on broken bytes
            return f"{item[0]} ({_reason(error)})"

    items = iter(items)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        while batch := list(islice(items, CHUNK_IMAGES)):
            yield _chunk(split, batch, list(pool.map(attempt, batch)), skip_corrupt)


def _chunk(
    split: str, batch: Sequence[Item], results: Sequence[Images | str], skip_corrupt: bool
) -> Chunk:
    corrupt = [result for result in results if isinstance(result, str)]
    if corrupt and not skip_corrupt:
        more = f" and {len(corrupt) - NAMED_CORRUPT} more" if len(corrupt) > NAMED_CORRUPT else ""
        raise UserError(
            f"every image must be readable; cannot read {', '.join(corrupt[:NAMED_CORRUPT])}{more}"
            ". Fix: replace or remove them, or leave them out with --set data.skip_corrupt=true"
        )
    good = [(r, item[2]) for r, item in zip(results, batch, strict=True) if not isinstance(r, str)]
    return Chunk(
        split=split,
        images=np.stack([r for r, _ in good]) if good else np.empty((0, 0, 0, 3), np.uint8),
        labels=np.array([label for _, label in good], dtype=np.int64),
        skipped=len(corrupt),
    )


def _reason(error: BaseException) -> str:
    # PIL names the in-memory buffer by its address, which helps nobody
    unknown = str(error).startswith("cannot identify image file")
    return "not a picture" if unknown else one_line(error)
