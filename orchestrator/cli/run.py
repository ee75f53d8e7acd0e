"""Commands that start runs, here or on a Ray head: demo, sweep, tournament, plan, submit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli import supervise
from orchestrator.cli.options import (
    DRY_RUN,
    JSON,
    REOPEN,
    RUN,
    STORAGE,
    TOURNAMENT,
    TRACKING,
    beside,
    echo,
    show,
)
from orchestrator.launch.options import RunOptions, asked
from orchestrator.ray_cluster import attach
from orchestrator.spec.run import RunSpec, sanitised
from trainables.errors import UserError
from trainables.printable import with_login
from trainables.storage.waiting import in_background

if TYPE_CHECKING:
    from orchestrator.ops.jobs import Job

log = logging.getLogger(__name__)

JOBS = ("sweep", "tournament", "screen", "demo", "claims run")
JOB_EXAMPLE = "orchestrator submit -- sweep vit --storage s3://BUCKET/runs"


@click.command()
@click.option("--name", default="demo", show_default=True, help="Name of the run.")
@STORAGE
@TRACKING
@click.pass_context
def demo(ctx: click.Context, /, **options: Any) -> None:
    """Sweep three families on digits in minutes. ASHA prunes, then they are compared."""
    spec, _ = asked("demo", **options)
    candidates = ", ".join(sweep.candidate for sweep in spec.sweeps)
    trials = spec.sweeps[0].trials
    log.info(f"demo: {candidates} on digits, {trials} trials each; about 2 minutes on 2 CPUs")
    _start(ctx, **options)


@click.command()
@click.argument("target", metavar="CANDIDATE")
@RUN
@REOPEN
@DRY_RUN
@click.pass_context
def sweep(ctx: click.Context, /, **options: Any) -> None:
    """Search one candidate's recipes with ASHA.

    CANDIDATE is [LABEL=]TARGET[=WEIGHTS]. TARGET is a family (resnet, vit, hybrid, convnext), a
    named sweep (smoke, vit-patches, resnet-sgd), timm:MODEL, path/to/file.py:function that
    returns a SweepSpec, or path/to/sweep.json that holds one. WEIGHTS are hub, in1k, in21k, none
    or a path.
    """
    _start(ctx, **options)


@click.command()
@click.argument("target", metavar="[CANDIDATE]...", nargs=-1)
@TOURNAMENT
@REOPEN
@DRY_RUN
@click.pass_context
def tournament(ctx: click.Context, /, **options: Any) -> None:
    """Search several candidates with equal trials, then hold the finals.

    CANDIDATE is [LABEL=]TARGET[=WEIGHTS], as for `sweep`. Its label is the family's name or the
    timm model's: vit, timm:resnet18, timm:resnet18=none, small=timm:resnet18=FILE.safetensors.
    They are one run and share one pool of slots. --set LABEL.PATH=VALUE reaches one of them.
    --from-screen and --pool bring candidates too; more may be typed beside them.
    """
    _start(ctx, **options)


@click.command()
@click.argument("target", metavar="[CANDIDATE]...", nargs=-1)
@TOURNAMENT
@JSON
def plan(target: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Print what a run would do. Trials, rungs, slots, cost, storage, backbones, ranges and why."""
    compares = len(target) > 1 or options["pool"] or options["from_screen"]
    command = "tournament" if compares else "sweep"
    _show_plan(*asked(command, target, **options), as_json=as_json)


def _start(ctx: click.Context, *, dry_run: bool = False, **options: Any) -> None:
    from orchestrator.launch.validation import validate

    spec, chosen = asked(str(ctx.command.name), **options)
    if dry_run:
        _show_plan(spec, chosen)
    else:
        ctx.exit(carry_out(spec, validate(spec, starting=True), chosen))


def _show_plan(spec: RunSpec, options: RunOptions, *, as_json: bool = False) -> None:
    from orchestrator.launch.plan import plan_of, plan_text

    planned = plan_of(spec, options)
    show(as_json, planned.as_dict(), lambda: plan_text(planned))
    log.info("next: the same with `orchestrator sweep` or `tournament` and no --dry-run")


