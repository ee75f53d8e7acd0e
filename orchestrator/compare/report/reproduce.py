"""How to run it again: on the page for people, and embedded in it for ``read_report``."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.compare.report.html import Markup, details, items, paragraph, section, table, text
from orchestrator.compare.runs import RunData
from orchestrator.spec.limits import ResourceSpec
from orchestrator.spec.run import SweepSpec
from orchestrator.wording import MISSING, day
from trainables.errors import UserError

# Data that no browser runs; ``<`` is escaped in it, so that nothing inside can end it.
_EMBEDDED = re.compile(r'<script type="application/json" id="spec">(.*?)</script>', re.DOTALL)


def embedded(runs: Sequence[RunData]) -> str:
    """Name, spec, spec hash and command of each run, as JSON inside the page."""
    entries = [
        {
            "name": run.name,
            "spec_hash": run.header.spec_hash,
            "command": command(run),
            "spec": run.header.spec.as_dict(),
        }
        for run in runs
    ]
    content = json.dumps({"schema": 1, "runs": entries}, separators=(",", ":")).replace(
        "<", "\\u003c"
    )
    return f'<script type="application/json" id="spec">{content}</script>'


def read_report(path: Path, *, run: str | None = None) -> dict[str, Any]:
    """``{"name", "spec", "spec_hash", "command"}`` of the run that a report was made of.

    ``run`` names it where the report compares several. Raises ``UserError`` for a file that is no
    report, for a run that is not in it, and for several without ``run``.
    """
    try:
        found = _EMBEDDED.search(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"a report is an HTML file of orchestrator compare; {str(path)!r} cannot be read "
            f"({type(error).__name__}). Fix: name the report.html in a run's folder"
        ) from error
    if found is None:
        raise UserError(
            f"a report holds the spec of its run; {str(path)!r} has none. "
            "Fix: name a report.html that orchestrator compare wrote"
        )
    entries = {entry["name"]: entry for entry in json.loads(found[1])["runs"]}
    if run is None and len(entries) == 1:
        return dict(next(iter(entries.values())))
    if run not in entries:
        given = "none was named" if run is None else f"got {run!r}"
        raise UserError(
            f"one run of the report is reproduced; {given}; valid: {', '.join(entries)}. "
            "Fix: name one of them"
        )
    return dict(entries[run])


def how(runs: Sequence[RunData], comparison: Mapping[str, Any]) -> str:
    """The section: record, command and whole spec of each run, and its notes."""
    parts = []
    for run, entry in zip(runs, comparison["runs"], strict=True):
        created = day(entry["created_at"]) if entry["created_at"] else MISSING
        rows = [
            ["spec hash", entry["spec_hash"] or MISSING],
            ["code version", entry["code_version"] or MISSING],
            ["created (UTC)", created],
            ["status", entry["status"]],
            *[[str(k), str(v)] for k, v in _flat(entry["environment"] or {})],
        ]
        parts.append(table(["fact", "value"], rows, caption=f"Record of run {run.name}"))
        asked = command(run)
        if asked:
            parts.append(f"<pre><code>{text(asked)}</code></pre>")
        spec = json.dumps(run.header.spec.as_dict(), indent=1)
        parts.append(details(f"Whole spec of {run.name}", f"<pre><code>{text(spec)}</code></pre>"))
    lead = Markup(
        "This page carries each run's whole spec: <code>orchestrator reproduce report.html</code> "
        "reads it and says how to run it again. The command below names what was asked for; every "
        "other value is in the spec. Two runs are the same when their spec hashes are."
    )
    notes = items(comparison["notes"]) if comparison["notes"] else ""
    heading = "<h3>Notes of the run</h3>" if notes else ""
    body = Markup("".join(parts))
    return section("reproduce", "How to reproduce", paragraph(lead), body, heading, notes)


def _flat(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        found += _flat(value) if isinstance(value, Mapping) else [(key, value)]
    return found


def command(run: RunData) -> str:
    """The command that asks for the run's main values; empty without a spec."""
    sweeps = run.header.spec.sweeps
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
        "final-seeds": run.header.spec.final_seeds,
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


def _claim_command(name: str, claim: Mapping[str, Any], first: SweepSpec) -> str:
    words = ["orchestrator", "claims", "run", claim["name"], "--name", name]
    words += ["--dataset", first.data.source, "--scale", first.backbone.scale]
    words += ["--weights", first.backbone.weights, "--preset", str(claim["preset"])]
    for option in claim["options"]:
        words += list(option)
    return shlex.join(words)
