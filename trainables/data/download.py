"""Fetch one file over HTTP: progress, bounded waits, resume after a cut, checksum."""

from __future__ import annotations

import hashlib
import http.client
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import filelock

from trainables.data.reading import Say
from trainables.errors import UserError

CONNECT_TIMEOUT_S = 7.0
READ_TIMEOUT_S = 20.0
TRIES_WITHOUT_PROGRESS = 3
BLOCK_BYTES = 2**18
TELL_EVERY_S = 2.0


def fetch(url: str, target: Path, *, md5: str, other_way: str, say: Say) -> Path:
    """Download ``url`` to ``target`` unless it is there; returns ``target``.

    Bytes gather in ``target.part``; a later call, or the next try after a cut connection, asks
    for the rest with an HTTP Range. ``target`` appears complete and only with the right ``md5``
    (hex). ``other_way`` ends each error: what to do without the network. Raises ``UserError``
    where the server cannot be reached within about 8 s, refuses, keeps cutting, or the sum is
    wrong (then the partial file is removed).
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(target.with_name(f".{target.name}.lock")):
        if target.exists():
            return target
        part = target.with_name(f"{target.name}.part")
        failures, reached = 0, False
        while True:
            before = _size(part)
            problem = _fetch_rest(url, part, say)
            if problem is None:
                break
            progress = _size(part) > before
            reached = reached or progress
            failures = 0 if progress else failures + 1
            # A server that gave nothing yet is not worth more waiting; one that did is.
            if not reached or failures >= TRIES_WITHOUT_PROGRESS:
                raise UserError(f"cannot download {url}: {problem}. Fix: {other_way}")
            say(f"{target.name}: {problem}; going on at {_size(part) / 1e6:.1f} MB")
        found = _md5(part)
        if found != md5:
            part.unlink()
            raise UserError(
                f"the checksum of {url} must be md5 {md5}; got {found}: the file is not the "
                f"official one or was damaged on its way, and was removed. Fix: {other_way}"
            )
        part.rename(target)
    return target


def _fetch_rest(url: str, part: Path, say: Say) -> str | None:
    """Append what is missing to ``part``; None when complete, else what went wrong."""
    done = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response = _open(request)
        with response:
            if done and response.status != 206:
                done = 0  # the server does not resume: it sends everything again
            total = done + int(response.headers.get("Content-Length") or 0)
            with part.open("ab" if done else "wb") as file:
                _copy(response, file, done, total, part.name.removesuffix(".part"), say)
        missing = total - _size(part)
        return f"the connection was cut, {missing} bytes are missing" if missing > 0 else None
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and done:
            if error.headers.get("Content-Range") == f"bytes */{done}":
                return None
            part.unlink()
        return f"the server answered {error.code} {error.reason}"
    except urllib.error.URLError as error:
        return f"{error.reason}"
    except (OSError, http.client.HTTPException, ValueError) as error:
        return str(error) or type(error).__name__


def _open(request: urllib.request.Request) -> Any:
    """``urlopen`` with one bound on everything before the body: look-up, each address, headers."""
    box: list[Any] = []

    def attempt() -> None:
        try:
            box.append(urllib.request.urlopen(request, timeout=READ_TIMEOUT_S))
        except Exception as error:
            box.append(error)

    thread = threading.Thread(target=attempt, daemon=True)  # a look-up cannot be interrupted
    thread.start()
    thread.join(CONNECT_TIMEOUT_S)
    if not box:
        raise OSError(f"no answer within {CONNECT_TIMEOUT_S:g} s")
    if isinstance(box[0], Exception):
        raise box[0]
    return box[0]


def _copy(response: Any, file: Any, done: int, total: int, name: str, say: Say) -> None:
    started = told = time.monotonic()
    start = done
    while block := response.read(BLOCK_BYTES):
        file.write(block)
        done += len(block)
        now = time.monotonic()
        if now - told >= TELL_EVERY_S or done == total:
            told = now
            share = f" of {total / 1e6:.1f}" if total else ""
            rate = (done - start) / 1e6 / max(now - started, 1e-3)
            say(f"{name}: {done / 1e6:.1f}{share} MB, {rate:.1f} MB/s")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
