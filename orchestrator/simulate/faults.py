"""What goes wrong in a simulated run, and a ledger whose writer, disk and clock fail on time."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.ledger.events import Ledger
from orchestrator.ledger.state import Record


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong. Shares are of reports, or of epochs, drawn from ``seed``.

    A ``late`` report arrives up to ``late_s`` later, a ``lost`` one is sent again after
    ``resend_s``, a ``repeated`` one arrives a second time. A worker that ``dies`` or ``hangs``
    (until the epoch's time limit) is started again after ``restart_s``; a node that ``goes`` comes
    back after ``node_back_s``. ``crashes``: the driver dies once the ledger has so many records,
    and the same command is typed again. ``short_writes``: the disk takes half of the ledger's next
    record once it has so many, and the run stops until the same command is typed. ``clock_jumps``:
    from so many records on, the wall clock is set by so many seconds. ``slots_ready_s``: when each
    slot first asks, at once by default.
    """

    seed: int = 0
    late: float = 0.0
    late_s: float = 30.0
    lost: float = 0.0
    resend_s: float = 120.0
    repeated: float = 0.0
    dies: float = 0.0
    hangs: float = 0.0
    restart_s: float = 10.0
    goes: float = 0.0
    node_back_s: float = 60.0
    crashes: tuple[int, ...] = ()
    short_writes: tuple[int, ...] = ()
    clock_jumps: tuple[tuple[int, float], ...] = ()
    slots_ready_s: tuple[float, ...] = ()


class DriverDied(Exception):
    """The simulated driver's end, in the middle of whatever it did."""


class FillingDisk(io.FileIO):
    """A file on a disk that takes half of the next write when it ``is_full``."""

    is_full = False

    def write(self, data: Any, /) -> int:
        """The bytes that were taken."""
        taken = super().write(data[: len(data) // 2] if self.is_full else data)
        self.is_full = False
        return taken


class MortalLedger(Ledger):
    """A ledger whose writer, disk or clock fails when its file holds so many records, as ``faults``
    have it. ``clock`` gives unix seconds by a clock that nobody sets."""

    def __init__(self, path: Path, faults: Faults, *, clock: Callable[[], float]) -> None:
        super().__init__(path, clock=lambda: clock() + self._set_by_s())
        self._faults = faults
        watched = faults.crashes or faults.short_writes or faults.clock_jumps
        self._records = path.read_bytes().count(b"\n") if watched else 0
        if faults.short_writes:
            self._file.close()
            self._file = FillingDisk(path, "ab")

    def _set_by_s(self) -> float:
        jumps = self._faults.clock_jumps
        return sum(seconds for records, seconds in jumps if records <= self._records)

    def append(self, event: str, *, trial: str | None = None, **fields: Any) -> Record:
        """As of the ledger. Raises ``DriverDied``, and ``StorageError`` where the disk is full."""
        if isinstance(self._file, FillingDisk) and event != "stopped":
            self._file.is_full = self._records in self._faults.short_writes
        record = super().append(event, trial=trial, **fields)
        self._records += 1
        if self._records in self._faults.crashes:
            raise DriverDied
        return record
