"""How to run it again: on the page for people, and embedded in it for ``read_report``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from orchestrator.compare.runs import RunData, Values
from orchestrator.wording import MISSING, day
from trainables.errors import UserError


def embedded(runs: Sequence[RunData]) -> Values:
    """Name, spec, spec hash and command of each run, which the page carries as JSON."""
    entries = [
        {
            "name": run.name,
            "spec_hash": run.header.get("spec_hash"),
            "command": command(run),
            "spec": run.header.get("spec", {}),
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
        ["spec hash", run.header.get("spec_hash") or MISSING],
        ["code version", run.header.get("code_version") or MISSING],
        ["created (UTC)", day(run.state.created_at) if run.state.created_at else MISSING],
        ["status", run.status],
        *[[name, str(value)] for name, value in _flat(run.header.get("environment") or {})],
    ]


def spec_text(run: RunData) -> str:
    """The run's whole spec as JSON for people."""
    return json.dumps(run.header.get("spec", {}), indent=1)


def _flat(values: Values) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield key, value


def command(run: RunData) -> str:
    """The command that asks for the run's main values; empty without a spec."""
    asked = run.sweeps
    if not asked:
        return ""
    first = asked[0]
    if claim := run.header["spec"].get("claim"):
        return _claim_command(run.name, claim, first)
    scheduler, workers = first.get("scheduler", {}), _workers(first.get("resources", {}))
    options = {
        "name": run.name,
        "dataset": first.get("data", {}).get("source"),
        "scale": first["backbone"].get("scale"),
        "weights": first["backbone"].get("weights"),
        "trials": first.get("trials"),
        "max-epochs": scheduler.get("max_epochs"),
        "seed": first.get("seed"),
        "final-seeds": run.header["spec"].get("final_seeds"),
        "audit": scheduler.get("audit") or None,
        "workers": workers,
    }
    words = ["orchestrator", "sweep" if len(asked) == 1 else "tournament"]
    words += [sweep["backbone"]["family"] for sweep in asked]
    for name, value in options.items():
        words += [] if value is None else [f"--{name}", str(value)]
    for field, usual in (("kind", "asha"), ("sampler", "random")):
        if scheduler.get(field, usual) != usual:
            words += ["--set", f"scheduler.{field}={scheduler[field]}"]
    return shlex.join(words)


def _workers(resources: Values) -> str | None:
    most, least = resources.get("num_workers"), resources.get("min_workers")
    if least is not None and least != most:
        return f"{least}..{most}"
    return None if most in (None, 1) else str(most)


def _claim_command(name: str, claim: Values, first: Values) -> str:
    words = ["orchestrator", "claims", "run", claim["name"], "--name", name]
    words += ["--dataset", str(first["data"]["source"]), "--scale", str(first["backbone"]["scale"])]
    words += ["--weights", str(first["backbone"]["weights"]), "--preset", str(claim["preset"])]
    for option in claim["options"]:
        words += list(option)
    return shlex.join(words)
