"""When slots start: all at once on a cluster, two cores each on a Ray of our own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.engine import slots
from orchestrator.engine.dispatcher import SlotHealth
from orchestrator.spec.named_sweeps import family_sweep
from orchestrator.spec.run import RunSpec

PATIENCE_S = 10.0


class Actor:
    """Ray's handles, as far as a pool asks for them."""

    def options(self, **_: Any) -> Actor:
        return self

    def remote(self, *_: Any, **__: Any) -> Actor:
        return self


class Start:
    """A pool whose slots are threads that wait; ``heard`` of them have asked for work."""

    def __init__(self, folder: Path, num_slots: int) -> None:
        self.heard = 0
        self.fitted: list[str] = []
        self._over = threading.Event()
        spec = RunSpec(name="r", sweeps=(family_sweep("vit"),), storage=str(folder))
        self.pool = slots.SlotPool(spec, folder, "s", num_slots, self._fit)

    def _fit(self, slot: str, *_: Any) -> None:
        self.fitted.append(slot)
        self._over.wait(PATIENCE_S)

    def answer(self, _: slots.ActorClient, method: str, *__: Any, **___: Any) -> SlotHealth:
        if method == "stop":
            self._over.set()
        return SlotHealth(heard=self.heard, silent_s=0.0, over=None)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Start]:
    def made(*, num_slots: int, ours: bool, cores: int) -> Start:
        one = Start(tmp_path, num_slots)
        monkeypatch.setattr(slots.attach, "is_ours", lambda: ours)
        monkeypatch.setattr(slots, "usable_cores", lambda: cores)
        monkeypatch.setattr(slots, "POLL_S", 0.01)
        fake = {"remote": lambda _: Actor(), "kill": lambda _: None}
        errors = slots.ray.exceptions
        monkeypatch.setattr(slots, "ray", SimpleNamespace(**fake, exceptions=errors))
        monkeypatch.setattr(slots.ActorClient, "__call__", lambda *call, **_: one.answer(*call))
        one.pool.start()
        return one

    return made


def until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


@pytest.mark.parametrize(
    ("ours", "cores", "at_once"), [(False, 1, 4), (True, 1, 1), (True, 2, 1), (True, 4, 2),
                                   (True, 64, 4)],
)  # fmt: skip
def test_as_many_start_at_once_as_there_are_cores_for(
    start: Callable[..., Start], ours: bool, cores: int, at_once: int
) -> None:
    one = start(num_slots=4, ours=ours, cores=cores)
    assert until(lambda: len(one.fitted) == at_once)
    time.sleep(0.1)  # ten polls, in which no other starts
    assert one.pool.alive() == len(one.fitted) == at_once
    for one.heard in range(1, 5):
        assert until(lambda: len(one.fitted) == min(4, at_once + one.heard))
    assert sorted(one.fitted) == [f"s-{place}.0" for place in range(4)]
    one.pool.abandon()
    assert one.pool.alive() == 0


def test_a_pool_that_is_given_up_starts_no_other_slot(start: Callable[..., Start]) -> None:
    one = start(num_slots=3, ours=True, cores=2)
    assert until(lambda: one.fitted == ["s-0.0"])
    one.pool.abandon()
    one.heard = 1
    time.sleep(0.1)
    assert one.fitted == ["s-0.0"]
    assert one.pool.alive() == 0


def test_a_slot_that_never_asks_keeps_the_others_waiting_for_so_long_only(
    start: Callable[..., Start], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "TURN_PATIENCE_S", 0.05)
    one = start(num_slots=3, ours=True, cores=2)
    assert until(lambda: len(one.fitted) == 3)
    assert one.heard == 0
    one.pool.abandon()
