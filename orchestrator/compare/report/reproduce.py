"""How to run it again: on the page for people, and embedded in it for ``read_report``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from orchestrator.compare.runs import RunData, Values
from orchestrator.spec.limits import ResourceSpec
from orchestrator.spec.run import SweepSpec
from orchestrator.wording import MISSING, day
from trainables.errors import UserError


def embedded(runs: Sequence[RunData]) -> Values:
    """Name, spec, spec hash and command of each run, which the page carries as JSON."""
    entries = [
        {
            "name": run.name,
            "spec_hash": run.header.spec_hash,
            "command": command(run),
            "spec": run.header.spec.as_dict(),
        }
        for run in runs
    ]
    return {"schema": 1, "runs": entries}


class _Embedded(HTMLParser):
    """Finds the text of ``<script type="application/json" id="spec">``."""

    def __init__(self) -> None:
        super().__init__()
        self.text: str | None = None
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag == "script" and ("id", "spec") in attrs

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.text = (self.text or "") + data


def read_report(path: Path, *, run: str | None = None) -> Values:
    """``{"name", "spec", "spec_hash", "command"}`` of the run that a report was made of.

    ``run`` names it where the report compares several. Raises ``UserError`` for a file that is no
    report, for a run that is not in it, and for several without ``run``.
    """
    page = _Embedded()
    try:
        page.feed(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"a report is an HTML file of orchestrator compare; {str(path)!r} cannot be read "
            f"({type(error).__name__}). Fix: name the report.html in a run's folder"
        ) from error
    if page.text is None:
        raise UserError(
            f"a report holds the spec of its run; {str(path)!r} has none. "
            "Fix: name a report.html that orchestrator compare wrote"
        )
    entries = {entry["name"]: entry for entry in json.loads(page.text)["runs"]}
    if run is None and len(entries) == 1:
        return dict(next(iter(entries.values())))
    if run not in entries:
        given = "none was named" if run is None else f"got {run!r}"
        raise UserError(
            f"one run of the report is reproduced; {given}; valid: {', '.join(entries)}. "
            "Fix: name one of them"
        )
    return dict(entries[run])


def record(run: RunData) -> list[list[str]]:
    """Facts of a run, each with its value."""
    return [
        ["spec hash", run.header.spec_hash or MISSING],
        ["code version", run.header.code_version or MISSING],
        ["created (UTC)", day(run.state.created_at) if run.state.created_at else MISSING],
        ["status", run.status],
        *[[k, str(v)] for k, v in _flat(run.header.environment.as_dict()) if v is not None],
    ]


def spec_text(run: RunData) -> str:
    """The run's whole spec as JSON for people."""
    return json.dumps(run.header.spec.as_dict(), indent=1)


def _flat(values: Values) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield key, value


def command(run: RunData) -> str:
    """The command that asks for the run's main values; empty without a spec."""
    sweeps = run.state.spec.sweeps
    if not sweeps:
        return ""
    first = sweeps[0]
    if claim := run.header.spec.claim:
        return _claim_command(run.name, claim, first)
    scheduler = first.scheduler
    options = {
        "name": run.name,
        "dataset": first.data.source,
        "scale": first.backbone.scale,
        "weights": first.backbone.weights,
        "trials": first.trials,
        "max-epochs": scheduler.max_epochs,
        "seed": first.seed,
        "final-seeds": run.header.spec.final_seeds or None,
        "audit": scheduler.audit or None,
        "workers": _workers(first.resources),
    }
    words = ["orchestrator", "sweep" if len(sweeps) == 1 else "tournament"]
    words += [sweep.family for sweep in sweeps]
    for name, value in options.items():
        words += [] if value is None else [f"--{name}", str(value)]
    for name, value, usual in (
        ("kind", scheduler.kind, "asha"),
        ("sampler", scheduler.sampler, "random"),
    ):
        if value != usual:
            words += ["--set", f"scheduler.{name}={value}"]
    return shlex.join(words)


def _workers(resources: ResourceSpec) -> str | None:
    if resources.elastic:
        return f"{resources.least_workers}..{resources.num_workers}"
    return None if resources.num_workers == 1 else str(resources.num_workers)


def _claim_command(name: str, claim: Values, first: SweepSpec) -> str:
    words = ["orchestrator", "claims", "run", claim["name"], "--name", name]
    words += ["--dataset", first.data.source, "--scale", first.backbone.scale]
    words += ["--weights", first.backbone.weights, "--preset", str(claim["preset"])]
    for option in claim["options"]:
        words += list(option)
    return shlex.join(words)
