"""Errors that end a command or a trial with a sentence instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

RESUMABLE = 130
# Of the CLI: done; a mistake in what was asked; can never be scheduled or afforded; done, but some
# trials failed; no trial succeeded; interrupted, the same command goes on.
EXIT_CODES = (0, 2, 3, 4, 5, RESUMABLE)


class UserError(ValueError):
    """Mistakes in what was asked, each a line with rule, value, choices and fix; ``exit_code`` is
    the CLI's."""

    def __init__(self, *mistakes: str, exit_code: int = 2) -> None:
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
    """Object storage failed for as long as one tries: the run stops, resumable."""


def one_line(error: BaseException) -> str:
    """The error's message without line breaks; its type's name where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


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
