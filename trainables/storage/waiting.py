"""Work in a thread that keeps nobody waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def in_background(work: Callable[[], Result]) -> Future[Result]:
    """In a thread that does not keep the process alive when something else has failed.

    ``in_background(call).result(timeout_s)`` bounds a call that knows no bound of its own.
    """
    future: Future[Result] = Future()

    def carry_out() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=carry_out, name="background", daemon=True).start()
    return future
