"""The ledger: the append-only record of every report and decision of a run.

One JSON object a line, one writer at a time (the dispatcher, while it lives). A line is written
with a single system call, so a process killed at any moment leaves whole lines and at most one
torn tail, which the next writer cuts off. Whatever can be asked of a run (what to resume, what
MLflow should show, what to compare) is a pure function of these lines: see
:func:`orchestrator.ledger.state.replay`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import lock_descriptor

from orchestrator.ledger.state import Record
from trainables.errors import UserError
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
    "verdict",  # what the run says of its claim; detail, recomputed from the other records
    "noted",  # anything else a reader should know; reason
    "closed",  # the run reached its end
)


class Ledger:
    """The one writer. Opening cuts a torn last line off; ``append`` is durable to a crash.

    Opening waits for the last writer's end: the dispatcher of a driver that was killed writes on
    until its Ray misses the driver, which takes seconds. Raises :class:`UserError` where the other
    writer stays. ``clock`` gives unix seconds.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._clock = path, clock
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
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)

    def append(self, event: str, *, trial: str | None = None, **fields: Any) -> Record:
        """Write one record and return it. Raises ``ValueError`` for an unknown event."""
        if event not in EVENTS:
            raise ValueError(f"unknown ledger event {event!r}; valid: {', '.join(EVENTS)}")
        record: Record = {"time": round(self._clock(), 6), "event": event}
        if trial is not None:
            record["trial"] = trial
        record.update({key: value for key, value in fields.items() if value is not None})
        line = json.dumps(record, separators=(",", ":"), allow_nan=True)
        self._file.write(line.encode() + b"\n")
        return record

    def close(self) -> None:
        """Flush to the disk and close."""
        os.fsync(self._file.fileno())
        self._file.close()


def read(path: Path) -> Iterator[Record]:
    """Whole records of a ledger file, in order; a torn last line is left out."""
    yield from tail(path, 0)[0]


def tail(path: Path, offset: int) -> tuple[list[Record], int]:
    """Whole records from byte ``offset`` on, and the offset to go on from."""
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    whole = data.rfind(b"\n") + 1
    return [json.loads(line) for line in data[:whole].splitlines()], offset + whole
