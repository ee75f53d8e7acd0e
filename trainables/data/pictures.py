"""Encoded pictures of any size, mode and range of values -> square RGB pixels.

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from trainables.config import DEFAULT_SHORT_SIDE, DataSpec
from trainables.data.metadata import without_metadata
from trainables.data.store import Chunk, Images, Reading
from trainables.data.value_ranges import (
    FIX,
    WHITE_16,
    Brightest,
    OutOfRange,
    RangeCheck,
    to_8_bits,
)
from trainables.errors import UserError, one_line
from trainables.storage.pointers import pointer_in, why_absent

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

SMALLEST_SIDE = 8
CHUNK_IMAGES = 512
NAMED_CORRUPT = 3
# JPEG's reader takes a camera's MPO, too. PIL knows sixty more formats by the bytes of a file,
# whatever its name; for one of them it starts Ghostscript.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000")
MOST_PIXELS = 89_478_485  # where PIL begins to warn of a bomb: a quarter of a GB at three bytes
DECODED_BYTES_AT_ONCE = 2**29
NO_PICTURE = "not a picture in JPEG, PNG, GIF, BMP, WebP, TIFF, PPM, AVIF or JPEG 2000"
TIFF_PHOTOMETRIC, WHITE_IS_ZERO = 262, 0

THUMBNAIL_QUALITY = 70  # of WebP, 0 to 100

Picture = bytes | str | Path | None  # encoded, or its file; None: the row is empty


class Item(NamedTuple):
    """A picture of a source: how to name its ``place`` in an error, the picture, its label, and the
    group that it belongs to where the source has groups."""

    place: str
    picture: Picture
    label: int
    group: str | None = None


Items = Callable[[], Iterator[Item]]  # in the same order whenever it is called


def _open(picture: Picture) -> Image.Image:
    """The picture, not decoded yet. Raises ``ValueError`` for one of too many pixels."""
    from PIL import Image

    if picture is None:
        raise ValueError("no bytes")
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # it is an error below
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # broken metadata
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
        # PIL's own pixels and one copy of them, or the float64 that wide ones go through.
        bytes_per_pixel = 40 if image.mode[0] in "IF" else 12
        with _MEMORY.reserved(image.width * image.height * bytes_per_pixel):
            yield image


@dataclass(frozen=True)
class Decoded:
    """``pixels`` (S, S, 3), and the brightest value where it does not say by itself what white
    is."""

    pixels: Images
    brightest: Brightest | None


def decode(picture: Picture, side: int, white: float | None = None) -> Images:
    """RGB uint8 (side, side, 3): the centre square, resized to ``side`` pixels, bicubic.

    EXIF orientation is applied; alpha is dropped, as torchvision's loader does; values of more than
    8 bits are scaled by the range of their kind, or to ``white``. Metadata that is broken does not
    matter where the picture is whole. Raises ``OutOfRange`` where nothing says what white is, and
    whatever PIL raises on what it cannot read.
    """
    return decoded(picture, side, white).pixels


def decoded(picture: Picture, side: int, white: float | None = None) -> Decoded:
    """As :func:`decode`."""
    try:
        return _decoded(picture, side, white)
    except (OutOfRange, MemoryError):
        raise
    except Exception:
        bare = without_metadata(_content(picture))
        if bare is None:
            raise
        try:
            return _decoded(bare, side, white)
        except OutOfRange:
            raise
        except Exception:  # the picture itself is broken: said as it was met first
            pass
        raise


def _decoded(picture: Picture, side: int, white: float | None) -> Decoded:
    from PIL import Image, ImageOps

    with _opened(picture, side) as image:
        bits = _wide_bits(image)
        tags = getattr(image, "tag_v2", {})
        is_inverted = bits in (12, 16, 32) and tags.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO
        image.load()
        with suppress(Exception):  # a broken EXIF block: what it says is not known
            ImageOps.exif_transpose(image, in_place=True)
        rgb: Image.Image = image
        brightest = None
        if rgb.mode[0] in "IF":
            grey, brightest = to_8_bits(np.asarray(rgb), bits=bits, white=white)
            rgb = Image.fromarray(255 - grey if is_inverted else grey)
        elif bits == 16 and white not in (None, WHITE_16):
            raise OutOfRange(
                "of colours of 16 bits a channel the high byte alone is read, which data.white "
                f"cannot scale but for {WHITE_16}; store it with 8 bits"
            )
        elif bits == 16 and white is None:  # PIL has kept the high byte of each channel
            high = max(band[1] for band in _extrema(rgb))
            brightest = Brightest(16, high << 8 | 0xFF if high else 0)
        if rgb.mode == "P":  # PIL warns when it drops a palette's alpha itself
            rgb = rgb.convert("RGBA")
        if rgb.mode != "RGB":
            rgb = rgb.convert("RGB")
        return Decoded(_square(np.array(rgb, dtype=np.uint8), side), brightest)


def _wide_bits(image: Image.Image) -> int:
    """Bits of a channel in a file that is not decoded yet: 8, 12, 16 or 32."""
    raw = next((str(tile[3]) for tile in getattr(image, "tile", ())), "")
    if "I;12" in raw:
        return 12
    is_565 = "BGR;16" in raw  # of a BMP: 16 bits a pixel, not a channel
    if image.mode.startswith("I;16") or (";16" in raw and image.mode != "I" and not is_565):
        return 16
    if image.mode == "I":  # PPM's reader scales to 16 bits whatever there was
        return 16 if image.format == "PPM" else 32
    return 32 if image.mode == "F" else 8


def _extrema(image: Image.Image) -> list[tuple[int, int]]:
    """Lowest and highest value of each channel that is no alpha."""
    bands = [image.getchannel(name) for name in image.getbands() if name != "A"]
    return [(int(low), int(high)) for low, high in (band.getextrema() for band in bands)]  # type: ignore[arg-type]


def _square(pixels: Images, side: int) -> Images:
    """The centre square of (H, W, 3), resized to (S, S, 3).

    By torch, in a third of PIL's time; hardly a pixel differs, by two levels of 255 at most.
    """
    short = min(pixels.shape[:2])
    top, left = ((length - short) // 2 for length in pixels.shape[:2])
    square = pixels[top : top + short, left : left + short]
    if short == side:
        return np.ascontiguousarray(square)
    import torch  # seconds, where no picture needs it
    from torch.nn import functional as F

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
    group_rule: str | None = None,
) -> Reading:
    """The pictures of all ``splits``, ``count`` of ``encoded_bytes`` in all, decoded when their
    chunks are asked for. Each has a group where ``group_rule`` says by what.

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
        ranges = RangeCheck()
        for split, items in splits.items():
            yield from _decode_chunks(split, items(), side, spec, ranges)
        ranges.raise_if_open(spec.source, class_names)
        if warning := ranges.warning():
            log.warning(f"warning: {spec.source}: {warning}")

    return Reading(
        class_names=class_names,
        side=side,
        count=count,
        chunks=chunks,
        encoded=lambda split: (_content(item.picture) for item in splits[split]()),
        encoded_bytes=encoded_bytes,
        group_rule=group_rule,
    )


