"""The command line: parse, call, print. Data on stdout, talk on stderr.

Nothing here may import torch, ray, mlflow or pyarrow before a command needs it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import NoReturn

import click

from orchestrator import logins, process
from orchestrator.cli import claims, machine, read, run, screen, supervise
from orchestrator.cli.options import draw_steps, log_to_stderr
from orchestrator.ray_cluster import attach
from trainables.errors import (
    EXIT_CODES,
    RESUMABLE,
    ClusterLost,
    StorageError,
    UserError,
    one_line,
    storage_error,
)

MISTAKE = 2
GOES_ON = "nothing is lost: the same command goes on where it stopped"

log = logging.getLogger(__name__)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def group() -> None:
    """Settle which vision backbone to fine-tune on your images, and why.

    \b
    Exit codes: 0 done; 2 a mistake in what was asked; 3 can never be scheduled
    or afforded; 4 done, but some trials failed; 5 no trial succeeded; 130 interrupted,
    resumable by typing the same command again.
    """


for command in (
    *(run.demo, run.sweep, run.tournament, run.plan, run.submit, claims.claims),
    *(read.compare, read.replay, read.reproduce, read.stop, read.export, read.status),
    *(screen.screen, screen.pool, machine.data, machine.doctor, machine.ui),
):
    group.add_command(command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point. A mistake is one line on stderr; the exit codes are those of ``--help``.

    A real command line (``arguments`` is ``None``) that may start a run is carried out by a child
    process: see :mod:`orchestrator.cli.supervise`.
    """
    process.prepare_process()
    if arguments is None:
        logins.hide_in_process()
    else:
        arguments = logins.hide(arguments)
    log_to_stderr()
    draw_steps()
    if arguments is None and supervise.starts_run(sys.argv[1:]):
        code = supervise.in_child()
        if code is not None:
            sys.exit(code)
    _end_on_signals()
    threading.excepthook = lambda failed: _log_bug(failed.exc_value, "in the background")
    code = _exit_code(arguments)
    with suppress(BrokenPipeError, OSError):
        sys.stdout.flush()
    if attach.slots_at_work():
        # Its Ray ends with the process; Python's own way out would shut it down first.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _exit_code(arguments: Sequence[str] | None) -> int:
    """Carry the command out. Whatever happens is one of ``EXIT_CODES``, and is said in a line."""
    try:
        code = group.main(arguments, prog_name="orchestrator", standalone_mode=False)
    except UserError as error:
        for mistake in error.mistakes:
            log.error(f"error: {mistake}")
        code = error.exit_code
    except (StorageError, ClusterLost) as error:
        log.error(f"error: {one_line(error)}; {GOES_ON}")
        code = RESUMABLE
    except click.ClickException as error:
        text = _unknown(error) if isinstance(error, click.NoSuchCommand) else error.format_message()
        log.error(f"error: {' '.join(text.split())}")
        code = MISTAKE
    except (KeyboardInterrupt, click.Abort):
        log.info("interrupted: the same command goes on where it stopped")
        code = RESUMABLE
    except BrokenPipeError:
        # The reader has gone (`| head`); Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except SystemExit as ended:
        code = ended.code
    except MemoryError:
        log.error("error: this machine has no memory left. Fix: a smaller batch or dataset")
        code = MISTAKE
    except Exception as error:
        code = _unforeseen(error)
    if code is None:
        return 0
    return code if isinstance(code, int) and code in EXIT_CODES else MISTAKE


def _unforeseen(error: Exception) -> int:
    """Say what no rule of ours foresaw; where it is the disk that fails, the command can go on once
    that is mended."""
    names = ""
    if isinstance(error, OSError):
        files = [repr(str(name)) for name in (error.filename, error.filename2) if name]
        names = " and ".join(files) + (": " if files else "")
    if storage_error(error) is not None:
        reason = error.strerror if isinstance(error, OSError) else None
        reason = reason or str(storage_error(error))
        log.error(f"error: {names}{reason}; {GOES_ON}, once there is room for files to be written")
        return RESUMABLE
    if isinstance(error, RuntimeError) and (mistakes := process.home_mistakes()):
        log.error(f"error: {mistakes[0]}")  # Python's words for a path that begins with ~
    elif isinstance(error, OSError):
        file = process.write_traceback(error) or "not written"
        line = f"error: {names}{error.strerror or one_line(error)}"
        log.error(f"{line}. Fix: look at that file's path and rights; details: {file}")
    else:
        _log_bug(error)
    return MISTAKE


def _log_bug(error: BaseException | None, where: str = "") -> None:
    """One line for what should not have happened, with the file that tells where it did."""
    if error is None:
        return
    file = process.write_traceback(error) or "nowhere: no file can be written"
    kind = f"{type(error).__name__}: {one_line(error)[:300]}"
    log.error(
        f"error: a bug of this program{' ' + where if where else ''} ({kind}); its traceback is in "
        f"{file}. Fix: report it with that file; a run that was begun goes on with the same command"
    )


def _end_on_signals() -> None:
    """SIGTERM and a terminal's end interrupt a command as Ctrl-C does, unless they are ignored."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, interrupt)


def _unknown(error: click.NoSuchCommand) -> str:
    """The mistake with the near names."""
    assert error.ctx is not None
    assert isinstance(error.ctx.command, click.Group)
    valid = ", ".join(error.ctx.command.list_commands(error.ctx))
    near = [f"{error.ctx.command_path} {name}" for name in (error.possibilities or ["--help"])[:2]]
    return f"no command {error.command_name!r}; valid: {valid}. Fix: {' or '.join(near)}"
