"""Errors that end a command or a trial with a sentence instead of a traceback."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from trainables.printable import escaped, redacted

RESUMABLE = 130
# Of the CLI, and what each means.
EXIT_CODES = {
    0: "done",
    2: "a mistake in what was asked, one line each with its fix; nothing was started",
    3: "it can never be scheduled here, or the budget does not cover one epoch",
    4: "done, but some trials failed",
    5: "no trial succeeded",
    RESUMABLE: "interrupted, or stopped by its budget; the same command goes on",
}


class UserError(ValueError):
    """Mistakes in what was asked, each a line with rule, value, choices and fix; ``exit_code`` is
    the CLI's. What a file says in it is written out as :func:`escaped` does."""

    def __init__(self, *mistakes: str, exit_code: int = 2) -> None:
        mistakes = tuple(escaped(line, keep="") for line in mistakes)
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes
        self.exit_code = exit_code


class TrialError(RuntimeError):
    """A trial ends as failed; the slot stays warm for the next one."""

    kind = "failed"


class Diverged(TrialError):
    """Loss or gradient is not finite."""

    kind = "diverged"


class OutOfMemory(TrialError):
    """The device has no room for this recipe, also after the retry with a smaller micro-batch."""

    kind = "out of memory"


class Preempted(RuntimeError):
    """The worker leaves early; ``checkpoint`` is the folder to resume from, if one was written."""

    def __init__(self, message: str, checkpoint: str | None = None) -> None:
        super().__init__(message)
        self.checkpoint = checkpoint


class ClusterLost(RuntimeError):
    """Ray is gone in the middle of a run, which stops, resumable."""


class StorageError(RuntimeError):
    """Storage failed: a disk is full or broken, or object storage did not answer for as long as
    one tries. The run stops, resumable; no trial fails by it."""


# Of the disk, not of what is written to it. EFBIG is a file-size limit (`ulimit -f`).
STORAGE_ERRNOS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG))
_RUST_ERRNO = re.compile(r"\(os error (\d+)\)")  # how safetensors words an error of the system


def storage_error(error: BaseException) -> StorageError | None:
    """The error as one of the storage, if it or what caused it is one; ``None`` if not.

    Libraries in Rust tell the system's error number in their message alone.
    """
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, StorageError):
            return cause
        number = cause.errno if isinstance(cause, OSError) else None
        if number is None and (match := _RUST_ERRNO.search(str(cause))):
            number = int(match[1])
        if number in STORAGE_ERRNOS:
            return StorageError(one_line(cause))
        cause = cause.__cause__ or cause.__context__
    return None


def one_line(error: BaseException) -> str:
    """The error's message without line breaks, control characters or logins; its type's name where
    it has none."""
    return escaped(" ".join(redacted(str(error)).split())) or type(error).__name__


def raise_if_any(mistakes: Iterable[str], *, exit_code: int = 2) -> None:
    """Raise one ``UserError`` that lists every mistake once; nothing when there is none."""
    lines = tuple(dict.fromkeys(mistakes))
    if lines:
        raise UserError(*lines, exit_code=exit_code)


@contextmanager
def collected(mistakes: list[str]) -> Iterator[list[str]]:
    """Catches a ``UserError``: its mistakes are added to ``mistakes``."""
    try:
        yield mistakes
    except UserError as error:
        mistakes += error.mistakes
