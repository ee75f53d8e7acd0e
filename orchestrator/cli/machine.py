"""Commands about this machine rather than a run: data, doctor, ui."""

from __future__ import annotations

import logging
import shlex
import socket
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.options import JSON, SET, STORAGE, TRACKING, beside, echo, show
from orchestrator.launch.options import DEMO_FAMILIES, RunOptions, spec_of
from orchestrator.ledger import events
from orchestrator.ledger.replication import existing_run, existing_runs
from orchestrator.ledger.session import is_running, state_of
from orchestrator.wording import size
from trainables.errors import RESUMABLE, UserError, raise_if_any
from trainables.printable import escaped
from trainables.storage.object_storage import is_remote

if TYPE_CHECKING:
    from trainables.data.store import ImageStore

log = logging.getLogger(__name__)

CLASSES_SHOWN = 20  # each on a line of its own; of more, the smallest and the largest


@click.group()
def data() -> None:
    """Prepare a dataset ahead of a sweep, or look into it."""


def _store(source: str, sets: tuple[str, ...]) -> ImageStore:
    from orchestrator.launch.forecast import read_dataset

    other = [text for text in sets if not text.startswith("data.")]
    raise_if_any(
        f"only data.* matters to a dataset; got --set {text}. Fix: leave it out" for text in other
    )
    return read_dataset(source, sets)


def _again(source: str, sets: tuple[str, ...]) -> str:
    """The same images in another command, as a shell reads them."""
    return shlex.join([source, *(word for text in sets for word in ("--set", text))])


@data.command()
@click.argument("dataset")
@SET
def prepare(dataset: str, set: tuple[str, ...]) -> None:
    """Read DATASET (a name or a path) into its image store, once; prints the store's folder."""
    echo(str(_store(dataset, set).path))
    same, sweep = _again(dataset, set), "orchestrator sweep vit --dataset"
    log.info(f"next: orchestrator data info {same}, or {sweep} {same}")


@data.command()
@click.argument("dataset")
@SET
@JSON
def info(dataset: str, set: tuple[str, ...], as_json: bool) -> None:
    """Sizes, splits, classes and copies in DATASET; reads it into its image store if need be."""
    from orchestrator.compare.data_notes import copies_lines, group_and_class_warnings
    from trainables.data import groups
    from trainables.data.balance import counts_lines

    store = _store(dataset, set)
    facts, kept = store.info.as_dict(), store.info.encoded_bytes
    by_split = {split: Counter(store.labels(split).tolist()) for split in store.info.counts}
    classes = [
        {"class": name, **{split: counts[label] for split, counts in by_split.items()}}
        for label, name in enumerate(store.info.class_names)
    ]
    counts = ", ".join(f"{count} {split}" for split, count in facts["counts"].items())
    lines = [
        f"{facts['name']}: {facts['height']} x {facts['width']} px, {counts}",
        f"content {facts['content_hash']}, test split {facts['test_hash']}, store {store.path}",
        f"kept as {'pixels' if kept is None else f'encoded pictures, {size(kept)}'}; "
        f"all pixels take {size(store.info.pixel_bytes)}",
    ]
    for row in classes if len(classes) <= CLASSES_SHOWN else ():
        shares = "  ".join(f"{split} {row[split]:>6}" for split in by_split)
        lines.append(f"  {escaped(str(row['class']), keep=''):<24} {shares}")
    if len(classes) > CLASSES_SHOWN:
        lines += [f"  {line}" for line in counts_lines(store.info)]
    if store.info.groups is not None:
        lines.append(groups.sentence(store.info.groups))
    lines += [f"warning: {line}" for line in group_and_class_warnings(store.info)]
    lines += copies_lines(store.info, store.path)
    document = {"schema": 1, "dataset": facts, "classes": classes, "store": str(store.path)}
    show(as_json, document, lambda: "\n".join(lines))
    log.info(f"next: orchestrator sweep vit --dataset {_again(dataset, set)}")


