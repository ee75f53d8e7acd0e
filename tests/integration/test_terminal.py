"""What people see in a real terminal of 80 and of 200 columns: a long step before the first epoch,
the live view of a run, and ``status --watch``. The captures stay in ``artifacts/``."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from orchestrator.ledger.events import Ledger
from orchestrator.ledger.replication import LOCK_FILE
from tests.integration.conftest import ROOT
from tests.integration.test_data_prepare import pictures
from tests.unit.ops.test_status import written
from trainables.storage.waiting import wait_until

TMUX = shutil.which("tmux")
CAPTURES = ROOT / "artifacts"
PATIENCE_S = 120.0
BAR = "━"
WIDTHS = (80, 200)

pytestmark = pytest.mark.skipif(TMUX is None, reason="tmux is not installed")

# The command line's own handlers, a real step over pictures slowed down, then a run's live view.
RUN = """
import logging, sys, time
from pathlib import Path
from orchestrator.cli.options import draw_steps, log_to_stderr
from orchestrator.ledger.events import Ledger
from orchestrator.ops.live import live_view
from trainables.config import DataSpec
from trainables.data import writing
from trainables.data.build import prepare
source, stores, run = map(Path, sys.argv[1:])
log_to_stderr()
draw_steps()
digests_of = writing.digests_of
def slow(images):
    time.sleep(1.0)
    return digests_of(images)
writing.digests_of = slow
prepare(DataSpec(source=str(source), folder=str(stores)))
with live_view(run):
    ledger = Ledger(run / "ledger.jsonl")
    ledger.append("noted", reason="the run goes on")
    time.sleep(2.0)
    logging.getLogger("orchestrator.engine").info("a line that scrolls by")
    input()
"""


OF_A_TERMINAL = ("TMUX", "COLUMNS", "LINES")  # which this one says for itself


class Terminal:
    """A tmux of its own with one window of ``width`` columns that runs ``command``."""

    def __init__(self, folder: Path, width: int, command: list[str]) -> None:
        assert TMUX is not None
        self._tmux = [TMUX, "-f", "/dev/null", "-S", str(folder / "tmux")]
        self.width = width
        text = f"{shlex.join(command)}; echo ended; cat"
        environment = {
            **{name: value for name, value in os.environ.items() if name not in OF_A_TERMINAL},
            "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8", "TERM": "xterm-256color",
        }  # fmt: skip
        size = ("-x", str(width), "-y", "45")
        subprocess.run(
            [*self._tmux, "-u", "new-session", "-d", *size, text], env=environment, check=True
        )

    @property
    def lines(self) -> list[str]:
        """What stands in the window."""
        shown = [*self._tmux, "capture-pane", "-p"]
        return subprocess.run(shown, capture_output=True, text=True, check=True).stdout.splitlines()

    def wait_for(self, *words: str) -> list[str]:
        """The window's lines once each of ``words`` is in it."""
        assert wait_until(
            lambda: all(word in "\n".join(self.lines) for word in words),
            patience_s=PATIENCE_S, poll_s=0.2,
        ), "\n".join(self.lines)  # fmt: skip
        return self.lines

    def keep(self, name: str) -> None:
        """Leave what stands in the window among the captures."""
        CAPTURES.mkdir(exist_ok=True)
        file = CAPTURES / f"terminal-{name}-{self.width}.txt"
        file.write_text("\n".join(line.rstrip() for line in self.lines).rstrip() + "\n")
        print(f"kept {file}")

    def press(self, key: str) -> None:
        subprocess.run([*self._tmux, "send-keys", key], check=True)

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], check=False)


@pytest.fixture(params=WIDTHS)
def width(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def line_with(lines: list[str], words: str) -> str:
    return next(line for line in lines if words in line)


def test_a_long_step_and_a_run_have_bars(tmp_path: Path, width: int) -> None:
    source = pictures(tmp_path / "set", 600)
    run = tmp_path / "run"
    ledger = written(run)
    command = [sys.executable, "-c", RUN, str(source), str(tmp_path / "stores"), str(run)]
    with closing(Terminal(tmp_path, width, command)) as terminal:
        lines = terminal.wait_for("images read", "to go")
        step = line_with(lines, "images read")
        terminal.keep("store")
        assert BAR in step
        assert "of 1,200" in step
        assert "/s, " in step
        assert all(len(line) <= width for line in lines)

        lines = terminal.wait_for("best so far", "a line that scrolls by")
        terminal.keep("run")
        assert lines.index("a line that scrolls by") < lines.index(line_with(lines, "best so far"))
        assert line_with(lines, "all ").split()[-2:] == ["33", "%"]
        assert "best so far 0.9000 by vit-0000" in line_with(lines, "best so far")
        assert "to go" in line_with(lines, "best so far")
        epoch = line_with(lines, "vit-0002")
        assert "epoch 5/9" in epoch
        assert epoch.count(BAR) > width / 4
        assert all(len(line) <= width for line in lines)
        assert ledger.exists()
        terminal.press("Enter")
        terminal.wait_for("ended")


def test_status_follows_a_run_until_it_ends(tmp_path: Path, width: int) -> None:
    storage = tmp_path / "runs"
    run = storage / "r"
    ledger = written(run)
    command = [sys.executable, "-m", "orchestrator", "status", "--watch", "--storage", str(storage)]
    with (run / LOCK_FILE).open("wb") as lock, closing(Terminal(tmp_path, width, command)) as shell:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as the process has that carries the run out
        assert "epoch 3/9" in line_with(shell.wait_for("best so far", "resnet-0000"), "resnet-0000")
        with closing(Ledger(ledger)) as records:
            metrics = {"val_top1": 0.95, "train_seconds": 8.0, "eval_seconds": 2.0}
            records.append("reported", trial="resnet-0000", attempt=1, epoch=3, metrics=metrics)
        lines = shell.wait_for("best so far 0.9500 by resnet-0000")
        shell.keep("watch")
        assert "epoch 4/9" in line_with(lines, "resnet-0000")
        assert all(len(line) <= width for line in lines)
        fcntl.flock(lock, fcntl.LOCK_UN)
        lines = shell.wait_for("r, interrupted", "next: ", "ended")
        assert not any("best so far" in line for line in lines)
