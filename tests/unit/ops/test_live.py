"""A run in the terminal: its view drawn, its events as lines, and how often."""

from __future__ import annotations

import io
import logging
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.ledger.events import Ledger, read
from orchestrator.ledger.state import Record, State, apply, replay
from orchestrator.ops.live import (
    HEARTBEAT_S,
    MOST_BARS,
    REDRAW_S,
    LedgerFollower,
    event_line,
    live_view,
    render,
)
from orchestrator.ops.status import summary, view
from tests.unit.ops.test_status import state, written


@pytest.mark.parametrize("width", [80, 200])
def test_families_stand_side_by_side(tmp_path: Path, width: int) -> None:
    out = io.StringIO()
    Console(file=out, width=width).print(render(view(state(tmp_path), running=True)))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].split() == ["vit", "resnet"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert rows["finished"] == ["1", "0"]
    assert rows["learning_rate"] == ["0.001", "0.001"]
    assert rows["best"] == ["val_top1", "0.9000", "0.0500"]
    text = " ".join(" ".join(lines).split())
    assert "8 of 72 epochs saved by pruning" in text
    assert "to go" in text


@pytest.mark.parametrize("width", [80, 200])
def test_a_terminal_has_a_bar_of_the_run_and_one_of_each_epoch(tmp_path: Path, width: int) -> None:
    run = view(state(tmp_path), running=True)
    since = run.running[1].since
    assert since is not None
    out = io.StringIO()
    Console(file=out, width=width).print(render(run, now=since + 5))
    whole, resnet, vit, facts = out.getvalue().splitlines()[:4]
    assert max(map(len, out.getvalue().splitlines())) <= width
    assert whole.split()[0] == "all"
    assert whole.rstrip().endswith("33 %")  # 9 + 9 + 4 + 2 of 72
    assert vit.split()[:3] == ["vit-0002", "epoch", "5/9"]
    assert "5 s of ~10 s, best 0.0500" in vit
    assert resnet.split()[:3] == ["resnet-0000", "epoch", "3/9"]
    assert facts.startswith("best so far 0.9000 by vit-0000; ")
    assert facts.rstrip().endswith("to go")
    assert vit.count("━") >= width / 6  # half of the bar


def test_many_running_trials_leave_room(tmp_path: Path) -> None:
    run = view(state(tmp_path), running=True)
    crowded = replace(run, running=run.running * 20)
    out = io.StringIO()
    Console(file=out, width=100).print(render(crowded, now=0.0))
    assert out.getvalue().count(" epoch ") == MOST_BARS
    assert f"and {40 - MOST_BARS} more trials" in out.getvalue()


def test_every_event_worth_a_line_has_one(tmp_path: Path) -> None:
    recorded, lines = State(), list[str]()
    frozen = {"winners": {"vit": {"trial": "vit-0000", "val_top1": 0.9}}}
    final = {"assignment": {"epochs": 9}, "axes": {}}
    more: list[Record] = [
        {"time": 2.0, "event": "frozen", "detail": frozen},
        {"time": 2.0, "event": "submitted", "trial": "f", "family": "vit", "stage": "final",
         "detail": final},
        {"time": 3.0, "event": "test_opened", "detail": frozen},
        {"time": 4.0, "event": "finished", "trial": "f", "detail": {"test": {"top1": 0.8}}},
        {"time": 5.0, "event": "failed", "trial": "vit-0003", "reason": "diverged: at step 3"},
    ]  # fmt: skip
    for record in [*read(written(tmp_path)), *more]:
        apply(recorded, record)
        lines += filter(None, [event_line(record, recorded)])
    assert lines.pop(0) == "vit-0000       the first epoch is trained: val_top1 0.1000"
    assert lines[0] == "vit-0000       finished epoch 9/9    best val_top1 0.9000"
    assert lines[1].startswith("vit-0001       pruned   epoch 1/9")
    assert lines[2:5] == ["something else", "winners frozen: vit-0000 (0.9000)",
                          "the test split is opened"]  # fmt: skip
    assert "test top1 0.8000" in lines[5]
    assert lines[6].endswith("(diverged: at step 3)")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_without_a_terminal_a_line_an_event_and_a_heartbeat(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "orchestrator.ops.live")
    clock = Clock()
    follower = LedgerFollower(tmp_path / "ledger.jsonl", console=None, clock=clock)
    clock.now += 2 * HEARTBEAT_S
    follower.catch_up()
    assert caplog.messages == []  # nothing is said of a run that has not begun
    path = written(tmp_path)
    follower.catch_up()
    assert [line.split()[0] for line in caplog.messages] == ["vit-0000"] * 2 + [
        "vit-0001",
        "something",
    ]
    caplog.clear()
    for _ in range(65):  # seconds
        clock.now += 1
        follower.catch_up()
    assert caplog.messages == [summary(view(replay(read(path)), running=True))] * 2
    assert HEARTBEAT_S == 30


def test_of_a_run_that_goes_on_only_what_is_new_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "orchestrator.ops.live")
    with closing(Ledger(written(tmp_path))) as ledger, live_view(tmp_path):
        ledger.append("noted", reason="it goes on")
    assert caplog.messages == ["it goes on"]


def test_a_terminal_is_redrawn_at_most_twice_a_second(tmp_path: Path) -> None:
    clock, out = Clock(), io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    follower = LedgerFollower(tmp_path / "ledger.jsonl", console=console, clock=clock)
    written(tmp_path)
    for _ in range(100):
        clock.now += 0.1
        follower.catch_up()
    follower.catch_up(last=True)
    draws = out.getvalue().count("best val_top1")
    assert 10 <= draws <= 10 / REDRAW_S + 1  # and once more at the end
    assert REDRAW_S >= 0.5
