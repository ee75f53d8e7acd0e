"""The command that gives the winner away: as a folder, or as a registered model of MLflow."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli_options import STORAGE, TRACKING, say
from orchestrator.cli_read import run_folder
from trainables.errors import UserError, raise_if_any

if TYPE_CHECKING:
    from orchestrator.export import Choice
    from orchestrator.ledger import State

REGISTRY = "registry"
CHAMPION = "champion"


@click.command()
@click.argument("name")
@click.option("--to", metavar="DIR|registry", required=True, help="A new folder, or MLflow's.")
@click.option("--family", help="The best of this family. Default: the best of all.")
@STORAGE
@TRACKING
def export(name: str, to: str, family: str | None, storage: str, tracking_uri: str | None) -> None:
    """Export the winner, chosen on validation. It loads with timm or MLflow, without this project.

    In the registry it is NAME@champion, or NAME@FAMILY where a family was asked for.
    """
    folder = run_folder(name, storage)
    from orchestrator import export as exporting
    from orchestrator.session import state_of

    state = state_of(folder)
    choice = exporting.choose(state, family)
    say(choice.why)
    if not state.closed:
        say(f"{name} has not ended: this is its best so far")
    if to == REGISTRY:
        uri = tracking_uri or _uri(state, storage)
        _register(state, choice, folder, uri, family or CHAMPION)
        return
    exporting.write(state, choice, folder, Path(to))
    _check(choice, folder, Path(to))
    click.echo(to)
    say(f"next: {Path(to) / 'README.md'} has the code that loads it")


def _uri(state: State, storage: str) -> str:
    """Where the run was recorded."""
    from orchestrator import tracking

    asked = state.header.get("spec", {}).get("tracking_uri")
    return asked or tracking.default_uri(storage)


def _check(choice: Choice, folder: Path, exported: Path) -> None:
    from orchestrator import export as exporting

    try:
        said = exporting.check(choice, folder, exported)
    except exporting.Unchecked as error:
        said = f"warning: not checked against the run's own evaluation: {error.mistakes[0]}"
    say(said)


def _register(state: State, choice: Choice, folder: Path, uri: str, alias: str) -> None:
    from orchestrator import export as exporting
    from orchestrator import tracking

    raise_if_any(tracking.check(uri))
    with tempfile.TemporaryDirectory() as scratch:
        exporting.write(state, choice, folder, Path(scratch) / "model")
        _check(choice, folder, Path(scratch) / "model")
    from orchestrator import tracking_best
    from orchestrator.tracking_client import Outage

    experiment = state.header.get("spec", {}).get("experiment")
    try:
        client, run = tracking_best.run_of(state, choice, uri, experiment)
        if run is None:
            tracking.sync(folder, uri, experiment)
            client, run = tracking_best.run_of(state, choice, uri, experiment)
        assert run is not None
        version = tracking_best.register(client, run, state, choice, folder, alias=alias)
    except Outage as outage:
        raise UserError(f"MLflow at {uri} failed: {outage}. Fix: try again") from outage
    name = state.header["run"]
    say(f"version {version} of {name}")
    click.echo(f"models:/{name}@{alias}")
    say(f"next: mlflow.pyfunc.load_model('models:/{name}@{alias}'), MLFLOW_TRACKING_URI={uri}")


COMMANDS = (export,)
