"""What lies in an image folder, by names and, where these do not say it, by the first bytes.

Pictures beside what is none: notes, thumbnails of file managers, formats that are not read, and
names whose files are not here.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from trainables.storage.pointers import DVC_SUFFIX, HEAD_BYTES, pointer_in

EXTENSIONS = (
    ".jpg", ".jpeg", ".jfif", ".jpe", ".pjpeg", ".pjp", ".mpo", ".png", ".apng", ".bmp", ".dib",
    ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".avif", ".avifs",
    ".jp2", ".j2k", ".jpx", ".jpc", ".jpf",
)  # fmt: skip
# Files that are no pictures, whatever a class folder has of them.
STRAYS = (
    ".txt", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg",
    ".md", ".rst", ".html", ".htm", ".css", ".js", ".py", ".ipynb", ".sh", ".bat", ".m", ".log",
    ".db", ".lnk", ".url", ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".md5", ".sha1", ".sha256",
    ".c", ".h", ".cpp", ".hpp", ".cu", ".java", ".go", ".rs", ".r", ".pth", ".pt", ".ckpt", ".onnx",
    ".safetensors", ".pkl", ".pickle", ".sql", ".sqlite", ".tex", ".bib", ".ppt", ".pptx", ".rtf",
    ".mp3", ".wav", ".exe", ".so", ".lst", ".names", ".parquet",
    ".xmp", ".aae", ".cache", ".lock", "~", ".bak", ".tmp", ".temp", ".part", ".crdownload",
    ".orig", ".old", ".swp", ".license", ".gitkeep", ".gitignore", ".dvc",
)  # fmt: skip
STRAY_NAMES = ("readme", "license", "licence", "copying", "makefile", "icon\r", "thumbs.db")
# Folders that systems and file managers leave, of copies and thumbnails.
JUNK_FOLDERS = (
    "__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "__pycache__",
    "#recycle", "@__thumb",
)  # fmt: skip
MAGIC = (
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*",
    b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51",
)  # fmt: skip


@dataclass
class Listing:
    """The visible entries of one folder, in a fixed order: paths of ``pictures``, of names whose
    pictures are ``absent``, of links and notes of folders that are not here (``dead_links``), of
    ``folders``; how many ``strays`` and, by suffix, ``unread`` files that may be pictures. Of all
    in and below a folder there are no ``folders``, and ``pictures`` has the absent too."""

    pictures: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    dead_links: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    strays: int = 0
    unread: Counter[str] = field(default_factory=Counter)

    def add_below(self, listing: Listing) -> None:
        """What one more folder holds."""
        self.pictures += sorted([*listing.pictures, *listing.absent])
        self.absent += listing.absent
        self.dead_links += listing.dead_links
        self.strays += listing.strays
        self.unread += listing.unread


class Tree:
    """The folders of one source; each is read once, when it is first asked for."""

    def __init__(self) -> None:
        self._listings: dict[Path, Listing] = {}

    def listing(self, folder: Path) -> Listing:
        """Of the folder alone. Raises ``OSError`` where it cannot be read."""
        if folder not in self._listings:
            self._listings[folder] = _list(folder)
        return self._listings[folder]

    def subfolders(self, folder: Path) -> list[Path]:
        """Folders directly in ``folder``, sorted; links to folders are followed."""
        return [Path(name) for name in self.listing(folder).folders]

    def holding(self, folder: Path) -> list[Path]:
        """Its subfolders that have pictures in or below them, or what should be some."""
        return [sub for sub in self.subfolders(folder) if self.holds(sub)]

    def holds(self, folder: Path) -> bool:
        """Whether a picture is in or below ``folder``, or something that may be one."""
        listings = (self.listing(each) for each in self._walk(folder, set()))
        return any(one.pictures or one.absent or one.dead_links or one.unread for one in listings)

    def contents(self, folder: Path) -> Listing:
        """All in and below ``folder``."""
        contents = Listing()
        for each in self._walk(folder, set()):
            contents.add_below(self.listing(each))
        return contents

    def _walk(self, folder: Path, visited: set[str]) -> Iterator[Path]:
        """The folder and those below it in a fixed order, each real folder once."""
        real = os.path.realpath(folder)
        if real in visited:
            return
        visited.add(real)
        yield folder
        for sub in reversed(self.subfolders(folder)):
            yield from self._walk(sub, visited)


def _list(folder: Path) -> Listing:
    listing = Listing()
    with os.scandir(folder) as entries:
        shown = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    names = {entry.name for entry in shown}
    for entry in shown:
        lower = entry.name.lower()
        if _is_folder(entry):
            if lower not in JUNK_FOLDERS:
                listing.folders.append(entry.path)
        elif entry.is_symlink() and not Path(entry.path).exists():
            _add_dead_link(listing, entry.path)
        elif lower.endswith(DVC_SUFFIX):
            _add_dvc(listing, entry.path, names)
        elif lower.endswith(EXTENSIONS) and entry.is_file():
            listing.pictures.append(entry.path)
        elif lower.endswith(STRAYS) or lower in STRAY_NAMES or not entry.is_file():
            listing.strays += 1
        else:
            _add_by_content(listing, entry.path)
    return listing


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _add_dead_link(listing: Listing, link: str) -> None:
    if link.lower().endswith(EXTENSIONS):
        listing.absent.append(link)
    elif link.lower().endswith(STRAYS):
        listing.strays += 1
    else:
        listing.dead_links.append(link)


def _add_dvc(listing: Listing, note: str, names: set[str]) -> None:
    """``x.png.dvc`` says that there should be ``x.png``, a picture or a folder of them."""
    target = note[: -len(DVC_SUFFIX)]
    if Path(target).name in names:
        listing.strays += 1
    elif target.lower().endswith(EXTENSIONS):
        listing.absent.append(target)
    elif Path(target).suffix:
        listing.strays += 1
    else:
        listing.dead_links.append(target)


def _add_by_content(listing: Listing, file: str) -> None:
    """A file whose name does not say what it is."""
    head, suffix = b"", Path(file).suffix.lower()
    with suppress(OSError), Path(file).open("rb") as opened:
        head = opened.read(HEAD_BYTES)
    if _is_picture(head):
        listing.pictures.append(file)
    elif not suffix and pointer_in(head):
        listing.absent.append(file)
    elif not suffix and _is_text(head):
        listing.strays += 1
    else:
        listing.unread[suffix or "without a suffix"] += 1


def _is_text(head: bytes) -> bool:
    with suppress(UnicodeDecodeError):
        return "\0" not in head[:-3].decode()  # the last letter may be cut
    return False


def _is_picture(head: bytes) -> bool:
    """Whether the first bytes are those of a picture that is read."""
    if head.startswith(MAGIC) or (head.startswith(b"BM") and head[6:10] == b"\0\0\0\0"):
        return True
    is_webp = head.startswith(b"RIFF") and head[8:12] == b"WEBP"
    return is_webp or (head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"))
