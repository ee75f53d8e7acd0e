"""How to run it again: on the page for people, and embedded in it for ``read_report``."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from orchestrator.compare.runs import RunData, Values
from orchestrator.spec.limits import SchedulerSpec
from orchestrator.wording import MISSING, day
from trainables.errors import UserError

# No "<" is left in the JSON itself.
EMBEDDED = re.compile(r'<script type="application/json" id="spec">(.*?)</script>', re.S)


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


def read_report(path: Path, *, run: str | None = None) -> Values:
    """``{"name", "spec", "spec_hash", "command"}`` of the run that a report was made of.

    ``run`` names it where the report compares several. Raises ``UserError`` for a file that is no
    report, for a run that is not in it, and for several without ``run``.
    """
    try:
        page = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"a report is an HTML file of orchestrator compare; {str(path)!r} cannot be read "
            f"({type(error).__name__}). Fix: name the report.html in a run's folder"
        ) from error
    carried = EMBEDDED.search(page)
    if carried is None:
        raise UserError(
            f"a report holds the spec of its run; {str(path)!r} has none. "
            "Fix: name a report.html that orchestrator compare wrote"
        )
    entries = {entry["name"]: entry for entry in json.loads(carried[1])["runs"]}
    if run is None and len(entries) == 1:
        (run,) = entries
    if run not in entries:
        given = "none was named" if run is None else f"got {run!r}"
        raise UserError(
            f"one run of the report is reproduced; {given}; valid: {', '.join(entries)}. "
            "Fix: name one of them"
        )
    entry: Values = entries[run]
    return entry


def record(run: RunData) -> list[list[str]]:
    """Facts of a run, each with its value."""
    environment = run.header.environment.as_dict()
    versions = environment.pop("versions")
    facts = {**environment, **versions}.items()
    return [
        ["spec hash", run.header.spec_hash or MISSING],
        ["code version", run.header.code_version or MISSING],
        ["created (UTC)", day(run.state.created_at) if run.state.created_at else MISSING],
        ["status", run.status],
        *([fact, str(value)] for fact, value in facts if value is not None),
    ]


def spec_text(run: RunData) -> str:
    """The run's whole spec as JSON for people."""
    return json.dumps(run.header.spec.as_dict(), indent=1)


def command(run: RunData) -> str:
    """The command that asks for the run's main values; empty without a spec."""
    spec = run.header.spec
    if not spec.sweeps:
        return ""
    first = spec.sweeps[0]
    scheduler, resources = first.scheduler, first.resources
    options: dict[str, object] = {
        "name": run.name,
        "dataset": first.data.source,
        "scale": first.backbone.scale,
        "weights": first.backbone.weights,
    }
    if claim := spec.claim:
        words = ["claims", "run", claim["name"]]
        options["preset"] = claim["preset"]
        others = claim["options"]
    else:
        words = ["sweep" if len(spec.sweeps) == 1 else "tournament"]
        words += [sweep.family for sweep in spec.sweeps]
        most = None if resources.num_workers == 1 else resources.num_workers
        options |= {
            "trials": first.trials,
            "max-epochs": scheduler.max_epochs,
            "seed": first.seed,
            "final-seeds": spec.final_seeds or None,
            "audit": scheduler.audit or None,
            "workers": f"{resources.least_workers}..{most}" if resources.elastic else most,
        }
        usual = SchedulerSpec()
        others = [
            ["--set", f"scheduler.{name}={value}"]
            for name in ("kind", "sampler")
            if (value := getattr(scheduler, name)) != getattr(usual, name)
        ]
    given = [[f"--{name}", str(value)] for name, value in options.items() if value is not None]
    return shlex.join(["orchestrator", *words, *chain(*given, *others)])
