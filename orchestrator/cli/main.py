"""The command line: parse, call, print. Data on stdout, talk on stderr.

Nothing here may import torch, ray, mlflow or pyarrow before a command needs it.
"""

from __future__ import annotations

import difflib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from orchestrator.cli import claims, machine, read, submit
from orchestrator.cli.options import JSON, REOPEN, STORAGE, TRACKING, log_to_stderr, run_options
from orchestrator.ray_cluster import attach
from trainables.errors import StorageError, UserError

if TYPE_CHECKING:
    from orchestrator.spec.run import RunSpec

log = logging.getLogger(__name__)


class Commands(click.Group):
    """A group that names the near commands when one is unknown."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with the near names."""
        name, known = args[0], self.list_commands(ctx)
        if name not in known and not name.startswith("-"):
            near = difflib.get_close_matches(name, known, n=2) or ["--help"]
            fix = " or ".join(f"{ctx.command_path} {one}" for one in near)
            ctx.fail(f"no command {name!r}; valid: {', '.join(known)}. Fix: {fix}")
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def group() -> None:
    """Settle which vision backbone to fine-tune on your images, and why.

    \b
    Exit codes: 0 done; 2 a mistake in what was asked; 3 can never be scheduled
    or afforded; 4 done, but some trials failed; 5 no trial succeeded; 130 interrupted,
    resumable by typing the same command again.
    """


@group.command()
@click.option("--name", default="demo", show_default=True, help="Name of the run.")
@STORAGE
@TRACKING
@click.pass_context
def demo(ctx: click.Context, /, **options: Any) -> None:
    """Sweep three families on digits in minutes. ASHA prunes, then they are compared."""
    from orchestrator.cli.run import demo_spec

    spec = demo_spec(options)
    families = ", ".join(sweep.family for sweep in spec.sweeps)
    trials = spec.sweeps[0].trials
    log.info(f"demo: {families} on digits, {trials} trials each; about 5 minutes on 2 CPUs")
    _run(ctx, spec, options)


@group.command()
@click.argument("target")
@run_options
@REOPEN
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.pass_context
def sweep(
    ctx: click.Context, /, target: str, dry_run: bool, reopen_test: bool, **options: Any
) -> None:
    """Search one family's recipes with ASHA.

    TARGET is a family (resnet, vit, hybrid, convnext), a named sweep (smoke, vit-patches,
    resnet-sgd), timm:MODEL, or path/to/file.py:function that returns a SweepSpec.
    """
    from orchestrator.cli.run import spec_of

    spec = spec_of([target], options)
    _plan(spec, options) if dry_run else _run(ctx, spec, options, reopen_test)


@group.command()
@click.argument("family", nargs=-1, required=True)
@run_options
@REOPEN
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.pass_context
def tournament(
    ctx: click.Context,
    /,
    family: tuple[str, ...],
    dry_run: bool,
    reopen_test: bool,
    **options: Any,
) -> None:
    """Search several families with equal trials, then hold the finals.

    They are one run and share one pool of slots. --set FAMILY.PATH=VALUE reaches one of them.
    """
    from orchestrator.cli.run import spec_of, with_finals

    spec = spec_of(family, with_finals(options))
    _plan(spec, options) if dry_run else _run(ctx, spec, options, reopen_test)


@group.command()
@click.argument("target", nargs=-1, required=True)
@run_options
@JSON
def plan(target: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Print what a run would do. Trials, rungs, slots, cost, storage, backbones, ranges and why."""
    from orchestrator.cli.run import spec_of, with_finals

    asked = with_finals(options) if len(target) > 1 else options
    _plan(spec_of(target, asked), options, as_json)


for command in (
    *read.COMMANDS,
    *read.EXPORT_COMMANDS,
    *read.STATUS_COMMANDS,
    *submit.COMMANDS,
    *machine.COMMANDS,
    *claims.COMMANDS,
):
    group.add_command(command)


def _plan(spec: RunSpec, options: Mapping[str, Any], as_json: bool = False) -> None:
    from orchestrator.cli.run import show_plan

    show_plan(spec, measure=options["measure"], tflops=options["tflops"], as_json=as_json)


def _run(
    ctx: click.Context, spec: RunSpec, options: Mapping[str, Any], reopen_test: bool = False
) -> None:
    from orchestrator.cli import run

    how = {name: options.get(name) for name in ("measure", "tflops")}
    ctx.exit(run.carry_out(spec, reopen_test=reopen_test, **how))


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
