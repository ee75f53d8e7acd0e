"""The report people open: one HTML file that needs nothing but itself.

In order: the answer in two sentences, families, accuracy against cost, learning curves, curves
over budget, failures, what differed between the arms, how to reproduce.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from orchestrator.compare import pictures, sections
from orchestrator.compare.curves import collect, sweeps
from orchestrator.compare.html import Markup, details, items, paragraph, section, table, text
from orchestrator.compare.runs import RunData
from orchestrator.compare.wording import MISSING, day, points, seconds

# The page may show what it carries and fetch nothing, wherever it is opened.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def report_html(runs: Sequence[RunData], comparison: Mapping[str, Any]) -> str:
    """One self-contained offline page of a comparison of ``runs``."""
    families = collect(runs)
    parts = [
        sections.families(comparison),
        sections.finals(comparison),
        pictures.against_cost(families),
        pictures.learning(families),
        pictures.over_budget(families, comparison["budget"]),
        sections.failures(comparison),
        sections.differences(comparison),
        _reproduce(runs, comparison),
    ]
    title = text(" and ".join(run.name for run in runs))
    style = files("orchestrator.compare").joinpath("report.css").read_text()
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<link rel="icon" href="data:,"><title>{title}: comparison</title>'
        f"<style>{style}</style></head>\n<body>{_header(title, comparison)}"
        f"<main>{''.join(parts)}</main>"
        "<footer>Made from the run's ledger alone. Accuracies on validation images unless test "
        "is named.</footer></body></html>\n"
    )


def _header(title: str, comparison: Mapping[str, Any]) -> str:
    links = (
        ("families", "Families"), ("finals", "Finals"), ("cost", "Accuracy against cost"),
        ("curves", "Learning curves"), ("budget", "Equal budgets"), ("failures", "Failures"),
        ("differences", "What differed"), ("reproduce", "Reproduce"),
    )  # fmt: skip
    anchors = "".join(f'<li><a href="#{name}">{label}</a></li>' for name, label in links)
    facts = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>"
        for name, value in _facts(comparison)
    )
    return (
        f'<header><p class="kicker">Comparison of backbones</p><h1>{title}</h1>'
        f"{paragraph(comparison['answer'], 'answer')}"
        f'<dl class="facts">{facts}</dl>'
        f'<nav aria-label="Sections"><ul>{anchors}</ul></nav></header>'
    )


def _facts(comparison: Mapping[str, Any]) -> list[tuple[str, str]]:
    families = comparison["families"]
    counts = (comparison["dataset_info"] or {}).get("counts", {})
    val = counts.get("val")
    spent = [entry["gpu_seconds"] for entry in families]
    known = None if not spent or None in spent else sum(spent)
    opened = comparison["test_opened_at"]
    device = {entry["device"] for entry in families if entry["device"]}
    return [
        ("Dataset", comparison["dataset"] or MISSING),
        ("Validation images", f"{val} (one is {points(1 / val)})" if val else MISSING),
        ("Trials", str(sum(entry["trials"] for entry in families))),
        ("Device time", f"{seconds(known)} {', '.join(sorted(device)).upper()}"),
        ("Test split", _test_split(opened, families)),
        ("Run", ", ".join(f"{run['name']}: {run['status']}" for run in comparison["runs"])),
    ]


def _test_split(opened: float | None, families: Sequence[Mapping[str, Any]]) -> str:
    if opened is not None:
        return f"opened {day(opened)}"
    return "opening not on record" if any(e["final"] for e in families) else "not opened"


def _reproduce(runs: Sequence[RunData], comparison: Mapping[str, Any]) -> str:
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
        command = _command(run)
        if command:
            parts.append(f"<pre><code>{text(command)}</code></pre>")
        spec = json.dumps(run.header.get("spec", {}), indent=1, default=str)
        parts.append(details(f"Whole spec of {run.name}", f"<pre><code>{text(spec)}</code></pre>"))
    lead = (
        "The command names what the run asked for; every other value is in its spec. Two runs are "
        "the same when their spec hashes are."
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


def _command(run: RunData) -> str:
    asked = sweeps(run)
    if not asked:
        return ""
    first = asked[0]
    what = "sweep" if len(asked) == 1 else "tournament"
    named = " ".join(sweep["backbone"]["family"] for sweep in asked)
    options = {
        "name": run.name,
        "dataset": first.get("data", {}).get("source"),
        "scale": first["backbone"].get("scale"),
        "weights": first["backbone"].get("weights"),
        "trials": first.get("trials"),
        "max-epochs": first.get("scheduler", {}).get("max_epochs"),
        "seed": first.get("seed"),
    }
    given = " ".join(f"--{name} {value}" for name, value in options.items() if value is not None)
    return f"orchestrator {what} {named} {given}"
