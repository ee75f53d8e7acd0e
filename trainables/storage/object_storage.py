"""Files in object storage: put, get, list and delete, through pyarrow's file systems.

A place is a URI: ``s3://bucket/prefix`` or, by the same code, ``file:///folder``. Who we are and
where the storage answers come from the usual variables (``AWS_ACCESS_KEY_ID``,
``AWS_SECRET_ACCESS_KEY``, ``AWS_ENDPOINT_URL``, ``AWS_REGION`` ...) or from the node's role.

A put is seen whole or not at all. A folder is put with its marker file last, and is there only
where the marker is. Whatever fails is tried again for ``patience_s``, then ``StorageError`` is
raised. What is not there is ``FileNotFoundError`` at once. pyarrow is loaded at the first request.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, TypeVar

from trainables.config import stable_hash
from trainables.errors import StorageError, one_line
from trainables.storage.waiting import bounded, retry

# Less than the patience of those who wait for our answer: see trainables.worker.dispatcher_client.
PATIENCE_S, FIRST_PAUSE_S = 90.0, 0.2
CONNECT_TIMEOUT_S = 5.0
CHECK_PATIENCE_S, CHECK_LIMIT_S = 4.0, 20.0
BLOCK_BYTES = 8 * 2**20
SCHEMES = ("s3", "file")
ORIGIN_FILE = ".storage"  # in a working copy: the URI that it is a copy of

T = TypeVar("T")


@dataclass(frozen=True)
class StoredFile:
    """A file under a URI: ``name`` relative to it, ``size`` in bytes, ``time`` in unix seconds."""

    name: str
    size: int
    time: float


def _ask(
    doing: str, uri: str, request: Callable[[Any, str], T], patience_s: float | None = None
) -> T:
    """``request`` made of the file system behind ``uri`` and the path in it, again while it raises
    ``OSError``, for ``PATIENCE_S`` at most."""
    patience_s = PATIENCE_S if patience_s is None else patience_s
    try:
        return retry(
            lambda: request(*_filesystem(uri)),
            on=OSError,
            never=FileNotFoundError,
            patience_s=patience_s,
            first_pause_s=FIRST_PAUSE_S,
        )
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = one_line(error)
        raise StorageError(f"{doing} {uri} failed for {patience_s:g} s: {reason}") from error


def _filesystem(uri: str) -> tuple[Any, str]:
    from pyarrow import fs

    scheme, _, path = uri.partition("://")
    if scheme == "file":
        return fs.LocalFileSystem(), path.rstrip("/")
    return _s3(path.partition("/")[0]), path.strip("/")


def endpoint() -> str | None:
    """The server that is asked instead of Amazon's, if any."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


@cache
def _s3(bucket: str) -> Any:
    from pyarrow import fs

    region = None
    if endpoint() is None and not {"AWS_REGION", "AWS_DEFAULT_REGION"} & set(os.environ):
        region = fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(
        region=region,
        endpoint_override=endpoint(),  # only from_uri() reads the variables by itself
        connect_timeout=CONNECT_TIMEOUT_S,
        allow_delayed_open=True,  # a small file is one request, not three
    )


def is_remote(place: str) -> bool:
    """Whether ``place`` is a URI and no folder."""
    return "://" in place


def working_copy(uri: str) -> Path:
    """This node's own folder for what is kept at ``uri``, ``STORAGE/NAME``: below
    ``$ORCHESTRATOR_RUNS``, or in the user's cache."""
    root = os.environ.get("ORCHESTRATOR_RUNS") or "~/.cache/backbone-tournament/runs"
    parent, _, name = uri.rstrip("/").rpartition("/")
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", parent)[:60].strip("-.")
    return Path(root).expanduser().absolute() / f"{slug}-{stable_hash(parent)}" / name


def origin(folder: Path) -> str | None:
    """The URI that ``folder`` is a working copy of; ``None`` where it is no copy."""
    try:
        return (folder / ORIGIN_FILE).read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None


def read_bytes(uri: str, *, patience_s: float | None = None) -> bytes:
    """The file's content."""

    def read(files: Any, path: str) -> bytes:
        with files.open_input_stream(path) as stream:
            return bytes(stream.read())

    return _ask("reading", uri, read, patience_s)


def read_range(uri: str, start: int, count: int) -> bytes:
    """``count`` bytes of the file from byte ``start`` on. Raises ``StorageError``, also for
    the ``OSError`` of a file that ends before."""

    def read(files: Any, path: str) -> bytes:
        with files.open_input_file(path) as file:
            content = bytes(file.read_at(count, start))
        if len(content) < count:
            raise OSError(f"it has {len(content)} of the {count} bytes from {start} on")
        return content

    return _ask("reading", uri, read)


def write_bytes(uri: str, content: bytes, *, patience_s: float | None = None) -> None:
    """Put ``content`` as a file; another of the name is replaced."""
    _put(uri, lambda: io.BytesIO(content), patience_s)


def put_file(source: Path, uri: str) -> None:
    """Put a copy of ``source``; another of the name is replaced."""
    _put(uri, lambda: source.open("rb"))


