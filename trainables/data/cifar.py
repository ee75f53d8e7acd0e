"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from the official archives: packed, unpacked, or
downloaded on first use.

torchvision's reader takes only archives of the official hash and unpickles them whole; this one
takes any archive of the official layout and a mirror's download, and runs no pickle: see
``pickled_arrays``.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import logging
import lzma
import os
import struct
import tarfile
import urllib.error
import urllib.request
import zlib
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO
from urllib.parse import urlparse

import filelock
import numpy as np

from trainables.config import DataSpec
from trainables.data.pickled_arrays import load_arrays
from trainables.data.store import Chunk, Reading, Source, default_folder, file_identity
from trainables.errors import UserError, one_line
from trainables.printable import login_of, without_login
from trainables.progress import long_step
from trainables.storage.waiting import bounded

log = logging.getLogger(__name__)

PIXELS = 3 * 32 * 32
LARGEST_MEMBER_BYTES = 2**29
LARGEST_ARCHIVE_BYTES = 2**31  # unpacked; the official ones have 0.2 GB
BROKEN = (tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, OSError, EOFError,
          ValueError, TypeError, OverflowError, LookupError, RecursionError)  # fmt: skip


@dataclass(frozen=True)
class Form:
    """One official archive: its folder, its files, and where labels and names are in them."""

    dataset: str
    archive: str
    md5: str
    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    names_key: str = ""  # of the pickled dicts; the binary form has none
    labels_key: str = ""
    label_bytes: int = 1

    @property
    def binary(self) -> bool:
        """Whether rows are bytes and not pickled."""
        return not self.names_key

    @property
    def members(self) -> tuple[str, ...]:
        """Names of all files in the archive that are read."""
        return (*self.train, self.test, self.names)


BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
# fmt: off
FORMS = (
    Form("cifar10", "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a",
         "cifar-10-batches-py", BATCHES, "test_batch", "batches.meta",
         names_key="label_names", labels_key="labels"),
    Form("cifar10", "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530",
         "cifar-10-batches-bin", tuple(f"{name}.bin" for name in BATCHES), "test_batch.bin",
         "batches.meta.txt"),
    Form("cifar100", "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85",
         "cifar-100-python", ("train",), "test", "meta",
         names_key="fine_label_names", labels_key="fine_labels"),
    Form("cifar100", "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8",
         "cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt", label_bytes=2),
)
# fmt: on


def locate(spec: DataSpec, official_url: str) -> Source:
    """CIFAR from ``data.archive``, or to be downloaded on first use; opens nothing large.

    Raises ``UserError`` where the archive is missing or of another kind.
    """
    if spec.archive is None:
        form = next(form for form in FORMS if form.dataset == spec.source and not form.binary)

        def read() -> Reading:
            url = f"{base_url(official_url)}/{form.archive}"
            target = default_folder(spec) / "downloads" / form.archive
            archive = f"{form.archive}, or its unpacked folder"
            fix = f"give {archive}, from elsewhere as --set data.archive=PATH"
            return _read(form, download(url, target, md5=form.md5, fix=fix))

        return Source(name=spec.source, identity=lambda: [form.archive, form.md5], read=read)
    place, form = _find_archive(Path(spec.archive).expanduser(), spec.source)
    files = [place] if place.is_file() else [place / member for member in form.members]
    return Source(
        name=spec.source,
        identity=lambda: [file_identity(file) for file in files],
        read=lambda: _read(form, place),
    )


def _find_archive(path: Path, dataset: str) -> tuple[Path, Form]:
    """The file or folder to read in ``path``, and its form."""
    forms = [form for form in FORMS if form.dataset == dataset]
    choices = ", ".join(f"{form.archive} or {form.folder}/" for form in forms)
    if not path.exists():
        raise UserError(f"data.archive must exist; there is no {path}. Fix: give one of {choices}")
    for form in forms:
        if path.is_file() and form.folder in _first_folders(path):
            return path, form
        for folder in (path, path / form.folder):
            if all((folder / member).is_file() for member in form.members):
                return folder, form
        if (path / form.archive).is_file():
            return path / form.archive, form
    raise UserError(
        f"data.archive must be an archive of {dataset}; {path} is not. Fix: give one of {choices}"
    )


