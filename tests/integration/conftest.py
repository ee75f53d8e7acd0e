"""Runs of the real command in processes of their own, on a Ray of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from orchestrator.ledger.events import FILE_NAME, read
from orchestrator.ledger.state import Record, State, replay

ROOT = Path(__file__).parents[2]
NATURAL = ROOT.parent / "shared" / "data" / "cifar10-train.parquet"
PATIENCE_S = 240


@dataclass
class Shell:
    """A user's directory: ``shell("sweep", "vit")`` is the command typed there."""

    cwd: Path
    env: dict[str, str]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The command in the background, the leader of a process group of its own."""
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *arguments],
            cwd=self.cwd,
            env=self.env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            # A shell's background jobs inherit an ignored SIGINT.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
        )
        self.started.append(process)
        return process

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """``(exit code, stdout, stderr)`` of the command, waited for."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=PATIENCE_S)
        return process.returncode, out, err

    def folder(self, name: str) -> Path:
        """The run's folder."""
        return self.cwd / "runs" / name

    def records(self, name: str) -> list[Record]:
        """The run's ledger so far."""
        path = self.folder(name) / FILE_NAME
        return list(read(path)) if path.exists() else []

    def state(self, name: str) -> State:
        """What the run's ledger says."""
        return replay(self.records(name))

    def wait_for(self, name: str, true: Callable[[State], bool]) -> State:
        """Until the ledger satisfies ``true``; fails after ``PATIENCE_S``."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            state = self.state(name)
            if true(state):
                return state
            time.sleep(0.1)
        raise AssertionError(f"the ledger of {name} never got there: {self.records(name)[-3:]}")

    def processes(self, name: str) -> list[int]:
        """Ids of the processes that this shell's runs started and that call themselves so."""
        mine = f"HOME={self.env['HOME']}".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                called = name.encode() in (process / "cmdline").read_bytes()
                if called and mine in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
        return found

    def reported_twice(self, name: str) -> list[tuple[str, int]]:
        """(trial, epoch) pairs that the ledger holds more than one report of."""
        seen = Counter(
            (record["trial"], record["epoch"])
            for record in self.records(name)
            if record["event"] == "reported"
        )
        return [pair for pair, times in seen.items() if times > 1]


def line_of(process: subprocess.Popen[str], text: str) -> str:
    """The first line of the process' talk that holds ``text``."""
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return line
    raise AssertionError(f"never said {text!r}; ended with {process.wait()}")


@pytest.fixture(scope="session")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Image stores, built once for all tests."""
    return tmp_path_factory.mktemp("pixels")


@pytest.fixture
def shell(tmp_path: Path, pixels: Path) -> Iterator[Shell]:
    """A shell whose Ray, home and runs are its own; what it started is gone afterwards."""
    home = tmp_path / "home"
    home.mkdir()
    env = {**os.environ, "HOME": str(home), "ORCHESTRATOR_DATA": str(pixels), "NO_COLOR": "1"}
    env.pop("MLFLOW_TRACKING_URI", None)
    env |= {"RAY_ADDRESS": "local", "PYTHONPATH": str(ROOT)}
    made = Shell(tmp_path, env)
    yield made
    for process in made.started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
