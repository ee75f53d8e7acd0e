"""Every wait has a bound: try again, look until it is so, call with a time limit.

The only retry loop and the only polling loop of the project. No torch, no ray.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")
Errors = type[BaseException] | tuple[type[BaseException], ...]


def retry(
    call: Callable[[], Result],
    *,
    on: Errors,
    never: Errors = (),
    patience_s: float,
    first_pause_s: float = 0.2,
    longest_pause_s: float = 10.0,
    on_failure: Callable[[BaseException, float], None] | None = None,
) -> Result:
    """What ``call`` returns, called again after an error of ``on``, for at most ``patience_s``.

    Errors of ``never`` and all others pass at once; the last error of ``on`` passes when the next
    pause would end after the patience. ``on_failure`` gets each error that is waited for and the
    seconds since the first call; what it raises ends the wait. Pauses double from
    ``first_pause_s`` to ``longest_pause_s``, each drawn from its upper half, so that a hundred
    workers do not come back at once.
    """
    began, longest_s = time.monotonic(), first_pause_s
    while True:
        try:
            return call()
        except never:
            raise
        except on as error:
            longest_s = min(longest_s, longest_pause_s)
            pause_s, waited_s = longest_s * random.uniform(0.5, 1.0), time.monotonic() - began
            if waited_s + pause_s > patience_s:
                raise
            if on_failure is not None:
                on_failure(error, waited_s)
        time.sleep(pause_s)
        longest_s *= 2


def wait_until(condition: Callable[[], bool], *, patience_s: float, poll_s: float) -> bool:
    """Whether ``condition`` came true within ``patience_s``, asked every ``poll_s``, at least
    once."""
    deadline = time.monotonic() + patience_s
    while not condition():
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return False
        time.sleep(min(poll_s, left_s))
    return True


def bounded(call: Callable[[], Result], timeout_s: float) -> Result:
    """What ``call``, which knows no bound of its own, returns within ``timeout_s``.

    Raises ``TimeoutError`` where it takes longer; the call goes on in its thread, unheard.
    """
    return in_background(call).result(timeout_s)


def in_background(call: Callable[[], Result]) -> Future[Result]:
    """``call`` in a thread that does not keep the process alive when something else has failed."""
    future: Future[Result] = Future()

    def carry_out() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=carry_out, name="background", daemon=True).start()
    return future
