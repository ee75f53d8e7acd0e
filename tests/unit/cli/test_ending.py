"""However a command ends: one line, and an exit code of the list."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.cli import main as cli
from orchestrator.cli import supervise
from orchestrator.ledger.events import Ledger, read
from orchestrator.process import module_environment
from trainables.errors import EXIT_CODES, ClusterLost, StorageError, UserError


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("a; b. Fix: c", exit_code=3), 3, "error: a; b. Fix: c"),
        (StorageError("the bucket is gone"), 130, "the same command goes on"),
        (ClusterLost("Ray is lost"), 130, "the same command goes on"),
        (OSError(errno.ENOSPC, "No space left on device", "f"), 130, "'f': No space left"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 130, "Disk quota exceeded"),
        (PermissionError(errno.EACCES, "Permission denied", "f"), 2, "'f': Permission denied"),
        (FileNotFoundError(errno.ENOENT, "No such file", "f"), 2, "'f': No such file"),
        (MemoryError(), 2, "no memory left"),
        (KeyError("x"), 2, "a bug of this program"),
        (RecursionError("deep"), 2, "a bug of this program"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (SystemExit(1), 2, ""),
        (SystemExit(None), 0, ""),
    ],
)
def test_any_error_is_one_line_and_a_code_of_the_list(
    error: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli.group, "main", fails)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    with pytest.raises(SystemExit) as ended:
        cli.main(["status"])
    for number, handler in before.items():
        signal.signal(number, handler)
    err = capsys.readouterr().err
    assert (ended.value.code or 0) == code
    assert code in EXIT_CODES
    assert said in err
    assert err.count("\n") == (1 if said else 0)
    assert "Traceback" not in err
    if "bug" in said:
        (file,) = tmp_path.glob("orchestrator-error-*.txt")
        assert str(file) in err
        assert "Traceback" in file.read_text()


def test_a_terminal_of_few_letters_prints_what_it_can(tmp_path: Path) -> None:
    spec = "import sys; from orchestrator.process import prepare_process; prepare_process()\n"
    ran = subprocess.run(
        [sys.executable, "-c", f"{spec}print('Mäuse 猫')"],
        env=module_environment(PYTHONIOENCODING="latin-1"),
        capture_output=True,
        check=True,
    )
    assert ran.stdout.decode("latin-1") == "Mäuse \\u732b\n"


CHILD = """
import logging, os, signal, subprocess, sys, time
from pathlib import Path
from orchestrator.cli import supervise
from orchestrator.cli.options import log_to_stderr
log_to_stderr()
code = supervise.in_child()
if code is not None:
    sys.exit(code)
supervise.announce(Path(sys.argv[1]))
signal.signal(signal.SIGTERM, lambda *_: os._exit(130))
left = subprocess.Popen(["sleep", "600"])
print(os.getpid(), left.pid, flush=True)
{ends}
"""


def started(ends: str, folder: Path) -> tuple[subprocess.Popen[str], int, int]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(ends=ends), str(folder)],
        env=module_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    child, left = map(int, process.stdout.readline().split())
    return process, child, left


def is_gone(pid: int, patience_s: float = 10.0) -> bool:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state in "ZX":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ("os._exit(4)", 4),
        ("os._exit(1)", 130),  # as Ray's native part ends a process that has lost it
        ("os.abort()", 130),
        ("os.kill(os.getpid(), signal.SIGKILL)", 130),
    ],
)
def test_a_child_that_is_ended_is_told_in_a_line_and_recorded(
    ends: str, code: int, tmp_path: Path
) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append("noted", reason="at work")
    ledger.close()
    process, _, left = started(ends, tmp_path)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert is_gone(left)  # whatever of Ray outlives its run
    events = [record["event"] for record in read(tmp_path / "ledger.jsonl")]
    assert events == (["noted"] if code == 4 else ["noted", "stopped"])
    assert err.count("\n") == (code == 130)
    if code == 130:
        assert "the same command goes on" in err


def test_a_signal_to_the_group_reaches_the_child_alone(tmp_path: Path) -> None:
    process, child, left = started("time.sleep(600)", tmp_path)
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert is_gone(child)
    assert is_gone(left)


def test_the_child_dies_with_the_process_that_waits(tmp_path: Path) -> None:
    process, child, left = started("time.sleep(600)", tmp_path)
    process.kill()
    process.wait()
    assert is_gone(child)
    os.kill(left, signal.SIGKILL)


@pytest.mark.parametrize(
    ("line", "starts"),
    [
        ("sweep vit", True),
        ("--help", False),
        ("sweep vit --dry-run", False),
        ("claims run x", True),
        ("status", False),
        ("", False),
    ],
)
def test_only_commands_that_train_have_a_child(line: str, starts: bool) -> None:
    assert supervise.starts_run(line.split()) == starts


def test_ctrl_c_while_modules_are_imported_ends_without_a_traceback() -> None:
    code = (
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'orchestrator.cli.main':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "from orchestrator.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")
