"""Two commands side by side on a machine whose speed drifts: they take turns, a few seconds each.

While one is held (SIGSTOP, with all the processes it has started) the other has the machine, so
that whatever else happens there meets both alike. Each has a clock of its own that stands still
while it is held.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

TURN_S = 3.0
LOOK_S = 0.02


class Side:
    """A command under way, from the moment it is made."""

    def __init__(self, command: Sequence[str], folder: Path, env: Mapping[str, str]) -> None:
        self.command, self._log = command, folder / f"side-{time.monotonic_ns()}.log"
        self._held: list[tuple[float, float]] = []
        self._held_since: float | None = None
        self.ended: float | None = None
        self.spawned = time.time()
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, cwd=folder, env=dict(env), stdout=log, stderr=subprocess.STDOUT
            )

    def running(self) -> bool:
        """Whether it has not ended; notes when it did."""
        if self.ended is None and self._process.poll() is not None:
            self.ended = time.time()
        return self.ended is None

    def hold(self) -> None:
        """Stop all its processes where they are."""
        self._send(signal.SIGSTOP)
        self._send(signal.SIGSTOP)  # those that were being started meanwhile
        self._held_since = time.time()

    def go_on(self) -> None:
        """Let them go on, if they are held."""
        if self._held_since is not None:
            self._held.append((self._held_since, time.time()))
            self._held_since = None
            self._send(signal.SIGCONT)

    def kill(self) -> None:
        """End all its processes."""
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        for pid in _family(self._process.pid) if self.running() else ():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def own(self, at: float) -> float:
        """Unix time ``at`` by a clock that stands still while the command is held."""
        return at - sum(min(at, end) - begin for begin, end in self._held if begin < at)

    def wait(self) -> None:
        """Until it has ended. Raises ``RuntimeError`` with the end of its talk if it failed."""
        while self.running():
            time.sleep(LOOK_S)
        if self._process.returncode:
            talk = self._log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{' '.join(self.command)}: {talk}")


def _family(pid: int) -> list[int]:
    """The process and all that it and its children have started."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True)
    children: dict[int, list[int]] = {}
    for line in listed.stdout.splitlines():
        child, parent = map(int, line.split())
        children.setdefault(parent, []).append(child)
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def take_turns(held: Side, going: Side) -> None:
    """One at a time until either has ended, then the other goes on alone; both have ended when this
    returns. ``held`` is held already."""
    try:
        while held.running() and going.running():
            turn_ends = time.monotonic() + TURN_S
            while going.running() and time.monotonic() < turn_ends:
                time.sleep(LOOK_S)
            if going.running():
                going.hold()
            held.go_on()
            held, going = going, held
    finally:
        held.go_on()
        going.go_on()
    try:
        # first the one that has ended: the other may wait for it for ever, where it failed
        for side in sorted((held, going), key=Side.running):
            side.wait()
    except RuntimeError:
        held.kill()
        going.kill()
        raise
