"""Commands that read runs or ask one to stop: compare, reproduce, status, stop."""

from __future__ import annotations

import difflib
import fcntl
from collections import Counter
from pathlib import Path
from typing import Any

import click

from orchestrator.cli_options import JSON, STORAGE, say, show
from trainables.errors import UserError

STATUSES = ("queued", "running", "finished", "pruned", "failed")


def run_folder(name: str, storage: str) -> Path:
    """The folder of a run that exists. Raises ``UserError`` with the near names."""
    from orchestrator.ledger import FILE_NAME

    folder = Path(storage) / name
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

    found = Path(storage).glob(f"*/{FILE_NAME}")
    return [path.parent for path in sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)]


def is_running(folder: Path) -> bool:
    """Whether a process holds the run's lock."""
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


def summary(folder: Path) -> dict[str, Any]:
    """What the ledger says of a run, as JSON."""
    from orchestrator.session import state_of

    state = state_of(folder)
    if is_running(folder):
        status = "running"
    elif state.closed:
        status = "done"
    else:
        status = "stopped" if state.stopped else "interrupted"
    families = []
    for family in dict.fromkeys(trial.family for trial in state.trials.values()):
        trials = [trial for trial in state.trials.values() if trial.family == family]
        counts = Counter(trial.status for trial in trials)
        bests = [value for trial in trials if (value := trial.best()[0]) is not None]
        families.append(
            {
                "family": family,
                "trials": len(trials),
                **{one: counts[one] for one in STATUSES},
                "epochs": sum(len(trial.reports) for trial in trials),
                "best_val_top1": max(bests, default=None),
            }
        )
    return {"name": folder.name, "status": status, "folder": str(folder), "families": families}


@click.command()
@click.argument("name", required=False)
@JSON
@STORAGE
def status(name: str | None, as_json: bool, storage: str) -> None:
    """Show what runs and how far. Without a NAME, all runs of the storage folder."""
    folders = [run_folder(name, storage)] if name else run_folders(storage)
    runs = [summary(folder) for folder in folders]
    if as_json:
        show({"schema": 1, "runs": runs})
    else:
        for line in _status_lines(runs):
            click.echo(line)
    if not runs:
        say(f"no run in {storage!r} yet; next: orchestrator demo")
    elif runs[0]["status"] == "running":
        say(f"next: orchestrator stop {runs[0]['name']}")
    elif runs[0]["status"] == "done":
        say(f"next: orchestrator compare {runs[0]['name']}")
    else:
        say(f"next: type {runs[0]['name']}'s command again, it goes on where it stopped")


def _status_lines(runs: list[dict[str, Any]]) -> list[str]:
    if not runs:
        return []
    columns = ("trials", *STATUSES, "epochs")
    heads = " ".join(f"{head:>8}" for head in (*columns, "best"))
    lines = [f"{'run':<24} {'status':<11} {'family':<9} {heads}"]
    for run in runs:
        for family in run["families"]:
            best = family["best_val_top1"]
            cells = [str(family[column]) for column in columns]
            cells.append("missing" if best is None else f"{best:.4f}")
            row = " ".join(f"{cell:>8}" for cell in cells)
            lines.append(f"{run['name']:<24} {run['status']:<11} {family['family']:<9} {row}")
    return lines


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

    (folder / STOP_FILE).touch()
    say(f"{name} was asked to stop; its trials end at their next epoch")
    say(f"next: orchestrator status {name}")


@click.command()
@click.argument("report", type=click.Path(path_type=Path))
@click.option("--run", help="Which run, where the report compares several.")
@click.option("--spec", "as_spec", is_flag=True, help="Print the whole spec as JSON instead.")
def reproduce(report: Path, run: str | None, as_spec: bool) -> None:
    """Print the command that a report's run was made by. Its spec is inside the file."""
    from orchestrator.compare import read_report

    found = read_report(report, run=run)
    if as_spec:
        show({"schema": 1, **found})
    else:
        click.echo(found["command"])
    say(f"next: run it under another --name; its spec must come out as {found['spec_hash']}")


COMMANDS = (compare, reproduce, status, stop)
