"""Commands about this machine rather than a run: data, doctor, ui."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import click

from orchestrator.cli_options import JSON, SET, STORAGE, TRACKING, say, show
from trainables.errors import UserError, raise_if_any


@click.group()
def data() -> None:
    """Prepare a dataset ahead of a sweep, or look into it."""


def _store(source: str, sets: tuple[str, ...]) -> Any:
    from orchestrator.overrides import apply_set
    from orchestrator.sweeps import family_sweep
    from trainables.data import check_source, prepare

    other = [text for text in sets if not text.startswith("data.")]
    raise_if_any(
        f"only data.* matters to a dataset; got --set {text}. Fix: leave it out" for text in other
    )
    spec = apply_set(family_sweep("vit", dataset=source), sets).data
    raise_if_any(check_source(spec))
    return prepare(spec, say=say)


@data.command()
@click.argument("dataset")
@SET
def prepare(dataset: str, set: tuple[str, ...]) -> None:
    """Read DATASET (a name or a path) into its pixel store, once; prints the store's folder."""
    store = _store(dataset, set)
    click.echo(str(store.path))
    say(f"next: orchestrator data info {dataset}, or orchestrator sweep vit --dataset {dataset}")


@data.command()
@click.argument("dataset")
@SET
@JSON
def info(dataset: str, set: tuple[str, ...], as_json: bool) -> None:
    """Sizes, splits and classes of DATASET; reads it into its pixel store if it is not there."""
    store = _store(dataset, set)
    facts = store.info.as_dict()
    names = store.info.class_names
    by_split = {split: Counter(store.split(split).labels.tolist()) for split in store.info.counts}
    classes = [
        {"class": name, **{split: counts[label] for split, counts in by_split.items()}}
        for label, name in enumerate(names)
    ]
    if as_json:
        show({"schema": 1, "dataset": facts, "classes": classes, "store": str(store.path)})
    else:
        counts = ", ".join(f"{count} {split}" for split, count in facts["counts"].items())
        click.echo(f"{facts['name']}: {facts['height']} x {facts['width']} px, {counts}")
        click.echo(f"content {facts['content_hash']}, store {store.path}")
        for row in classes:
            shares = "  ".join(f"{split} {row[split]:>6}" for split in by_split)
            click.echo(f"  {row['class']:<24} {shares}")
    say(f"next: orchestrator sweep vit --dataset {dataset}")


@click.command()
@JSON
@STORAGE
@TRACKING
def doctor(as_json: bool, storage: str, tracking_uri: str | None) -> None:
    """Check this machine. Versions, CPUs, GPUs, tracking, room for data and runs."""
    facts = _facts(storage, tracking_uri)
    if as_json:
        show({"schema": 1, **facts})
    else:
        for name, value in facts.items():
            if name not in ("versions", "problems"):
                click.echo(f"{name:<15} {'none' if value is None else value}")
        versions = ", ".join(f"{one} {version}" for one, version in facts["versions"].items())
        click.echo(f"{'versions':<15} {versions}")
    if facts["problems"]:
        raise UserError(*facts["problems"])
    say("next: orchestrator demo, or orchestrator sweep vit --dataset PATH")


def _facts(storage: str, tracking_uri: str | None) -> dict[str, Any]:
    from orchestrator import cluster, plan, tracking
    from orchestrator.cli_check import storage_mistakes
    from orchestrator.session import environment
    from trainables.assignment import DataSpec
    from trainables.data import default_folder

    machine = environment()
    uri = tracking_uri or tracking.default_uri(storage)
    problems = storage_mistakes(storage) + tracking.check(uri)
    total = plan.local_totals()
    folder = default_folder(DataSpec())
    return {
        "python": machine["python"],
        "platform": machine["platform"],
        "processor": machine["processor"],
        "cpus": int(total["CPU"]),
        "gpus": int(total["GPU"]),
        "memory_gb": machine["memory_gb"],
        "cluster": cluster.known_address(),
        "tracking": uri,
        "storage": str(Path(storage).absolute()),
        "storage_free_gb": _free_gb(Path(storage)),
        "data_folder": str(folder),
        "data_free_gb": _free_gb(folder),
        "versions": machine["versions"],
        "problems": problems,
    }


def _free_gb(folder: Path) -> float:
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return round(shutil.disk_usage(place).free / 1e9, 1)


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
@STORAGE
@TRACKING
def ui(port: int, storage: str, tracking_uri: str | None) -> None:
    """Open MLflow on this store. For this machine only; Ctrl-C ends it."""
    from orchestrator import tracking

    uri = tracking_uri or tracking.default_uri(storage)
    command = tracking.ui_command(storage, uri, port=port)
    if not command:
        click.echo(uri)
        say("this store is a server already; next: open it in a browser")
        return
    raise_if_any(tracking.check(uri))
    file = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:") and not file.exists():
        raise UserError(
            f"there is no MLflow store at {file} yet. Fix: orchestrator demo, or --storage FOLDER"
        )
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind(("127.0.0.1", port))
        except OSError:
            raise UserError(f"port {port} is taken. Fix: --port {port + 1}") from None
    click.echo(f"http://127.0.0.1:{port}")
    say("starting MLflow, some seconds; Ctrl-C ends it; next: open the address in a browser")
    raise SystemExit(subprocess.run(command, check=False).returncode)


COMMANDS = (data, doctor, ui)
