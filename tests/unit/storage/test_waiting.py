"""Retries, polling and bounded calls end when they say."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from trainables.storage.waiting import bounded, in_background, retry, wait_until


def failing(times: int, error: type[Exception]) -> tuple[Callable[[], str], list[int]]:
    """A call that fails so often before it succeeds, and its calls."""
    calls: list[int] = []

    def call() -> str:
        calls.append(1)
        if len(calls) <= times:
            raise error(f"call {len(calls)}")
        return "done"

    return call, calls


def test_what_fails_is_called_again_and_each_failure_is_told() -> None:
    call, calls = failing(3, OSError)
    failures: list[str] = []
    answer = retry(
        call,
        on=OSError,
        patience_s=10,
        first_pause_s=0.001,
        on_failure=lambda error, waited_s: failures.append(str(error)),
    )
    assert answer == "done"
    assert len(calls) == 4
    assert failures == ["call 1", "call 2", "call 3"]


def test_the_last_error_passes_once_patience_is_over() -> None:
    call, calls = failing(10**9, OSError)
    began = time.monotonic()
    with pytest.raises(OSError, match="call") as last:
        retry(call, on=OSError, patience_s=0.05, first_pause_s=0.001)
    assert time.monotonic() - began < 5
    assert str(last.value) == f"call {len(calls)}"
    assert len(calls) > 2


@pytest.mark.parametrize("error", [FileNotFoundError, ValueError])
def test_other_errors_pass_at_once(error: type[Exception]) -> None:
    call, calls = failing(1, error)
    with pytest.raises(error):
        retry(call, on=OSError, never=FileNotFoundError, patience_s=10)
    assert len(calls) == 1


def test_what_is_raised_on_a_failure_ends_the_wait() -> None:
    def stop(error: BaseException, waited_s: float) -> None:
        raise KeyError("stop") from error

    call, calls = failing(10, OSError)
    with pytest.raises(KeyError, match="stop"):
        retry(call, on=OSError, patience_s=10, on_failure=stop)
    assert len(calls) == 1


def test_pauses_double_up_to_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []
    monkeypatch.setattr(time, "sleep", drawn.append)
    call, _ = failing(6, OSError)
    retry(call, on=OSError, patience_s=10, first_pause_s=1.0, longest_pause_s=4.0)
    assert all(
        top / 2 <= pause <= top for top, pause in zip((1, 2, 4, 4, 4, 4), drawn, strict=True)
    )


def test_a_condition_is_asked_until_it_is_true_or_no_longer() -> None:
    answers = iter([False, False, True])
    assert wait_until(lambda: next(answers), patience_s=10, poll_s=0.001)
    assert wait_until(lambda: True, patience_s=0, poll_s=1)
    assert not wait_until(lambda: False, patience_s=0.01, poll_s=0.001)


def test_a_call_without_a_bound_is_given_one() -> None:
    assert bounded(lambda: 3, 10) == 3
    with pytest.raises(ZeroDivisionError):
        bounded(lambda: 1 // 0, 10)
    never = threading.Event()
    with pytest.raises(TimeoutError):
        bounded(never.wait, 0.01)
    never.set()
    assert in_background(lambda: "later").result(10) == "later"
