"""Commands that read runs or ask one to stop: compare, reproduce, stop, status, export."""

from __future__ import annotations

import json
import logging
import os
import shlex
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import click

from orchestrator.cli.options import JSON, STORAGE, TRACKING, beside, echo, show
from orchestrator.cli.run import carry_out, parsed
from orchestrator.launch.options import RunOptions
from orchestrator.ledger import replication
from orchestrator.ledger.replication import existing_run, existing_runs
from orchestrator.ledger.session import is_running, state_of
from orchestrator.spec.candidates import alias_of
from orchestrator.spec.run import RunSpec
from orchestrator.wording import size
from trainables.errors import UserError, collected, raise_if_any
from trainables.storage.object_storage import origin, write_bytes

log = logging.getLogger(__name__)

ABOVE_0 = click.FloatRange(min=0, min_open=True)
FETCH_S = 5.0  # between two looks into object storage
PLACES = ("storage", "tracking_uri", "experiment")  # options that no report writes
FOREIGN = "a report holds a command of orchestrator that starts a run; this one holds another text"
INSTEAD = "Fix: look at its values with --spec, or ask for the report again"


@click.command()
@click.argument("name", nargs=-1, required=True)
@click.option(
    "--out",
    multiple=True,
    metavar="FILE",
    help="Write the report (FILE.html: one file, works offline), or a table of trials, epochs or "
    "the finals' predictions (trials.parquet, epochs.csv, predictions.parquet). Repeatable.",
)
@click.option(
    "--suspects",
    metavar="FILE.csv",
    help="List the images of val and test whose label is suspected to be wrong, by what the finals "
    "predict: path or row, the label, the suggested one, their probabilities.",
)
@click.option(
    "--no-images", is_flag=True, help="No pictures in the report, where they must not be copied."
)
@click.option(
    "--max-latency-ms",
    type=ABOVE_0,
    metavar="X",
    help="Also say who is best under this latency of one image, as the finals measured it.",
)
@click.option(
    "--max-params-m",
    type=ABOVE_0,
    metavar="X",
    help="The same of millions of parameters, with the classifier.",
)
@JSON
@STORAGE
def compare(
    name: tuple[str, ...],
    out: tuple[str, ...],
    suspects: str | None,
    no_images: bool,
    max_latency_ms: float | None,
    max_params_m: float | None,
    as_json: bool,
    storage: str,
) -> None:
    """Compare the candidates of runs. Accuracy, best recipes and what they cost.

    Of runs that began with a screen also how far its probe was to be trusted.
    """
    folders = [existing_run(run, storage) for run in dict.fromkeys(name)]
    from orchestrator.compare.choice import Limits
    from orchestrator.compare.comparison import compare as compare_runs
    from orchestrator.compare.report.page import report_html
    from orchestrator.compare.runs import load
    from orchestrator.compare.suspects import write_suspects
    from orchestrator.compare.table import table_text
    from orchestrator.compare.table_files import write_table

    tables = dict(zip(out, _tables_of(out, suspects), strict=True))
    runs = [load(folder) for folder in folders]
    if any(run.state.spec.from_screen for run in runs):
        existing_runs(storage)  # has the screens and the other runs here
    limits = Limits(max_latency_ms=max_latency_ms, max_params_m=max_params_m)
    if limits.text and all(run.state.is_screen for run in runs):
        raise UserError(
            "--max-latency-ms and --max-params-m choose among candidates that were trained; "
            f"{', '.join(name)} screened them only. Fix: give the limits to the screen's own "
            "command, or compare the tournament that came from it"
        )
    comparison = compare_runs(runs, limits=limits)
    show(as_json, comparison.as_dict(), lambda: table_text(comparison))
    for file, table in tables.items():
        if table is None:
            page = report_html(comparison, images=not no_images)
            Path(file).write_text(page, encoding="utf-8")
        else:
            write_table(runs, Path(file))
        log.info(f"wrote {file}")
    if suspects is not None:
        of_images = comparison.by_image
        count = write_suspects(of_images.suspects if of_images else None, Path(suspects))
        log.info(f"wrote {suspects}: {count} images")
    report = next((file for file, table in tables.items() if table is None), None)
    if report is not None:
        log.info(f"next: open {report} in a browser; it needs no network")
    elif out:
        log.info(f"next: pandas.read_{Path(out[0]).suffix.lower()[1:]}({out[0]!r})")
    else:
        place = beside(storage)
        again = f"orchestrator compare {' '.join(name)} --out report.html{place}"
        log.info(f"next: {again}, or orchestrator ui{place}")


