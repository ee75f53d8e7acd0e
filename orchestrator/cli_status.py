"""The command that tells what runs and how far: ``status``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from orchestrator.cli_options import JSON, STORAGE, say, show
from orchestrator.cli_read import is_running, run_folder, run_folders
from orchestrator.words import size


def seen(folder: Path) -> dict[str, Any]:
    """The run's view, as its own process shows it, with what its checkpoints take on disk."""
    from orchestrator.ledger_cost import checkpoint_bytes
    from orchestrator.session import state_of
    from orchestrator.view import view

    told = view(state_of(folder), running=is_running(folder))
    disk = checkpoint_bytes(folder)
    return {"name": folder.name, "folder": str(folder), **told, "checkpoint_bytes": disk}


@click.command()
@click.argument("name", required=False)
@JSON
@STORAGE
def status(name: str | None, as_json: bool, storage: str) -> None:
    """Show what runs and how far. Without a NAME, a line for every run of the storage folder."""
    runs = [seen(one) for one in ([run_folder(name, storage)] if name else run_folders(storage))]
    if as_json:
        show({"schema": 1, "runs": runs})
    elif name:
        _print(runs[0])
    else:
        _print_list(runs)
    if not runs:
        say(f"no run in {storage!r} yet; next: orchestrator demo")
    elif runs[0]["status"] == "running":
        say(f"next: orchestrator stop {runs[0]['name']}")
    elif runs[0]["status"] == "done":
        say(f"next: orchestrator compare {runs[0]['name']}")
    else:
        larger = " with a larger --budget" if runs[0]["reason"] and runs[0]["budget"] else ""
        say(f"next: type {runs[0]['name']}'s command again{larger}, it goes on where it stopped")


def _print(run: dict[str, Any]) -> None:
    from orchestrator.progress import print_view

    why = f": {run['reason']}" if run["reason"] else ""
    click.echo(f"{run['name']}, {run['status']}{why}")
    print_view(run)
    click.echo(f"checkpoints on disk: {size(run['checkpoint_bytes'])}")


def _print_list(runs: list[dict[str, Any]]) -> None:
    from orchestrator.view_text import summary

    for run in runs:
        click.echo(f"{run['name']:<24} {run['status']:<11} {summary(run)}")


COMMANDS = (status,)
