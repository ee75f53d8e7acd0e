"""A file that one process at a time holds, until it closes it or dies."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable
from typing import IO, Any

__all__ = ["hold"]


def hold(file: IO[Any], waiting: Callable[[], bool], *, look_s: float) -> bool:
    """Hold the open ``file``, once nobody else does; asked every ``look_s``, for as long as
    ``waiting``. Whether it is held."""
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if not waiting():
                return False
            time.sleep(look_s)
