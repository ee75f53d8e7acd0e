"""The way to object storage: file systems, endpoint, and patience with what fails."""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from trainables.errors import StorageError, one_line

PATIENCE_S = 90.0  # less than that of those who wait for our answer: see trainables.line
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0
CONNECT_TIMEOUT_S = 5.0

T = TypeVar("T")


def retried(doing: str, work: Callable[[], T], patience_s: float | None = None) -> T:
    """What ``work`` returns, tried again when it fails, for at most ``PATIENCE_S``.

    The pauses double and are drawn at random, so that a hundred workers do not come back at once.
    Raises ``FileNotFoundError`` at once, and :class:`StorageError` once patience is over.
    """
    patience_s = PATIENCE_S if patience_s is None else patience_s
    deadline, pause_s = time.monotonic() + patience_s, FIRST_PAUSE_S
    while True:
        try:
            return work()
        except FileNotFoundError:
            raise
        except OSError as error:
            pause = pause_s * random.uniform(0.5, 1.0)
            if time.monotonic() + pause > deadline:
                message = f"{doing} failed for {patience_s:g} s: {one_line(error)}"
                raise StorageError(message) from error
            time.sleep(pause)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def opened(uri: str) -> tuple[Any, str]:
    """The file system behind ``uri`` and the path in it."""
    from pyarrow import fs

    scheme, _, path = uri.partition("://")
    if scheme == "file":
        return fs.LocalFileSystem(), path.rstrip("/")
    return _s3(path.partition("/")[0]), path.strip("/")


@contextmanager
def sink(uri: str) -> Iterator[Any]:
    """A stream to a file that is seen whole, once the stream is closed, or not at all."""
    files, path = opened(uri)
    if not uri.startswith("file:"):
        with files.open_output_stream(path) as stream:
            yield stream
        return
    half = f"{path}.{uuid.uuid4().hex[:8]}.part"
    files.create_dir(str(Path(path).parent))
    with files.open_output_stream(half) as stream:
        yield stream
    files.move(half, path)


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
