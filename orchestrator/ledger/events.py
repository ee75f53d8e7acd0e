"""The ledger: the append-only record of every report and decision of a run.

One JSON object a line, one writer at a time (the dispatcher, while it lives). A line is written
with a single system call, so a process killed at any moment leaves whole lines and at most one
torn tail, which the next writer cuts off; a line that a full disk takes in part is cut off at
once. Whatever can be asked of a run (what to resume, what
MLflow should show, what to compare) is a pure function of these lines: see
:func:`orchestrator.ledger.state.replay`.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from filelock import lock_descriptor

from orchestrator.ledger.state import Record
from trainables.errors import StorageError, UserError, one_line
from trainables.storage.waiting import wait_until

SCHEMA = 1
FILE_NAME = "ledger.jsonl"
WRITER_PATIENCE_S = 30.0

EVENTS = (
    "created",  # first line of a run; detail = header (spec, hash, environment, dataset)
    "extended",  # the same run asked for more trials or another budget; detail = the new header
    "submitted",  # a trial to train; detail = assignment and axes, unless they are drawn later
    "drawn",  # its recipe was suggested by what the others had shown; detail = assignment and axes
    "started",  # a slot took an attempt of the trial
    "reported",  # one epoch done; metrics, checkpoint
    "promoted",  # passed a rung
    "pruned",  # stopped at a rung; reason holds the cut-off
    "audited",  # would have been pruned at that rung, is finished all the same to measure pruning
    "paused",  # waits at a rung, its slot free, until it is promoted or pruned
    "preempted",  # the trial's worker was told to leave; checkpoint, if it could write one
    "finished",  # reached its last epoch
    "failed",  # ended by an error; reason
    "stopped",  # the run was interrupted; resumable
    "resumed",  # an interrupted run went on
    "frozen",  # the search is over; detail = the winners by recipe hash, before any final
    "test_opened",  # the test split is about to be read; openings = which one of the split it is
    "speed_measured",  # how fast a final's model is; detail, empty with the reason why not
    "measured",  # how fast a screen's candidate is; detail
    "sized",  # from how many training images each candidate of a screen is judged; train_images
    "screened",  # the probes of a screen's candidate; detail, or the reason why there are none
    "verdict",  # what the run says of its claim; detail, recomputed from the other records
    "noted",  # anything else a reader should know; reason
    "closed",  # the run reached its end
)


class Ledger:
    """The one writer. Opening cuts a torn last line off; ``append`` is durable to a crash.

    Opening waits for the last writer's end: the dispatcher of a driver that was killed writes on
    until its Ray misses the driver, which takes seconds. Raises :class:`UserError` where the other
    writer stays, where a line is damaged, and where a newer version wrote the ledger: then nothing
    is written. ``clock`` gives unix seconds.

    ``problem`` is why a record could not be written. No other one is from then on, lest a later
    one lack what it rests on; but ``stopped``, which rests on nothing.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._clock = path, clock
        self.problem: str | None = None
        self._file = path.open("ab", buffering=0)
        if not wait_until(  # held until the file is closed or this process dies
            lambda: lock_descriptor(self._file.fileno(), blocking=False),
            patience_s=WRITER_PATIENCE_S,
            poll_s=0.05,
        ):
            raise UserError(
                f"one process at a time may write a ledger; another one still writes {path} "
                f"after {WRITER_PATIENCE_S:.0f} s. Fix: wait for its end, or --name OTHER"
            )
        try:
            self._end = tail(path, 0)[1]
        except UserError:
            self._file.close()
            raise
        os.truncate(path, self._end)

    def append(self, event: str, *, trial: str | None = None, **fields: Any) -> Record:
        """Write one record, whole or not at all, and return it. Raises ``ValueError`` for an
        unknown event and ``StorageError`` where there is no room, or was none before."""
        if event not in EVENTS:
            raise ValueError(f"unknown ledger event {event!r}; valid: {', '.join(EVENTS)}")
        record: Record = {"time": round(self._clock(), 6), "event": event}
        if trial is not None:
            record["trial"] = trial
        record.update({key: value for key, value in fields.items() if value is not None})
        line = json.dumps(record, separators=(",", ":"), allow_nan=True)
        if self.problem is not None and event != "stopped":
            raise StorageError(self.problem)
        self._write(line.encode() + b"\n")
        return record

    def _write(self, line: bytes) -> None:
        """All of ``line`` or none of it."""
        try:
            written = self._file.write(line)
            reason = f"only {written} of {len(line)} bytes were written"
        except OSError as error:
            written, reason = None, one_line(error)
        if written == len(line):
            self._end += written
            return
        self.problem = f"the ledger {self.path} cannot be written ({reason}). Fix: make room there"
        os.ftruncate(self._file.fileno(), self._end)
        raise StorageError(self.problem)

    def close(self) -> None:
        """Flush to the disk and close."""
        os.fsync(self._file.fileno())
        self._file.close()