def _put(uri: str, opened: Callable[[], IO[bytes]], patience_s: float | None = None) -> None:
    """Put a file that is seen whole, once its stream is closed, or not at all."""

    def write(files: Any, path: str) -> None:
        local = uri.startswith("file:")
        half = f"{path}.{uuid.uuid4().hex[:8]}.part" if local else path
        if local:
            files.create_dir(str(Path(path).parent))
        with opened() as source, files.open_output_stream(half) as target:
            shutil.copyfileobj(source, target, BLOCK_BYTES)
        if local:
            files.move(half, path)

    _ask("writing", uri, write, patience_s)


def put_folder(source: Path, uri: str, *, marker: str) -> None:
    """Put all files of ``source``, ``marker`` as the last one."""
    names = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
    for name in sorted(names, key=lambda name: (name == marker, name)):
        put_file(source / name, f"{uri}/{name}")


def get_file(uri: str, target: Path) -> None:
    """Fetch a file, which is seen at ``target`` whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    half = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")

    def read(files: Any, path: str) -> None:
        with files.open_input_stream(path) as stream, half.open("wb") as copy:
            shutil.copyfileobj(stream, copy, BLOCK_BYTES)

    try:
        _ask("reading", uri, read)
        half.replace(target)
    finally:
        half.unlink(missing_ok=True)


def get_folder(uri: str, target: Path, *, marker: str, without: str | None = None) -> None:
    """Fetch a folder, which takes the place of ``target`` once it is complete; files whose names
    end ``without`` stay where they are.

    Raises ``FileNotFoundError`` where it has no file ``marker``, ``StorageError`` where the place
    does not answer.
    """
    stored = [file.name for file in list_files(uri)]
    names = [name for name in stored if without is None or not name.endswith(without)]
    if marker not in names:
        raise FileNotFoundError(f"{uri} has no {marker}")
    half = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        for name in names:
            get_file(f"{uri}/{name}", half / name)
        shutil.rmtree(target, ignore_errors=True)
        half.replace(target)
    finally:
        shutil.rmtree(half, ignore_errors=True)


def list_files(uri: str, *, deep: bool = True) -> list[StoredFile]:
    """All files below ``uri``, or only those in it, by name; empty where nothing is."""
    start = len(_filesystem(uri)[1]) + 1
    stored = (
        StoredFile(info.path[start:], info.size, (info.mtime_ns or 0) / 1e9)
        for info in _infos(uri, deep=deep)
        if info.is_file
    )
    return sorted(stored, key=lambda file: file.name)


def list_folders(uri: str) -> list[str]:
    """Names of the folders in ``uri``."""
    return sorted(info.base_name for info in _infos(uri, deep=False) if not info.is_file)


def _infos(uri: str, *, deep: bool) -> Any:
    from pyarrow import fs

    def select(files: Any, path: str) -> Any:
        return files.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=deep))

    return _ask("listing", uri, select)


def exists(uri: str, *, patience_s: float | None = None) -> bool:
    """Whether there is such a file."""
    return _ask(
        "looking for", uri, lambda files, path: bool(files.get_file_info(path).is_file), patience_s
    )


def delete_file(uri: str, *, patience_s: float | None = None) -> None:
    """Remove a file; what is gone already is no error."""
    # S3 leaves an empty folder behind even where there was nothing.
    if exists(uri, patience_s=patience_s):
        with suppress(FileNotFoundError):
            _ask("deleting", uri, lambda files, path: files.delete_file(path), patience_s)


def delete_folder(uri: str, *, marker: str) -> None:
    """Remove a folder, its ``marker`` first: no half of it is taken for a whole one."""
    delete_file(f"{uri}/{marker}")
    with suppress(FileNotFoundError):
        _ask("deleting", uri, lambda files, path: files.delete_dir(path))


def mistakes(uri: str) -> list[str]:
    """Why nothing can be kept at ``uri``, one line; empty once a small file was written there,
    read and removed. Answers within ``CHECK_LIMIT_S``."""
    scheme, _, rest = uri.partition("://")
    if scheme not in SCHEMES or not rest.strip("/") or "?" in rest:
        return [
            f"--storage must be a folder or s3://BUCKET/PREFIX; got {uri!r}. "
            "Fix: --storage s3://BUCKET/PREFIX, and AWS_ENDPOINT_URL for a server of your own"
        ]

    def try_out() -> None:
        probe = f"{uri}/.probe-{uuid.uuid4().hex[:8]}"
        write_bytes(probe, b"probe", patience_s=CHECK_PATIENCE_S)
        read_bytes(probe, patience_s=CHECK_PATIENCE_S)
        delete_file(probe, patience_s=CHECK_PATIENCE_S)

    try:
        bounded(try_out, CHECK_LIMIT_S)
        return []
    except TimeoutError:
        answer = f"no answer within {CHECK_LIMIT_S:g} s"
    except Exception as error:
        answer = one_line(error.__cause__ or error)
    at = f" at {endpoint()}" if endpoint() and scheme == "s3" else ""
    return [
        f"--storage must be writable; {uri}{at} is not ({answer}). Fix: create the bucket, check "
        "the AWS_* variables (AWS_ENDPOINT_URL names a server of your own) or this node's role"
    ]
