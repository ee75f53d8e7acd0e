"""Files that stand for others which are not here: links that lead nowhere, and the small texts that
Git LFS, git-annex and DVC leave in place of what was not fetched.

A folder full of them looks whole, and each reader would call them broken in words of its own.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

HEAD_BYTES = 256
# How the text of a pointer begins: what it is, and what brings the file itself.
POINTERS = (
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer", "git lfs pull"),
    (b"version https://hawser.github.com/spec/", "a Git LFS pointer", "git lfs pull"),
    (b"# xet version ", "a Xet pointer", "git xet pull, or download it from the hub"),
    (b"/annex/objects/", "a git-annex pointer", "git annex get"),
    (b"outs:", "a DVC pointer", "dvc pull"),
    (b"<!doctype html", "a web page in place of a download", "download it again"),
    (b"<html", "a web page in place of a download", "download it again"),
)
ANNEX_LINK = b".git/annex/objects/"  # a link that was checked out as a text
DVC_SUFFIX = ".dvc"


def pointer_in(head: bytes) -> str | None:
    """What a file whose content begins with ``head`` stands for, and the command that fetches it;
    ``None`` where it is no pointer."""
    start = head[:HEAD_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n")
    for beginning, kind, command in POINTERS:
        if start.lower().startswith(beginning):
            return f"{kind}, not the file itself: {command}"
    if ANNEX_LINK in start and start.startswith((b".", b"/")):
        return "a git-annex pointer, not the file itself: git annex get"
    return None


def why_absent(path: Path) -> str | None:
    """Why the file at ``path`` is not here although its name is; ``None`` where it is here."""
    if path.is_symlink() and not path.exists():
        target = str(path.readlink())
        kind = ": git annex get" if ANNEX_LINK.decode() in f"{target}/" else ""
        return f"a link to {target}, which is not there{kind}"
    if not path.exists():
        if path.with_name(path.name + DVC_SUFFIX).exists():
            return f"only its {DVC_SUFFIX} file is here: dvc pull"
        return "it is not there"
    with suppress(OSError), path.open("rb") as file:
        return pointer_in(file.read(HEAD_BYTES))
    return None
