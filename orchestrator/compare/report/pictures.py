"""The report's picture sections: each row of figures, with the table behind each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from orchestrator.compare.report import figures
from orchestrator.compare.report.figures import share_limits
from orchestrator.compare.report.html import (
    Markup,
    dot,
    figure,
    limited,
    paragraph,
    section,
    table,
    text,
)
from orchestrator.compare.runs import Curve
from orchestrator.wording import MISSING, count, percent, recipe_text, seconds

Families = Mapping[str, Sequence[Curve]]


def search_of(families: Families) -> dict[str, list[Curve]]:
    """The families' search trials, finals left out."""
    return {f: [c for c in curves if c.stage == "search"] for f, curves in families.items()}


def family_key(families: Iterable[str]) -> str:
    """Which colour and mark is whose."""
    shapes = "●■▲◆▼⬟✖★"
    return _key(
        [
            Markup(f'<b style="color: var(--family-{i % 8})">{shapes[i % 8]}</b> {text(family)}')
            for i, family in enumerate(families)
        ]
    )


def _key(entries: Sequence[str]) -> str:
    return f'<ul class="key">{"".join(f"<li>{entry}</li>" for entry in entries)}</ul>'


def against_cost(families: Families) -> str:
    """Finished trials: accuracy against device seconds and FLOPs."""
    search = search_of(families)
    values = [c.best[0] for curves in search.values() for c in curves if _ranked(c) and c.best]
    if not values:
        return section("cost", "Accuracy against cost", paragraph("No trial finished.", "missing"))
    limits = share_limits(values)
    drawn = []
    for cost, title in (("seconds", "Device seconds"), ("flops", "FLOPs")):
        picture = figures.accuracy_against_cost(
            search, cost=cost, name=f"cost-{cost}", limits=limits
        )
        drawn.append(figure(picture, _cost_table(search, cost, title), title=title))
    lead = (
        "Each mark is one finished trial at the whole cost of its training. The stepped line is "
        "the Pareto front: no trial is both cheaper and better. Pruned and failed trials are not "
        "shown, because their accuracy is censored."
    )
    row = f'<div class="row pair">{"".join(drawn)}</div>'
    return section("cost", "Accuracy against cost", paragraph(lead), family_key(families), row)


def _ranked(curve: Curve) -> bool:
    return curve.status == "finished"


def _cost_table(search: Families, cost: str, title: str) -> str:
    known = [
        (c.best[0], float(getattr(c, cost)[-1]), c)
        for curves in search.values()
        for c in curves
        if _ranked(c) and c.best
    ]
    known.sort(key=lambda entry: -entry[0])
    write = seconds if cost == "seconds" else count
    rows = [
        [c.trial, c.family, percent(value), write(spent) if np.isfinite(spent) else MISSING]
        for value, spent, c in known
    ]
    rows, caption = limited(rows, "Finished trials, best first")
    return table(["trial", "family", "best val", title], rows, caption=caption)


def learning(families: Families, speed: str) -> str:
    """Learning curves, one picture a family, all on the same axes; then how fast they were."""
    search = {
        f: curves for f, curves in search_of(families).items() if any(c.epoch.size for c in curves)
    }
    if not search:
        return section("curves", "Learning curves", paragraph("No epoch was reported.", "missing"))
    everything = [c for curves in search.values() for c in curves if c.epoch.size]
    values = np.concatenate([c.val_top1 for c in everything])
    limits = share_limits(values[np.isfinite(values)].tolist())
    epochs = max(int(c.epoch[-1]) for c in everything)
    drawn = []
    for index, family in enumerate(families):
        if family in search:
            picture = figures.learning_curves(
                search[family], index=index, name=f"curve-{index}", limits=limits, epochs=epochs
            )
            title = Markup(f"{dot(index)}{text(family)}")
            drawn.append(figure(picture, _curve_table(search[family]), title=title))
    lead = "Validation accuracy after each epoch, the same axes for every family."
    key = _key(
        [
            "<b>thick line</b> best finished trial",
            "<b>thin line</b> other finished",
            "<b>grey, ×</b> pruned there",
            "<b>grey dashes</b> finished anyway, for the audit",
            "<b>red, +</b> failed there",
            "<b>dashed</b> still running",
            "<b>dotted upright</b> rung",
        ]
    )
    row = f'<div class="row">{"".join(drawn)}</div>'
    return section("curves", "Learning curves", paragraph(lead), key, row, speed)


def _curve_table(curves: Sequence[Curve]) -> str:
    ordered = sorted(curves, key=lambda c: (not _ranked(c), -(c.best[0] if c.best else -1)))
    rows = [
        [
            c.trial,
            c.status if not c.reason else f"{c.status}: {c.reason}",
            percent(c.best[0]) if c.best else MISSING,
            " ".join("–" if np.isnan(v) else f"{100 * v:.1f}" for v in c.val_top1) or MISSING,
            recipe_text(c.axes if c.drawn else None),
        ]
        for c in ordered
    ]
    rows, caption = limited(rows, "Trials, finished ones first")
    head = ["trial", "status", "best val", "val by epoch, %", "recipe"]
    return table(head, rows, caption=caption)