def _content(picture: Picture) -> bytes:
    """Empty where its file is not there."""
    if picture is None or isinstance(picture, bytes):
        return picture or b""
    with suppress(OSError):
        return Path(picture).read_bytes()
    return b""


def _size(picture: Picture) -> int:
    if picture is None or isinstance(picture, bytes):
        return len(picture or b"")
    with suppress(OSError):
        return Path(picture).stat().st_size
    return 0


def _why_unreadable(picture: Picture, error: Exception) -> str:
    """Why the picture cannot be read, as far as its file says it itself."""
    if isinstance(picture, bytes):
        absent = pointer_in(picture)
    else:
        absent = None if picture is None else why_absent(Path(picture))
    # PIL names the in-memory buffer by its address, which helps nobody
    unknown = str(error).startswith("cannot identify image file")
    return absent or (NO_PICTURE if unknown else one_line(error))


def _decode_chunks(
    split: str, items: Iterator[Item], side: int, spec: DataSpec, ranges: RangeCheck
) -> Iterator[Chunk]:
    """Decode in a few threads (PIL releases the interpreter), a bounded number at a time.

    Raises ``UserError`` naming the corrupt images of the first chunk that has any, unless
    ``data.skip_corrupt``; then they are left out and counted. Values of an unknown range are always
    refused.
    """

    def attempt(item: Item) -> Decoded | OutOfRange | str:
        try:
            return decoded(item.picture, side, spec.white)
        except OutOfRange as error:
            return OutOfRange(f"{item.place} ({one_line(error)})")
        except Exception as error:  # PIL's readers raise anything on broken bytes
            return f"{item.place} ({_why_unreadable(item.picture, error)})"

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        first = 0
        while batch := list(islice(items, CHUNK_IMAGES)):
            results = list(pool.map(attempt, batch))
            unknown = [str(result) for result in results if isinstance(result, OutOfRange)]
            if unknown:
                raise UserError(f"pictures must say what white is; not so {_named(unknown)}. {FIX}")
            corrupt = [result for result in results if isinstance(result, str)]
            if corrupt and not spec.skip_corrupt:
                raise UserError(
                    f"every image must be readable; cannot read {_named(corrupt)}. "
                    "Fix: replace or remove them, or leave them out with "
                    "--set data.skip_corrupt=true"
                )
            readable = [
                (result, item)
                for result, item in zip(results, batch, strict=True)
                if isinstance(result, Decoded)
            ]
            labels = [item.label for _, item in readable]
            ranges.add(labels, [result.brightest for result, _ in readable])
            bad = [i for i, result in enumerate(results) if isinstance(result, str)]
            yield Chunk(
                split=split,
                images=np.array([result.pixels for result, _ in readable], np.uint8),
                labels=np.array(labels, np.int64),
                places=[item.place for _, item in readable],
                groups=[item.group for _, item in readable if item.group is not None],
                encoded_sizes=[_size(item.picture) for _, item in readable],
                corrupt=[first + i for i in bad],
                corrupt_labels=[batch[i].label for i in bad],
            )
            first += len(batch)


def _named(lines: list[str]) -> str:
    more = len(lines) - NAMED_CORRUPT
    return f"{', '.join(lines[:NAMED_CORRUPT])}{f' and {more} more' if more > 0 else ''}"


def thumbnail(pixels: Images, side: int) -> bytes:
    """``pixels`` (H, W, 3) as WebP, scaled down to ``side`` pixels where they are more; small ones
    stay as they are, which a page may enlarge without blurring them."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=THUMBNAIL_QUALITY, method=4)
    return buffer.getvalue()
