"""Long steps before the first epoch: their rates, lines and bars."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import suppress

import pytest
from rich.console import Console

from orchestrator.ops.progress import StepBars
from trainables.progress import LOG_EVERY_S, StepProgress, long_step, watch_steps

log = logging.getLogger("trainables.test")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def nobody_watches() -> Iterator[None]:
    watch_steps(None)
    yield
    watch_steps(None)


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (StepProgress("n", "", 1200, 5000, 1200, 4.0), "1,200 of 5,000, 300/s, 13 s to go"),
        (StepProgress("n", "", 5000, 5000, 5000, 10.0), "5,000 of 5,000, 500/s"),
        (StepProgress("n", "", 2, 12, 2, 60.0), "2 of 12, 2.0/min, 5 min to go"),
        (StepProgress("n", "MB", 9.0, 17.5, 5.0, 2.0), "9.0 of 17.5 MB, 2.5 MB/s, 3 s to go"),
        (StepProgress("n", "MB", 3.0, None, 3.0, 2.0), "3.0 MB, 1.5 MB/s"),
        (StepProgress("n", "", 5, 10, 5, 0.1), "5 of 10"),
        (StepProgress("n", "", 0, 10, 0, 9.0), "0 of 10"),
    ],
)  # fmt: skip
def test_a_step_says_rate_and_time_to_go_where_they_can_be_told(
    step: StepProgress, text: str
) -> None:
    assert step.text == text


def test_without_a_watcher_a_line_each_tenth_or_ten_seconds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "trainables.test")
    clock = Clock()
    with long_step(log, "images read", 1000, clock=clock) as advance:
        for done in range(1, 1001):
            clock.now += 0.01
            advance(done)
    assert [line.split()[2] for line in caplog.messages] == [f"{n}00" for n in range(1, 10)]
    assert caplog.messages[-1] == "images read: 900 of 1,000, 100/s, 1 s to go"
    caplog.clear()
    clock.now = 0.0
    with long_step(log, "file", None, unit="MB", clock=clock) as advance:
        for done in range(1, 31):
            clock.now += 1.0
            advance(done)
    assert len(caplog.messages) == 30 / LOG_EVERY_S


def test_whoever_watches_hears_each_advance_and_the_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "trainables.test")
    heard: list[float | None] = []
    watch_steps(lambda step: heard.append(None if step is None else step.done))
    with suppress(RuntimeError), long_step(log, "images read", 3) as advance:
        advance(1)
        advance(2)
        raise RuntimeError
    assert heard == [1, 2, None]
    assert caplog.messages == []


def test_a_bar_shows_name_share_and_text_in_the_width_there_is() -> None:
    for width in (80, 200):
        out = io.StringIO()
        bars = StepBars(Console(file=out, width=width, force_terminal=True, color_system=None))
        bars(StepProgress("images [b]read", "", 900, 1000, 900, 9.0))
        bars(None)
        line = out.getvalue().replace("\x1b", "\n").splitlines()[-3:]
        text = next(part for part in line if "images [b]read" in part)
        assert text.rstrip().endswith("900 of 1,000, 100/s, 1 s to go")
        assert text.count("━") > width / 4