@click.command()
@click.argument("candidate", nargs=-1)
@click.option("--scale", metavar="SCALE", help="Look for the weights of this scale: tiny, ...")
@click.option("--weights", metavar="hub|none|PATH", help="Look for these weights, on every node.")
@click.option("--local", is_flag=True, help="Leave the cluster out: this machine alone.")
@click.option("--repair", metavar="NAME", help="Cut this run's ledger before its damaged line.")
@JSON
@STORAGE
@TRACKING
def doctor(
    candidate: tuple[str, ...],
    scale: str | None,
    weights: str | None,
    local: bool,
    repair: str | None,
    as_json: bool,
    storage: str,
    tracking_uri: str | None,
) -> None:
    """Check this machine and the cluster. Versions, GPUs, storage, tracking, tokens, weights.

    The weights of each CANDIDATE are looked for, where one is named or --scale or --weights is
    given.
    """
    if repair is not None:
        _repair(repair, storage, as_json)
        return
    from orchestrator.ops.doctor import examine

    backbones = []
    if candidate or scale or weights:
        spec = spec_of(candidate or DEMO_FAMILIES, RunOptions(scale=scale, weights=weights))
        raise_if_any(spec.mistakes())
        backbones = [sweep.backbone for sweep in spec.sweeps]
    findings = examine(storage, tracking_uri, backbones, local=local)
    versions = ", ".join(f"{library} {version}" for library, version in findings.versions.items())
    facts = [*findings.facts.items(), ("versions", versions)]
    for node in findings.nodes or ():
        role = "head" if node.head else "worker"
        gpus = f", {node.gpus:g} GPU, torch sees {node.torch_gpus}" if node.gpus else ""
        answers = "" if node.answers else ", does not answer"
        facts.append(("node", f"{node.node}, {role}{gpus}{answers}"))
    lines = [f"{name:<15} {'none' if value is None else value}" for name, value in facts]
    show(as_json, {"schema": 1, **findings.as_dict()}, lambda: "\n".join(lines))
    for line in findings.warnings:
        log.warning(f"warning: {line}")
    raise_if_any(findings.problems)
    log.info("next: orchestrator demo, or orchestrator sweep vit --dataset PATH")


def _repair(name: str, storage: str, as_json: bool) -> None:
    """Cut the ledger of a run that nobody carries out at its last good record."""
    if is_remote(storage):
        raise UserError(
            f"--repair needs a run in a folder; got --storage {storage}. "
            "Fix: copy the run's folder here, repair it and copy it back"
        )
    folder = existing_run(name, storage)
    if is_running(folder):
        raise UserError(f"{name!r} is running. Fix: orchestrator stop {name}, then repair it")
    done = events.repair(folder / events.FILE_NAME)
    what = f"{done.kept} records stay"
    if done.backup is None:
        what += "; nothing was damaged"
    else:
        what += f", {done.dropped} lines from the damaged one on are cut; the file as it was: "
        what += str(done.backup)
    document = {
        "kept": done.kept,
        "dropped": done.dropped,
        "backup": done.backup and str(done.backup),
    }
    show(as_json, {"schema": 1, "run": name, **document}, lambda: f"{name}: {what}")
    place = beside(storage)
    log.info(f"next: orchestrator status {name}{place}; the run's own command goes on from there")


@click.command()
@click.argument("name", required=False)
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
@click.option("--open", "opens", is_flag=True, help="Open these pages in your browser.")
@STORAGE
@TRACKING
def ui(name: str | None, port: int, opens: bool, storage: str, tracking_uri: str | None) -> None:
    """Serve MLflow on this store and print its pages that compare NAME's trials: the winners of
    the searches, the finals, and all trials by metric.

    Without NAME the pages are of the newest run. For this machine only; Ctrl-C ends it.
    """
    from orchestrator.ops.ui import served, wait_for_answer, wait_for_end
    from orchestrator.tracking import store

    runs = [existing_run(name, storage)] if name else existing_runs(storage)
    recorded_at = state_of(runs[0]).spec.tracking_uri if name else None
    uri = tracking_uri or recorded_at or store.default_uri(storage)
    command = store.ui_command(storage, uri, port=port)
    if not command:
        echo(uri)
        _show_pages(runs, uri, uri, opens)
        log.info("this store is a server already; next: open a page in a browser")
        return
    file = store.database_path(uri)
    if file is not None and not file.exists():
        raise UserError(
            f"there is no MLflow store at {file} yet. Fix: orchestrator demo, or --storage FOLDER"
        )
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        raise UserError(f"port {port} is taken. Fix: --port {port + 1}") from None
    raise_if_any(store.can_record(uri))
    address = f"http://127.0.0.1:{port}"
    echo(address)
    log.info("starting MLflow, some seconds; Ctrl-C ends it")
    try:
        with served(command) as server:
            wait_for_answer(server, address)
            _show_pages(runs, uri, address, opens)
            log.info("MLflow is ready; next: open a page in a browser")
            wait_for_end(server)
    except KeyboardInterrupt:  # how it is meant to end: nothing is left to go on with
        log.info("MLflow has ended")
        sys.exit(RESUMABLE)


def _show_pages(runs: Sequence[Path], uri: str, server: str, opens: bool) -> None:
    """Print the pages of the first of ``runs``, a line each, and open them where asked. Without a
    page the UI is there all the same: what is in the way is a warning."""
    from orchestrator.ops.ui import open_pages
    from orchestrator.tracking.links import comparison_links

    addresses = [server]
    if runs:
        try:
            links = comparison_links(runs[0], uri, server)
        except UserError as error:
            log.warning(f"warning: {error.mistakes[0]}")
        else:
            for link in links:
                noun = link.subject if link.trials > 1 else link.subject.removesuffix("s")
                echo(f"{link.trials} {noun} of {runs[0].name}: {link.address}")
            addresses = [link.address for link in links] or addresses
    if opens and not open_pages(addresses):
        log.warning("warning: no browser could be opened here. Fix: open a page in yours")