def _tables_of(files: Sequence[str], suspects: str | None) -> list[str | None]:
    """By file, the table that it is to hold; ``None`` for a report. Raises ``UserError``, also
    where the file of ``suspects`` cannot be written."""
    from orchestrator.compare.table_files import table_of

    tables: list[str | None] = []
    mistakes: list[str] = []
    if suspects is not None and Path(suspects).suffix.lower() != ".csv":
        mistakes.append(
            f"--suspects must be FILE.csv; got {suspects!r}. Fix: --suspects suspects.csv"
        )
    if suspects is not None and not Path(suspects).absolute().parent.is_dir():
        mistakes.append(
            f"--suspects needs a folder that exists; got {suspects!r}. Fix: create its folder"
        )
    for file in files:
        path = Path(file)
        if not path.absolute().parent.is_dir():
            mistakes.append(
                f"--out needs a folder that exists; got {file!r}. Fix: create its folder"
            )
        with collected(mistakes):
            tables.append(table_of(path))
            if tables[-1] is None and path.suffix.lower() not in (".html", ".htm"):
                mistakes.append(
                    "--out must be FILE.html, or trials, epochs or predictions as .parquet or "
                    f".csv; got {file!r}. Fix: --out {path.stem or 'report'}.html"
                )
    raise_if_any(mistakes)
    return tables


@click.command()
@click.argument("name")
@STORAGE
def stop(name: str, storage: str) -> None:
    """Stop a run cleanly. Its trials end at their next epoch; the same command resumes it."""
    folder = existing_run(name, storage)
    if not is_running(folder):
        raise UserError(
            f"only a run in progress can be stopped; {name!r} is not running. "
            f"Fix: orchestrator status {name}{beside(storage)}"
        )
    if remote := origin(folder):
        write_bytes(f"{remote}/{replication.STOP_FILE}", b"")
    else:
        (folder / replication.STOP_FILE).touch()
    log.info(f"{name} was asked to stop; its trials end at their next epoch")
    log.info(f"next: orchestrator status {name}{beside(storage)}")


@click.command()
@click.argument("report", type=click.Path(path_type=Path))
@click.option("--run", help="Which run, where the report compares several.")
@click.option("--spec", "as_spec", is_flag=True, help="Print the whole spec as JSON instead.")
@click.option("--rerun", metavar="NAME", help="Run that spec again, every value of it, as NAME.")
@STORAGE
@TRACKING
@click.pass_context
def reproduce(
    ctx: click.Context,
    /,
    report: Path,
    run: str | None,
    as_spec: bool,
    rerun: str | None,
    storage: str,
    tracking_uri: str | None,
) -> None:
    """Print the command that a report's run was made by, or rerun it. Its spec is in the file."""
    from orchestrator.compare.report.page import read_report

    record = read_report(report, run=run)
    if rerun is not None:
        from orchestrator.launch.validation import validate

        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or None
        place = {"name": rerun, "storage": storage, "tracking_uri": uri, "experiment": None}
        spec = RunSpec.from_dict({**record["spec"], **place})
        log.info(f"{record['name']} again as {rerun}, spec {spec.hash()}")
        ctx.exit(carry_out(spec, validate(spec, starting=True), RunOptions()))
    show(
        as_spec,
        {"schema": 1, **record},
        lambda: _own_command(ctx.find_root().command, record["command"]),
    )
    again = f"orchestrator reproduce {shlex.quote(str(report))} --rerun NAME"
    log.info(f"next: {again}; its spec is {record['spec_hash']}")


def _own_command(root: click.Command, text: str) -> str:
    """The command of a report, as parsed and written anew: whoever sends a report must not choose
    what its reader pastes into a shell. Empty where the report has none.

    Raises ``UserError`` for anything but a command that starts a run, and for one that says where
    its results go.
    """
    if not text:
        return ""
    try:
        program, *arguments = shlex.split(text)
        _, params = parsed(root, arguments)
    except (ValueError, UserError, click.ClickException) as error:
        reason = error.format_message() if isinstance(error, click.ClickException) else error
        raise UserError(f"{FOREIGN} ({' '.join(str(reason).split())[:200]}). {INSTEAD}") from None
    elsewhere = [name for name in PLACES if params.get(name) not in (None, "runs")]
    if program != "orchestrator" or not text.isprintable():
        raise UserError(f"{FOREIGN}. {INSTEAD}")
    if elsewhere:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in elsewhere)
        raise UserError(f"{FOREIGN}: no report says {options}. {INSTEAD}")
    return shlex.join([program, *arguments])


@click.command()
@click.argument("name", required=False)
@click.option("--watch", is_flag=True, help="Follow the run, or the newest, until it ends.")
@JSON
@STORAGE
def status(name: str | None, watch: bool, as_json: bool, storage: str) -> None:
    """Show what runs and how far. Without a NAME, a line for every run of the storage folder."""
    from orchestrator.ledger.cost import checkpoint_bytes
    from orchestrator.ops.live import print_view
    from orchestrator.ops.status import summary, view

    if watch:
        if as_json:
            raise UserError("--watch is for people; got --json with it. Fix: leave one of them out")
        name = _watch(name, storage)
    folders = [existing_run(name, storage)] if name else existing_runs(storage)
    runs = []
    damaged: list[str] = []
    for folder in folders:
        with collected(damaged):  # one that cannot be read hides no other
            runs.append((folder, view(state_of(folder), running=is_running(folder))))
    for line in damaged if runs else ():
        log.error(f"error: {line}")
    if not runs:
        raise_if_any(damaged)
    if as_json:
        documents = [
            {"name": folder.name, "folder": str(folder), **asdict(run)}
            | {"checkpoint_bytes": checkpoint_bytes(folder)}
            for folder, run in runs
        ]
        echo(json.dumps({"schema": 1, "runs": documents}, indent=2))
    elif name:
        folder, run = runs[0]
        echo(f"{folder.name}, {run.status}{f': {run.reason}' if run.reason else ''}")
        print_view(run)
        echo(f"checkpoints on disk: {size(checkpoint_bytes(folder))}")
    else:
        for folder, run in runs:
            echo(f"{folder.name:<24} {run.status:<11} {summary(run)}")
    if not runs:
        log.info(f"no run in {storage!r} yet; next: orchestrator demo")
        return
    name, newest = runs[0][0].name, runs[0][1]
    if newest.status == "running":
        log.info(f"next: orchestrator stop {name}{beside(storage)}")
    elif newest.status.is_complete:
        log.info(f"next: orchestrator compare {name}{beside(storage)}")
    else:
        larger = " with a larger --budget" if newest.reason and newest.budget else ""
        log.info(f"next: type {name}'s command again{larger}, it goes on where it stopped")


