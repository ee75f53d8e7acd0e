"""The report people open: one HTML file that needs nothing but itself.

In order: the answer in two sentences, families, finals, accuracy against cost, learning curves,
curves over budget, the audit of pruning, recipe sensitivity, probes, the forecast scored,
failures, what differed between the arms, how to reproduce.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import unescape
from importlib.resources import files
from pathlib import Path
from typing import Any

from orchestrator.compare.comparison import Comparison
from orchestrator.compare.report import claim_section, finals_section, pictures, reproduce, sections
from orchestrator.compare.report.budget_section import over_budget
from orchestrator.compare.report.figures import INK, VARIABLES
from orchestrator.compare.report.html import paragraph, text
from orchestrator.compare.report.probe_section import probes
from orchestrator.compare.report.recipe_section import sensitivity
from orchestrator.compare.runs import Curve, RunData, collect
from orchestrator.wording import MISSING, day, points, seconds

# The page may show what it carries and fetch nothing, wherever it is opened.
PAGE, PLOTS = "report.html", "plots"
SCALE = 2.0  # pixels of a figure's file for each of its points
_FIGURE = re.compile(r"<figure><figcaption>(.*?)</figcaption>(<svg.*?</svg>)", re.DOTALL)
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class _View(dict[str, Any]):
    """A step on the way to templates: the compare JSON whose keys are attributes as well."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


def _view(comparison: Comparison) -> _View:
    view: _View = json.loads(json.dumps(comparison.as_dict()), object_hook=_View)
    view["budget"]["units"] = comparison.budget.units
    for pair, typed in zip(view["pairs"], comparison.pairs, strict=True):
        pair["better_and_worse"] = typed.better_and_worse
    for family, summary in zip(view["families"], comparison.families, strict=True):
        family["device_seconds"] = summary.device_seconds
    if comparison.forecast:
        view["forecast"]["sentence"] = comparison.forecast.sentence
    return view


def report_html(runs: Sequence[RunData], typed: Comparison) -> str:
    """One self-contained offline page of a comparison of ``runs``."""
    families, comparison = collect(runs), _view(typed)
    parts = [
        claim_section.claim(runs),
        sections.families(comparison),
        *([] if comparison["claims"] else [finals_section.finals(comparison)]),
        pictures.against_cost(families),
        pictures.learning(families, sections.speed(comparison)),
        *([] if comparison["claims"] else _of_a_search(families, comparison)),
        sections.forecast(comparison),
        sections.failures(comparison),
        sections.differences(comparison),
        reproduce.how(runs, comparison),
    ]
    body = "".join(parts)
    title = text(" and ".join(run.name for run in runs))
    style = files("orchestrator.compare").joinpath("report.css").read_text()
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<link rel="icon" href="data:,"><title>{title}: comparison</title>'
        f"<style>{style}</style></head>\n<body>{_header(title, comparison, body)}"
        f"<main>{body}</main>"
        "<footer>Made from the run's ledger alone. Accuracies on validation images unless test "
        f"is named.</footer>{reproduce.embedded(runs)}</body></html>\n"
    )


def write_report(runs: Sequence[RunData], comparison: Comparison, folder: Path) -> list[Path]:
    """Write ``report.html`` and each of its figures as ``plots/*.svg`` into ``folder``.

    Returns the files, the page last: whoever sees it finds the figures beside it.
    """
    page = report_html(runs, comparison)
    texts = _figure_files(page)
    written = [folder / PLOTS / name for name in texts]
    (folder / PLOTS).mkdir(parents=True, exist_ok=True)
    for stale in set((folder / PLOTS).glob("*.svg")) - set(written):
        stale.unlink()
    for path, text_ in zip(written, texts.values(), strict=True):
        path.write_text(text_, encoding="utf-8")
    (folder / PAGE).write_text(page, encoding="utf-8")
    return [*written, folder / PAGE]


def _figure_files(report: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for title, svg in _FIGURE.findall(report):
        drawn = re.search(r'id="([\w-]+?)-figure_1"', svg)
        kind = re.sub(r"-\d+$", "", drawn[1]) if drawn else "picture"
        words = unescape(re.sub(r"<[^>]*>|&NoBreak;|●", "", title))
        name = f"{kind} {words}" if not words.lower().startswith(kind) else words
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        for color, variable in VARIABLES.items():
            svg = svg.replace(variable, INK if variable == "currentColor" else color)
        size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
        width, height = (float(side) * SCALE for side in size.groups()) if size else (600, 400)
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            'style="background:white;font-family:sans-serif"'
        )
        found[f"{slug}.svg"] = svg.replace("<svg", head, 1)
    return found


def _of_a_search(
    families: Mapping[str, Sequence[Curve]], comparison: Mapping[str, Any]
) -> list[str]:
    """What is worth showing where recipes were searched, and means nothing on a claim's grid."""
    return [
        over_budget(families, comparison),
        finals_section.audit(comparison),
        sensitivity(families, comparison),
        probes(comparison),
    ]


def _header(title: str, comparison: Mapping[str, Any], body: str) -> str:
    links = (
        ("claim", "The claim"),
        ("families", "Families"), ("finals", "Finals"), ("cost", "Accuracy against cost"),
        ("curves", "Learning curves"), ("budget", "Curves over budget"), ("audit", "Pruning"),
        ("recipe", "Recipe"), ("probes", "Probes"), ("forecast", "Forecast"),
        ("failures", "Failures"), ("differences", "What differed"), ("reproduce", "Reproduce"),
    )  # fmt: skip
    anchors = "".join(
        f'<li><a href="#{name}">{label}</a></li>'
        for name, label in links
        if f'<section id="{name}"' in body
    )
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
    device = {entry["device"] for entry in families if entry["device"]}
    return [
        ("Dataset", comparison["dataset"] or MISSING),
        ("Validation images", f"{val} (one is {points(1 / val)})" if val else MISSING),
        ("Trials", str(sum(entry["trials"] for entry in families))),
        ("Device time", f"{seconds(known)} {', '.join(sorted(device)).upper()}"),
        ("Test split", _test_split(comparison)),
        ("Run", ", ".join(f"{run['name']}: {run['status']}" for run in comparison["runs"])),
    ]


def _test_split(comparison: Mapping[str, Any]) -> str:
    opened = comparison["test_opened_at"]
    times = max(run["test_openings"] for run in comparison["runs"])
    if opened is not None:
        return f"opened {day(opened)}" + (f", {times} times in all" if times > 1 else "")
    finals = any(entry["final"] for entry in comparison["families"])
    return "opening not on record" if finals else "not opened"
