"""The command line: parse, call, print. Data on stdout, talk on stderr.

Nothing here may import torch, ray, mlflow or pyarrow before a command needs it.
"""

from __future__ import annotations

import difflib
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from orchestrator.cli import claims, machine, read, run
from orchestrator.cli.options import log_to_stderr
from orchestrator.ray_cluster import attach
from trainables.errors import StorageError, UserError

log = logging.getLogger(__name__)


class Commands(click.Group):
    """A group that names the near commands when one is unknown."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with the near names."""
        name, valid = args[0], self.list_commands(ctx)
        if name not in valid and not name.startswith("-"):
            near = difflib.get_close_matches(name, valid, n=2) or ["--help"]
            fix = " or ".join(f"{ctx.command_path} {word}" for word in near)
            ctx.fail(f"no command {name!r}; valid: {', '.join(valid)}. Fix: {fix}")
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def group() -> None:
    """Settle which vision backbone to fine-tune on your images, and why.

    \b
    Exit codes: 0 done; 2 a mistake in what was asked; 3 can never be scheduled
    or afforded; 4 done, but some trials failed; 5 no trial succeeded; 130 interrupted,
    resumable by typing the same command again.
    """


for command in (*run.COMMANDS, *read.COMMANDS, *machine.COMMANDS, *claims.COMMANDS):
    group.add_command(command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point. A mistake is one line on stderr; the exit codes are those of ``--help``."""
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
        log.error(f"error: {' '.join(error.format_message().split())}")
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        log.info("interrupted: the same command goes on where it stopped")
        code = 130
    except BrokenPipeError:
        # The reader has gone (`| head`); Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    code = code if isinstance(code, int) else 0
    if attach.slots_at_work():
        # Its Ray ends with the process; Python's own way out would shut it down first.
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    sys.exit(code)
