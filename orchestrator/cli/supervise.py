"""A command that starts a run is carried out by a child process; this one waits for its end.

Ray's processes are children of the child, in a session of their own: a signal to the process group
of the command (Ctrl-C, ``timeout``, systemd, Slurm) reaches this process alone, which hands it on
to the child, so that Ray is still there for the run's last record. Where Ray ends the child, as it
does when it is lost, or the system does, this process says so, completes the ledger with a
``stopped`` record and ends with 130. Whatever of Ray outlives the child is ended. If this process
is killed, the child dies with it.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from orchestrator.ledger.events import FILE_NAME, Ledger, read
from orchestrator.ledger.session import is_running
from trainables.errors import EXIT_CODES, RESUMABLE
from trainables.storage.object_storage import ORIGIN_FILE
from trainables.storage.waiting import wait_until

RUNS = (
    "demo",
    "sweep",
    "tournament",
    "screen",
    "claims",
    "reproduce",
)  # commands that may start a run
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ENDS = ("stopped", "closed")
LEFTOVER_PATIENCE_S = 5.0
PR_SET_PDEATHSIG = 1  # of prctl(2)

log = logging.getLogger(__name__)

_announcements: int | None = None  # where the child tells of its run


def starts_run(arguments: Sequence[str]) -> bool:
    """Whether a command line may start a run in this process."""
    words = [word for word in arguments if not word.startswith("-")]
    looks_only = {"--dry-run", "--help", "-h"} & set(arguments)
    return bool(words) and words[0] in RUNS and not looks_only


def announce(run_folder: Path) -> None:
    """Tell the process that waits, if there is one, which run this process carries out now."""
    if _announcements is not None:
        os.write(_announcements, f"{run_folder.absolute()}\n".encode())


def in_child() -> int | None:
    """Fork: ``None`` in the child, which goes on with the command; its exit code here, once it has
    ended. ``None`` as well where this process has threads, which would not survive a fork."""
    global _announcements
    if threading.active_count() > 1:
        return None
    reading_end, telling = os.pipe()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        os.close(reading_end)
        _announcements = telling
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before that
            os._exit(RESUMABLE)
        os.setsid()
        return None
    os.close(telling)
    return _wait(child, reading_end)


def _wait(child: int, reading_end: int) -> int:
    def hand_on(number: int, frame: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # nohup
            signal.signal(number, hand_on)
    status = os.waitpid(child, 0)[1]
    code = os.waitstatus_to_exitcode(status)
    end_session(child)
    with os.fdopen(reading_end, encoding="utf-8", errors="surrogateescape") as lines:
        runs = [Path(line) for line in lines.read().splitlines()]
    for number, handler in before.items():
        signal.signal(number, handler)
    if code not in EXIT_CODES:
        cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        log.error(
            f"error: Ray or the system ended this command ({cause}); nothing is lost: the same "
            "command goes on where it stopped"
        )
        code = RESUMABLE
    if code == RESUMABLE and runs:
        complete(runs[-1], "the process that carried it out was lost")
    return code


def end_session(session: int) -> None:
    """End every process of a session whose leader has gone: Ray's own leave within seconds, unless
    one hangs in its own exit."""
    if wait_until(lambda: not _members(session), patience_s=LEFTOVER_PATIENCE_S, poll_s=0.1):
        return
    for process in _members(session):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _members(session: int) -> list[int]:
    """Processes of the session that are alive."""
    members = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] not in "ZX":
                members.append(int(folder.name))
    return members


def complete(run_folder: Path, reason: str) -> None:
    """End the ledger of a run whose process could not: with a ``stopped`` record, unless it ends
    already, is another process's by now, cannot be written, or is kept in object storage, which
    alone says how far it is."""
    path = run_folder / FILE_NAME
    with suppress(Exception):  # the next session goes on from any ledger
        remote = (run_folder / ORIGIN_FILE).exists()
        if not path.exists() or remote or is_running(run_folder):
            return
        ledger = Ledger(path)
        events = [record["event"] for record in read(path)]
        if events and events[-1] not in ENDS:
            ledger.append("stopped", reason=reason)
        ledger.close()
