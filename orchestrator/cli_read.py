"""Commands that read runs or ask one to stop: compare, reproduce, stop."""

from __future__ import annotations

import difflib
import fcntl
import os
from pathlib import Path

import click

from orchestrator.cli_options import JSON, STORAGE, TRACKING, say, show
from trainables.errors import UserError
from trainables.storage import is_remote, origin, write_bytes


def run_folder(name: str, storage: str) -> Path:
    """The folder of a run that exists. Raises ``UserError`` with the near names."""
    from orchestrator.ledger import FILE_NAME

    folder = _pulled(storage, name)
    if (folder / FILE_NAME).is_file():
        return folder
    known = [one.name for one in run_folders(storage)]
    if not known:
        raise UserError(
            f"there is no run {name!r}: {storage!r} holds none. "
            "Fix: orchestrator demo, or --storage FOLDER"
        )
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or known[:3]
    raise UserError(
        f"there is no run {name!r} in {storage!r}. "
        f"Fix: did you mean {' or '.join(near)}? or --storage FOLDER"
    )


def run_folders(storage: str) -> list[Path]:
    """Folders under ``storage`` that hold a ledger, newest first."""
    from orchestrator.ledger import FILE_NAME

    found = list(Path(storage).glob(f"*/{FILE_NAME}"))
    if is_remote(storage):
        from orchestrator.session_copy import pull_all

        found = [folder / FILE_NAME for folder in pull_all(storage)]
    return [path.parent for path in sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)]


def _pulled(storage: str, name: str) -> Path:
    if not is_remote(storage):
        return Path(storage) / name
    from orchestrator.session_copy import pull

    return pull(storage, name)


def is_running(folder: Path) -> bool:
    """Whether a process holds the run's lock or, in object storage, its lease."""
    return _is_locked(folder) or _is_leased(folder)


def _is_leased(folder: Path) -> bool:
    remote = origin(folder)
    if remote is None:
        return False
    from orchestrator.session_lease import is_held

    return is_held(remote)


def _is_locked(folder: Path) -> bool:
    try:
        with (folder / ".lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


@click.command()
@click.argument("name", nargs=-1, required=True)
@click.option("--out", metavar="FILE.html", help="Write the report: one file, works offline.")
@JSON
@STORAGE
def compare(name: tuple[str, ...], out: str | None, as_json: bool, storage: str) -> None:
    """Compare the families of runs. Accuracy, best recipes and what they cost."""
    folders = [run_folder(one, storage) for one in dict.fromkeys(name)]
    if out and not Path(out).absolute().parent.is_dir():
        raise UserError(f"--out needs a folder that exists; got {out!r}. Fix: create its folder")
    from orchestrator import compare as comparing

    runs = [comparing.load(folder) for folder in folders]
    comparison = comparing.compare(runs)
    if as_json:
        show(comparison)
    else:
        click.echo(comparing.table_text(comparison))
    if out:
        Path(out).write_text(comparing.report_html(runs, comparison), encoding="utf-8")
        say(f"wrote {out}")
        say(f"next: open {out} in a browser; it needs no network")
    else:
        say(f"next: orchestrator compare {' '.join(name)} --out report.html, or orchestrator ui")


@click.command()
@click.argument("name")
@STORAGE
def stop(name: str, storage: str) -> None:
    """Stop a run cleanly. Its trials end at their next epoch; the same command resumes it."""
    folder = run_folder(name, storage)
    if not is_running(folder):
        raise UserError(
            f"only a run in progress can be stopped; {name!r} is not running. "
            f"Fix: orchestrator status {name}"
        )
    from orchestrator.session import STOP_FILE

    if remote := origin(folder):
        write_bytes(f"{remote}/{STOP_FILE}", b"")
    else:
        (folder / STOP_FILE).touch()
    say(f"{name} was asked to stop; its trials end at their next epoch")
    say(f"next: orchestrator status {name}")


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
    from orchestrator.compare import read_report

    found = read_report(report, run=run)
    if rerun is not None:
        from orchestrator import cli_run
        from orchestrator.spec import RunSpec

        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or None
        told = {"name": rerun, "storage": storage, "tracking_uri": uri, "experiment": None}
        spec = RunSpec.from_dict({**found["spec"], **told})
        say(f"{found['name']} again as {rerun}, spec {spec.hash()}")
        ctx.exit(cli_run.carry_out(spec))
    if as_spec:
        show({"schema": 1, **found})
    else:
        click.echo(found["command"])
    say(f"next: orchestrator reproduce {report} --rerun NAME; its spec is {found['spec_hash']}")


COMMANDS = (compare, reproduce, stop)
