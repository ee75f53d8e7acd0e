"""The command that hands a run to a Ray head, as a job: ``submit``."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trainables.errors import UserError

if TYPE_CHECKING:
    from orchestrator.ops.jobs import Job
    from orchestrator.spec.run import RunSpec

log = logging.getLogger(__name__)

RUNS = ("sweep", "tournament", "demo", "claims run")
EXAMPLE = "orchestrator submit -- sweep vit --storage s3://BUCKET/runs"


@click.command(context_settings={"allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "--address",
    metavar="URL",
    help="The head's dashboard. Default: $RAY_API_SERVER_ADDRESS, $RAY_ADDRESS, or port 8265 here.",
)
@click.option("--job-id", metavar="ID", help="Name of the job. Default: the run's name.")
@click.option(
    "--working-dir",
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
    default=".",
    show_default=True,
    help="The job runs in a copy of this folder, without what .gitignore names.",
)
@click.pass_context
def submit(
    ctx: click.Context,
    /,
    command: tuple[str, ...],
    address: str | None,
    job_id: str | None,
    working_dir: Path,
) -> None:
    """Run COMMAND as a job of a Ray head. Follows it: prints its log, ends with its exit code.

    COMMAND is a sweep, tournament, demo or `claims run` with its options, after `--`. Its
    mistakes are found here. The same again, while the job is at work, follows that job. Ctrl-C
    lets go of it.
    """
    from orchestrator.spec.run import sanitised

    if job_id is not None and sanitised(job_id) != job_id:
        raise UserError(
            "a job's id must be letters, digits, '.', '_' or '-'; "
            f"got {job_id!r}. Fix: --job-id {sanitised(job_id)}"
        )
    with contextlib.chdir(working_dir):
        specs = _specs(ctx.find_root().command, command)
    from orchestrator.ops import jobs

    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        log.info(f"the job is given MLFLOW_TRACKING_URI={uri}")
    name = job_id or _name(specs)
    env = {"MLFLOW_TRACKING_URI": uri} if uri else {}
    job = jobs.Job(run=name, arguments=command, working_dir=working_dir, env=env)
    ctx.exit(_carry_out(job, jobs.head_address(address), specs[0]))


def _carry_out(job: Job, address: str, spec: RunSpec) -> int:
    from orchestrator.ops import jobs
    from orchestrator.ops.jobs import follow

    client = jobs.connect(address)
    known, found = jobs.start(client, job)
    log.info(f"job {known} at {address}: {'at work already, its log:' if found else 'submitted'}")
    stop = f"orchestrator stop {spec.name} --storage {shlex.quote(spec.storage)}"
    try:
        code, ended = follow(
            client, known, show=lambda text: click.echo(text, nl=False), say=log.info
        )
    except KeyboardInterrupt:
        log.info(f"let go of job {known}; it goes on")
        log.info(
            f"next: the same command follows it again; {stop} stops it, and so does, "
            f"within seconds, ray job stop --address {address} {known}"
        )
        return 130
    log.info(f"job {known} {ended}")
    if code == 130:
        log.info("next: the same command goes on")
    return code


def _print(text: str) -> None:
    click.echo(text, nl=False)


def _name(specs: list[RunSpec]) -> str:
    more = f"-and-{len(specs) - 1}-more" if len(specs) > 1 else ""
    return f"{specs[0].name}{more}"


def _specs(root: click.Command, arguments: tuple[str, ...]) -> list[RunSpec]:
    """The runs that the command would carry out. Raises whatever is wrong with it."""
    words, params = _parsed(root, arguments)
    if params.get("dry_run"):
        raise UserError("--dry-run needs no job. Fix: the command without `submit`")
    from orchestrator.cli import claims, run
    from orchestrator.launch.validation import check_job

    if words == "claims run":
        return claims.specs_of(params["claim"], params, check_job)
    if words == "demo":
        specs = [run.demo_spec(params)]
    elif words == "tournament":
        specs = [run.spec_of(params["family"], run.with_finals(params))]
    else:
        specs = [run.spec_of([params["target"]], params)]
    for spec in specs:
        check_job(spec)
    return specs


def _parsed(root: click.Command, arguments: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """The command's name and its options, as the job will read them."""
    inside, rest = root, list(arguments)
    words: list[str] = []
    while isinstance(inside, click.Group):
        if not rest:
            raise UserError(f"a job needs a whole command; got {words!r}. Fix: {EXAMPLE}")
        above = click.Context(inside, info_name="orchestrator")
        word, found, rest = inside.resolve_command(above, rest)
        words.append(str(word))
        inside = found or inside  # click fails where it finds none
    name = " ".join(words)
    if name not in RUNS:
        raise UserError(f"a job is one of {', '.join(RUNS)}; got {name!r}. Fix: {EXAMPLE}")
    return name, inside.make_context(name, rest).params


COMMANDS = (submit,)
