"""The command line: parse, call, print. Data on stdout, talk on stderr.

Nothing here may import torch, ray, mlflow or pyarrow before a command needs it.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from orchestrator import logins
from orchestrator.cli import claims, machine, read, run
from orchestrator.cli.options import log_to_stderr
from orchestrator.ray_cluster import attach
from trainables.errors import StorageError, UserError, storage_error

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
    *(machine.data, machine.doctor, machine.ui),
):
    group.add_command(command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point. A mistake is one line on stderr; the exit codes are those of ``--help``."""
    if arguments is None:
        logins.hide_in_process()
    else:
        arguments = logins.hide(arguments)
    log_to_stderr()
    try:
        code = group.main(arguments, prog_name="orchestrator", standalone_mode=False)
    except UserError as error:
        for mistake in error.mistakes:
            log.error(f"error: {mistake}")
        code = error.exit_code
    except StorageError as error:
        log.error(f"error: {error}; nothing is lost: the same command goes on where it stopped")
        code = 130
    except click.ClickException as error:
        text = _unknown(error) if isinstance(error, click.NoSuchCommand) else error.format_message()
        log.error(f"error: {' '.join(text.split())}")
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        log.info("interrupted: the same command goes on where it stopped")
        code = 130
    except BrokenPipeError:
        # The reader has gone (`| head`); Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        problem = storage_error(error)
        if problem is None:
            raise
        log.error(f"error: {problem}; nothing is lost: the same command goes on where it stopped")
        code = 130
    code = code if isinstance(code, int) else 0
    if attach.slots_at_work():
        # Its Ray ends with the process; Python's own way out would shut it down first.
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    sys.exit(code)


def _unknown(error: click.NoSuchCommand) -> str:
    """The mistake with the near names."""
    assert error.ctx is not None
    assert isinstance(error.ctx.command, click.Group)
    valid = ", ".join(error.ctx.command.list_commands(error.ctx))
    near = [f"{error.ctx.command_path} {name}" for name in (error.possibilities or ["--help"])[:2]]
    return f"no command {error.command_name!r}; valid: {valid}. Fix: {' or '.join(near)}"