def read(path: Path) -> Iterator[Record]:
    """Whole records of a ledger file, in order; a torn last line is left out. Raises
    :class:`UserError` as :func:`tail` does."""
    yield from tail(path, 0)[0]


def tail(path: Path, offset: int) -> tuple[list[Record], int]:
    """Whole records from byte ``offset`` on, and the offset to go on from.

    Raises :class:`UserError` where a line is no record, and where a newer version wrote the file.
    """
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    whole = data.rfind(b"\n") + 1
    records: list[Record] = []
    for line in data[:whole].split(b"\n")[:-1]:
        record = _record(line)
        if record is None:
            number = len(records) + 1 + (_lines_before(path, offset) if offset else 0)
            raise UserError(
                f"every line of a ledger is a record; {path}, line {number}, is damaged. "
                f"Fix: orchestrator doctor --repair {path.parent.name}, or a copy of the file"
            )
        records.append(record)
    if offset == 0:
        _refuse_newer(path, records)
    return records, offset + whole


def _lines_before(path: Path, offset: int) -> int:
    with path.open("rb") as file:
        return file.read(offset).count(b"\n")


def _record(line: bytes) -> Record | None:
    """The record in ``line``; ``None`` where it holds none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # also bytes that are no text
        return None
    if not isinstance(record, dict) or not isinstance(record.get("event"), str):
        return None
    return record if isinstance(record.get("time"), int | float) else None


def _refuse_newer(path: Path, records: list[Record]) -> None:
    for number, record in enumerate(records, 1):
        detail = record.get("detail")
        if record["event"] not in ("created", "extended") or not isinstance(detail, dict):
            continue
        schema = detail.get("schema", SCHEMA)
        if not isinstance(schema, int) or schema > SCHEMA:
            raise UserError(
                f"the ledger {path} has schema {schema} (line {number}); this version reads "
                f"{SCHEMA} and older. Fix: use the version that wrote it, or --name OTHER"
            )


@dataclass(frozen=True)
class Repair:
    """What :func:`repair` did: the ledger's ``kept`` records, the ``dropped`` lines after them, and
    the whole damaged file, ``backup``; ``None`` where nothing was damaged."""

    kept: int
    dropped: int
    backup: Path | None


def repair(path: Path) -> Repair:
    """Cut the ledger at its last record before a damaged line; the damaged file stays beside it.

    Raises :class:`UserError` where a newer version wrote it, or no record is left.
    """
    lines = path.read_bytes().split(b"\n")
    tail_lines = 1 if lines[-1] else 0
    records = list(takewhile(lambda record: record is not None, map(_record, lines[:-1])))
    kept, dropped = len(records), len(lines) - 1 - len(records) + tail_lines
    if not kept:
        raise UserError(f"no record of {path} is left. Fix: put back a copy, or --name OTHER")
    _refuse_newer(path, [record for record in records if record is not None])
    if not dropped:
        return Repair(kept, 0, None)
    names = (path.with_name(f"{path.stem}.damaged-{n}{path.suffix}") for n in count(1))
    backup = next(name for name in names if not name.exists())
    shutil.copy2(path, backup)
    good = path.with_name(f".{path.name}.repaired")
    with good.open("wb") as file:
        file.writelines(line + b"\n" for line in lines[:kept])
        file.flush()
        os.fsync(file.fileno())
    good.replace(path)
    return Repair(kept, dropped, backup)
