"""An encoded picture without what surrounds it: text, colour profiles, cameras' notes.

Readers stop at a broken comment although the picture beside it is whole.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

PNG = b"\x89PNG\r\n\x1a\n"
# What the pixels depend on: header, palette, transparency, data, end.
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
JPEG = b"\xff\xd8"
START_OF_SCAN = 0xDA
# APP0 says the version and APP14 the transformation of colours; the others are metadata.
JPEG_METADATA = (*range(0xE1, 0xEE), 0xEF, 0xFE)


def without_metadata(content: bytes) -> bytes | None:
    """The PNG or JPEG with what its pixels depend on alone; ``None`` for all other content, and
    where it ends within that."""
    try:
        if content.startswith(PNG):
            return PNG + b"".join(_png_chunks(content))
        if content.startswith(JPEG):
            return JPEG + b"".join(_jpeg_segments(content))
    except (struct.error, IndexError, ValueError):
        pass
    return None


def _png_chunks(content: bytes) -> Iterator[bytes]:
    """Raises ``ValueError`` where a chunk that matters is cut short or fails its checksum."""
    place = len(PNG)
    while place < len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        chunk = content[place : place + length + 12]
        if kind in PNG_CHUNKS:
            if len(chunk) < length + 12 or zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:]):
                raise ValueError("broken")
            yield chunk
        if kind == b"IEND":
            return
        place += length + 12
    raise ValueError("cut short")


def _jpeg_segments(content: bytes) -> Iterator[bytes]:
    """The segments before the first scan, without metadata, and all that follows. Raises
    ``ValueError`` where what should be a segment is none."""
    place = len(JPEG)
    while True:
        if content[place] != 0xFF:
            raise ValueError("no segment")
        marker = content[place + 1]
        if marker == 0xFF:  # filling
            place += 1
            continue
        if marker == START_OF_SCAN:
            yield content[place:]
            return
        (length,) = struct.unpack_from(">H", content, place + 2)
        if marker not in JPEG_METADATA:
            yield content[place : place + 2 + length]
        place += 2 + length