def carry_out(spec: RunSpec, totals: Mapping[str, float] | None, options: RunOptions) -> int:
    """Run, print how it ended and what to type next; the exit code. ``totals`` is what
    :func:`orchestrator.launch.validation.validate` returned of ``spec``. Raises ``UserError``."""
    from orchestrator.engine import runner
    from orchestrator.launch.forecast import images_of
    from orchestrator.launch.prepare import fetch_weights, prepare
    from orchestrator.launch.rehearsal import refuse_broken
    from orchestrator.ops.live import live_view

    prepared = prepare(spec, totals, options)
    images, gpus = images_of(prepared.spec), (totals or {}).get("GPU")
    rehearsing = in_background(partial(refuse_broken, prepared.spec, images, gpus=gpus))
    from_scratch = all(sweep.backbone.weights == "none" for sweep in prepared.spec.sweeps)
    # Before a cluster is asked for nodes, and before anything is downloaded for nothing.
    if attach.known_address() is not None or not from_scratch:
        rehearsing.result()
    fetch_weights(prepared.spec)
    supervise.announce(spec.folder)
    with live_view(spec.folder.absolute()):
        outcome = runner.run(prepared, rehearsal=rehearsing)
    place = beside(spec.storage)
    if outcome.interrupted and outcome.stop_reason:
        log.info(f"{spec.name} stopped: {outcome.stop_reason}; nothing is lost")
        larger = " with a larger --budget" if spec.budget else ""
        log.info(f"next: the same command{larger} goes on; orchestrator compare {spec.name}{place}")
    elif outcome.interrupted:
        log.info(f"interrupted after {outcome.succeeded} trials; nothing is lost")
        log.info(f"next: the same command goes on; orchestrator status {spec.name}{place}")
    else:
        echo(outcome.text or "", nl=False)
        log.info(f"report: {outcome.run_folder / 'report.html'}")
        log.info(f"next: orchestrator ui{place}, or orchestrator compare {spec.name} --json{place}")
    return outcome.exit_code


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

    COMMAND is a sweep, tournament, screen, demo or `claims run` with its options, after `--`. Its
    mistakes are found here. The same again, while the job is at work, follows that job. Ctrl-C
    stops following it; the job goes on.
    """
    if job_id is not None and sanitised(job_id) != job_id:
        raise UserError(
            "a job's id must be letters, digits, '.', '_' or '-'; "
            f"got {job_id!r}. Fix: --job-id {sanitised(job_id)}"
        )
    with contextlib.chdir(working_dir):
        specs = _job_specs(ctx.find_root().command, command)
    from orchestrator.ops import jobs

    env = {}
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        env["MLFLOW_TRACKING_URI"] = uri
        log.info(f"the job is given MLFLOW_TRACKING_URI={uri}")
    uris = {spec.tracking_uri for spec in specs if spec.tracking_uri}
    if any(with_login(uri) != uri for uri in uris):
        # Ray writes a job's environment into its records and logs, which have no secrets.
        log.warning(
            "warning: the login for MLflow stays here; the job uses what the head has been started "
            "with. Fix: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD on the head"
        )
    more = f"-and-{len(specs) - 1}-more" if len(specs) > 1 else ""
    name = job_id or f"{specs[0].name}{more}"
    job = jobs.Job(run=name, arguments=command, working_dir=working_dir, env=env)
    ctx.exit(_follow(job, jobs.head_address(address), specs[0]))


def _follow(job: Job, address: str, spec: RunSpec) -> int:
    """Submit the job or find it at work, print its log; its exit code, 130 after Ctrl-C."""
    from orchestrator.ops import jobs

    client = jobs.connect(address)
    job_id, at_work = jobs.start(client, job)
    log.info(
        f"job {job_id} at {address}: {'at work already, its log:' if at_work else 'submitted'}"
    )
    stop = f"orchestrator stop {spec.name} --storage {shlex.quote(spec.storage)}"
    try:
        log_text = partial(echo, nl=False, keep="\n\t\r")
        code, how_it_ended = asyncio.run(jobs.follow(client, job_id, show=log_text))
    except KeyboardInterrupt:
        log.info(f"no longer following job {job_id}; it goes on")
        log.info(
            f"next: the same command follows it again; {stop} stops it, and so does, "
            f"within seconds, ray job stop --address {address} {job_id}"
        )
        return 130
    log.info(f"job {job_id} {how_it_ended}")
    if code == 130:
        log.info("next: the same command goes on")
    return code


def parsed(root: click.Command, arguments: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The command among ``JOBS`` that ``arguments`` call, and its parameters as it will read them.
    Raises ``UserError`` for another one, and click's errors for what is wrong with it."""
    command, rest = root, list(arguments)
    words: list[str] = []
    while isinstance(command, click.Group):
        if not rest:
            raise UserError(f"a job needs a whole command; got {words!r}. Fix: {JOB_EXAMPLE}")
        above = click.Context(command, info_name="orchestrator")
        word, inner, rest = command.resolve_command(above, rest)
        words.append(str(word))
        command = inner or command  # click fails where there is none
    name = " ".join(words)
    if name not in JOBS:
        raise UserError(f"a job is one of {', '.join(JOBS)}; got {name!r}. Fix: {JOB_EXAMPLE}")
    return name, command.make_context(name, rest).params


def _job_specs(root: click.Command, arguments: tuple[str, ...]) -> list[RunSpec]:
    """The runs that the command would carry out, validated; raises whatever is wrong with it."""
    from orchestrator.claims.design import ClaimOptions, specs_of
    from orchestrator.launch.validation import validate

    name, params = parsed(root, arguments)
    if params.pop("dry_run", False):
        raise UserError("--dry-run needs no job. Fix: the command without `submit`")
    if name == "claims run":
        params.pop("as_json")
        return specs_of(params.pop("claim"), ClaimOptions(**params), as_job=True)[0]
    if name == "screen":
        from orchestrator.launch.screens import ScreenOptions, screen_of

        params.pop("as_json")
        return [screen_of(ScreenOptions(**params), as_job=True).run]
    spec, _ = asked(name, **params)
    validate(spec, as_job=True)
    return [spec]