def _first_folders(path: Path) -> set[str]:
    """Of the first names in the archive: a renamed file is read all the same."""
    with suppress(*BROKEN), tarfile.open(path) as tar:
        return {Path(member.name).parts[0] for member in islice(tar, 3) if member.name}
    return set()


def _read(form: Form, place: Path) -> Reading:
    try:
        contents = _contents(form, place)
        missing = [member for member in form.members if member not in contents]
        names = () if missing else _names(form, contents[form.names])
        if not names:
            raise ValueError(f"no {(missing or [form.names])[0]}")
        chunks = [_chunk(form, "train", member, contents[member]) for member in form.train]
        first, *others = chunks
        for member, chunk in zip(form.train[1:], others, strict=True):
            if len(chunk.labels) != len(first.labels):  # a copy may end between two rows
                raise ValueError(
                    f"{member} has {len(chunk.labels)} images, {form.train[0]} has "
                    f"{len(first.labels)}"
                )
        chunks.append(_chunk(form, "test", form.test, contents[form.test]))
        labels = np.concatenate([chunk.labels for chunk in chunks])
        if len(labels) and not (labels.min() >= 0 and labels.max() < len(names)):
            raise ValueError(f"a label outside [0, {len(names) - 1}]")
    except BROKEN as error:
        raise UserError(
            f"the CIFAR archive {place} cannot be read: {error}. "
            "Fix: put the official one in its place, or give it as --set data.archive=PATH"
        ) from None
    return Reading(class_names=names, side=32, count=len(labels), chunks=lambda: iter(chunks))


def _contents(form: Form, place: Path) -> dict[str, bytes]:
    """The form's files by name: nothing is unpacked to disk."""
    if place.is_dir():
        return {member: (place / member).read_bytes() for member in form.members}
    contents = {}
    with tarfile.open(place) as tar:
        for member in tar:
            if member.offset_data + member.size > LARGEST_ARCHIVE_BYTES:
                raise ValueError(f"more than {LARGEST_ARCHIVE_BYTES / 1e9:.1f} GB when unpacked")
            parts = Path(member.name).parts
            # Not of a folder within it: another version's files would take the place of these.
            wanted = parts[:-1] == (form.folder,) and parts[-1] in form.members
            if wanted and member.size <= LARGEST_MEMBER_BYTES and (file := tar.extractfile(member)):
                contents[parts[-1]] = file.read()
    return contents


def _names(form: Form, content: bytes) -> tuple[str, ...]:
    if form.binary:
        return tuple(content.decode("utf-8").split())
    names = load_arrays(content).get(form.names_key)
    if not isinstance(names, list | tuple) or not all(type(n) in (str, bytes) for n in names):
        return ()
    return tuple(name.decode("latin1") if isinstance(name, bytes) else name for name in names)


def _chunk(form: Form, split: str, member: str, content: bytes) -> Chunk:
    """One file's images and labels. Raises ``ValueError`` on another shape, and on none."""
    if form.binary:
        rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, form.label_bytes + PIXELS)
        labels = rows[:, form.label_bytes - 1].astype(np.int64)  # CIFAR-100: coarse, then fine
        flat = rows[:, form.label_bytes :]
    else:
        values = load_arrays(content)
        data, listed = values.get("data"), values.get(form.labels_key)
        if isinstance(listed, list) and not all(type(label) is int for label in listed):
            raise ValueError("a label that is no whole number")
        if not isinstance(data, np.ndarray) or not isinstance(listed, list | np.ndarray):
            raise ValueError(f"no data or no {form.labels_key}")
        flat, labels = data, np.asarray(listed, dtype=np.int64)
    if flat.dtype != np.uint8 or flat.shape != (len(labels), PIXELS):
        raise ValueError(f"rows of shape {flat.shape} for {len(labels)} labels")
    if not len(labels):
        raise ValueError(f"no images in {member}")
    images = flat.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # (N, 32, 32, 3)
    places = [f"{member} row {row}" for row in range(len(images))]
    return Chunk(split=split, images=images, labels=labels, places=places)


CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 7.0, 20.0
TRIES_WITHOUT_PROGRESS = 3
BLOCK_BYTES = 2**18


def base_url(official_url: str) -> str:
    """Where archives come from: $ORCHESTRATOR_CIFAR_URL (a mirror's folder) or the author's site.

    Raises ``UserError`` on a URL that is not HTTP.
    """
    url = os.environ.get("ORCHESTRATOR_CIFAR_URL", official_url).rstrip("/")
    if urlparse(url).scheme not in ("http", "https"):
        raise UserError(
            "ORCHESTRATOR_CIFAR_URL must start with http:// or https://; got "
            f"{without_login(url)!r}. "
            "Fix: give a mirror's folder, or a local archive as --set data.archive=PATH"
        )
    return url


def download(url: str, target: Path, *, md5: str, fix: str) -> Path:
    """Download ``url`` to ``target`` unless it is there; returns ``target``.

    Bytes gather in ``target.part``; a later call, or the next try after a cut connection, asks
    for the rest with an HTTP Range. ``target`` appears complete and only with the right ``md5``
    (hex). ``fix`` ends each error: what to do without the network. Raises ``UserError``
    where the server cannot be reached within about 8 s, refuses, keeps cutting, or the sum is
    wrong (then the partial file is removed).
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(target.with_name(f".{target.name}.lock")):
        if target.exists():
            return target
        part = target.with_name(f"{target.name}.part")
        tries_left = 1  # a server that gave nothing yet is not worth more waiting
        size = _size(part)
        while problem := _download_rest(url, part, target.name):
            before, size = size, _size(part)
            tries_left = TRIES_WITHOUT_PROGRESS if size > before else tries_left - 1
            if not tries_left:
                raise UserError(f"cannot download {without_login(url)}: {problem}. Fix: {fix}")
            log.info(f"{target.name}: {problem}; going on at {size / 1e6:.1f} MB")
        with part.open("rb") as file:
            checksum = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
        if checksum.hexdigest() != md5:
            part.unlink()
            raise UserError(
                f"the checksum of {without_login(url)} must be md5 {md5}; got "
                f"{checksum.hexdigest()}: the file is not the official one or was damaged on its "
                f"way, and was removed. Fix: {fix}"
            )
        part.rename(target)
    return target


def _download_rest(url: str, part: Path, name: str) -> str | None:
    """Append what is missing to ``part``; None when complete, else what went wrong."""
    done = _size(part)
    headers = {"Range": f"bytes={done}-"} if done else {}
    user, password = login_of(url)
    if user:  # urllib would take it for a part of the host's name
        pair = base64.b64encode(f"{user}:{password}".encode()).decode()
        headers["Authorization"] = f"Basic {pair}"
    request = urllib.request.Request(without_login(url), headers=headers)
    try:
        # One bound on all before the body: look-up (which knows none), each address, headers.
        response: http.client.HTTPResponse = bounded(
            lambda: urllib.request.urlopen(request, timeout=READ_TIMEOUT_S), CONNECT_TIMEOUT_S
        )
        with response:
            if done and response.status != 206:
                done = 0  # the server does not resume: it sends everything again
            total = done + int(response.headers.get("Content-Length") or 0)
            with part.open("ab" if done else "wb") as file:
                _copy(response, file, done, total, name)
        missing = total - _size(part)
        return f"the connection was cut, {missing} bytes are missing" if missing > 0 else None
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and done:
            if error.headers.get("Content-Range") == f"bytes */{done}":
                return None
            part.unlink()
        return f"the server answered {error.code} {error.reason}"
    except TimeoutError as error:
        return str(error) or f"no answer within {CONNECT_TIMEOUT_S:g} s"
    except (OSError, http.client.HTTPException, ValueError) as error:
        return str(getattr(error, "reason", "")) or one_line(error)


def _copy(source: IO[bytes], file: IO[bytes], start: int, total: int, name: str) -> None:
    megabytes = total / 1e6 if total else None
    with long_step(log, name, megabytes, unit="MB", begin=start / 1e6) as advance:
        done = start
        while block := source.read(BLOCK_BYTES):
            file.write(block)
            done += len(block)
            advance(done / 1e6)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