def _watch(name: str | None, storage: str) -> str | None:
    """Follow the run, or the newest one, until it ends or Ctrl-C; its name, ``None`` without any
    run. What is in object storage is fetched again every ``FETCH_S``."""
    from orchestrator.ops.live import watch

    runs = [existing_run(name, storage)] if name else existing_runs(storage)
    if not runs:
        return None
    folder, at_work = runs[0], is_running(runs[0])
    asked_at = time.monotonic()

    def is_at_work() -> bool:
        nonlocal at_work, asked_at
        if not origin(folder):
            return is_running(folder)
        if time.monotonic() - asked_at >= FETCH_S:
            existing_run(folder.name, storage)
            at_work, asked_at = is_running(folder), time.monotonic()
        return at_work

    with suppress(KeyboardInterrupt):
        watch(folder, is_at_work)
    return folder.name


@click.command()
@click.argument("name")
@click.option("--to", metavar="DIR|registry", required=True, help="A new folder, or MLflow's.")
@click.option("--candidate", help="The best of the one of this label. Default: the best of all.")
@click.option("--family", hidden=True, help="As --candidate, which it was before 2026-12.")
@STORAGE
@TRACKING
def export(
    name: str,
    to: str,
    candidate: str | None,
    family: str | None,
    storage: str,
    tracking_uri: str | None,
) -> None:
    """Export the winner, chosen on validation. It loads with timm or MLflow, without this project.

    In the registry it is NAME@champion, or NAME@LABEL, its dots as hyphens, where a candidate was
    asked for.
    """
    candidate = candidate or family
    folder = existing_run(name, storage)
    from orchestrator.compare.winners import select_model
    from orchestrator.tracking import best_model

    state = state_of(folder)
    model = select_model(state, candidate)
    log.info(model.why)
    if not state.closed:
        log.info(f"{name} has not ended: this is its best so far")
    if to == "registry":
        alias = alias_of(candidate) if candidate else "champion"
        from orchestrator.tracking.follow import export_to_registry

        uri, version = export_to_registry(
            state, model, folder, storage=storage, uri=tracking_uri, alias=alias
        )
        log.info(f"version {version} of {name}")
        echo(f"models:/{name}@{alias}")
        load = f"mlflow.pyfunc.load_model('models:/{name}@{alias}')"
        log.info(f"next: {load}, MLFLOW_TRACKING_URI={uri}")
    else:
        best_model.export_to_folder(state, model, folder, Path(to))
        echo(to)
        log.info(f"next: {Path(to) / 'README.md'} has the code that loads it")


@click.command()
@click.argument("name", nargs=-1, required=True)
@click.option(
    "--set",
    "texts",
    multiple=True,
    metavar="scheduler.PATH=VALUE",
    help="Change the scheduler of the replay, as for a sweep. Repeatable.",
)
@click.option("--slots", type=click.IntRange(1), help="Default: as many as the run had.")
@click.option(
    "--repeats",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="Orders in which the trials arrive.",
)
@JSON
@STORAGE
def replay(
    name: tuple[str, ...],
    texts: tuple[str, ...],
    slots: int | None,
    repeats: int,
    as_json: bool,
    storage: str,
) -> None:
    """Replay runs' own learning curves under another scheduler. Nothing is trained.

    Prints cost, makespan, winners and their regret against the best on record, for the scheduler
    as it ran and as asked, over many orders of arrival. A curve ends where its trial was pruned:
    what would need more is counted and said. Runs without pruning (scheduler.kind=none) and
    audited trials (--audit 1) are what a replay can answer in full.
    """
    folders = [existing_run(run, storage) for run in dict.fromkeys(name)]
    from orchestrator.simulate.replay import replay_of, replay_text

    replays = [replay_of(folder, texts, slots=slots, orders=repeats) for folder in folders]
    document = {"schema": 1, "runs": [asdict(one) for one in replays]}
    show(as_json, document, lambda: "\n".join(map(replay_text, replays)))
    log.info("next: orchestrator sweep TARGET --set scheduler.reduction_factor=2")
