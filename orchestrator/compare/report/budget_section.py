"""Curves over budget on the page: what to expect of a budget, and how this search spent its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.compare.budget import spending
from orchestrator.compare.report import figures
from orchestrator.compare.report.figures import color, drawing, inline, share_limits
from orchestrator.compare.report.html import (
    Markup,
    dot,
    figure,
    items,
    limited,
    paragraph,
    section,
    table,
    text,
)
from orchestrator.compare.report.pictures import family_key, search_of
from orchestrator.compare.runs import Curve
from orchestrator.compare.table import budget_lines
from orchestrator.wording import count, percent, seconds

Families = Mapping[str, Sequence[Curve]]
TITLE = "Curves over budget"
LEAD = (
    "How good a best trial to expect from a budget: the mean over all searches that draw so many "
    "recipes; the search on record is one of them. The shaded band holds the whole curve with a "
    "probability of 95 %, whatever the distribution of accuracies. It is wide because few trials "
    "say little, least of all how much better unseen ones may be. A dashed line is descriptive "
    "only: its band promises nothing, and the reason stands below."
)


def over_budget(families: Families, comparison: Mapping[str, Any]) -> str:
    """Expected best with bands, this search's own course, and the rankings at equal budgets."""
    search = search_of(families)
    curves = comparison["curves_over_budget"]
    if not curves:
        return section("budget", TITLE, paragraph("No trial finished.", "missing"))
    limits, banded = _limits(curves), []
    places = {family: index for index, family in enumerate(families)}
    for entry in curves:
        index, name = places[entry["family"]], entry["family"]
        picture = _banded(entry, index=index, limits=limits)
        data = _expected_table([entry], "trials")
        banded.append(figure(picture, data, title=Markup(f"{dot(index)}{text(name)}")))
    finished = [
        c.best[0] for of in search.values() for c in of if c.status == "finished" and c.best
    ]
    limits = share_limits(finished)
    spent = []
    for unit, title in (
        ("trials", "By trials"), ("gpu_seconds", "By device time"), ("flops", "By FLOPs"),
    ):  # fmt: skip
        picture = figures.best_so_far(search, unit=unit, name=f"budget-{unit}", limits=limits)
        spent.append(figure(picture, _spent_table(search, unit), title=title))
    return section(
        "budget", TITLE, paragraph(LEAD), f'<div class="row">{"".join(banded)}</div>',
        items(list(map(_validity, curves))), *_all(families, curves),
        "<h3>As this search spent it</h3>",
        paragraph(
            "Best finished accuracy while the family's budget was spent, pruned and failed trials "
            "charged."
        ),
        f'<div class="row">{"".join(spent)}</div>',
        *_equal_budgets(comparison["budget"]),
    )  # fmt: skip


def _all(families: Families, curves: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of several families in one picture each by trials and by device time."""
    if len(curves) < 2:
        return []
    places = {family: index for index, family in enumerate(families)}
    drawn = [
        figure(_together(places, curves, unit), _expected_table(curves, unit), title=title)
        for unit, title in (("trials", "All by trials"), ("seconds", "All by device time"))
    ]
    return [family_key(families), f'<div class="row pair">{"".join(drawn)}</div>']


def _equal_budgets(budget: Mapping[str, Any]) -> list[str]:
    if sum(map(len, budget["best_val_top1"].values())) <= len(budget["best_val_top1"]):
        return []
    flips = (
        "The order changes with the unit in which budgets are made equal."
        if budget["flips"]
        else "The order is the same in every unit that ranks the families."
    )
    heading = "<h3>At the largest budget that all families spent</h3>"
    return [heading, items(budget_lines(budget)), paragraph(flips)]  # type: ignore[arg-type]


def _validity(entry: Mapping[str, Any]) -> str:
    trials = f"{entry['family']}: {entry['n']} ended trials, {entry['finished']} finished"
    pruned = f", {entry['pruned']} pruned, {entry['audited']} of them audited"
    said = f"{trials}{pruned if entry['pruned'] else ''}"
    if entry["why"]:
        return f"{said}. Descriptive only: {entry['why']}."
    audit = "; the audited stand for all pruned ones" if entry["pruned"] else ""
    return f"{said}. The band holds{audit}."


def _banded(entry: Mapping[str, Any], *, index: int, limits: tuple[float, float]) -> str:
    """One family's expected best and its band against trials, device seconds on top."""
    from matplotlib.ticker import MaxNLocator

    ink, x = color(index), entry["trials"]
    mean, low, high = (100 * np.array(entry[key]) for key in ("expected_best", "low", "high"))
    with drawing() as (picture, axes):
        if entry["valid"]:
            axes.fill_between(x, low, high, color=ink, alpha=0.16, linewidth=0)
        for edge in (low, high):
            axes.plot(x, edge, color=ink, linewidth=0.8, alpha=0.7)
        style = "solid" if entry["valid"] else "dashed"
        axes.plot(x, mean, color=ink, linewidth=2.2, linestyle=style)
        axes.set_xlim(0, 1.04 * x[-1])
        axes.set_ylim(*limits)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("trials")
        axes.set_ylabel("expected best, %")
        if entry["seconds"]:
            price = entry["seconds"][-1] / x[-1]
            top = axes.secondary_xaxis("top", functions=(lambda k: k * price, lambda s: s / price))
            top.xaxis.set_major_locator(MaxNLocator(4))
            top.set_xlabel("device seconds")
        label = f"Expected best of {entry['family']} against trials, with its 95 % band"
        return inline(picture, name=f"expected-{index}", label=label)


def _together(places: Mapping[str, int], curves: Sequence[Mapping[str, Any]], unit: str) -> str:
    """The families' lines alone, to be compared; their bands stand in the pictures before."""
    what = "trials" if unit == "trials" else "device seconds"
    with drawing() as (picture, axes):
        for entry in curves:
            if entry[unit]:
                index = places[entry["family"]]
                mean = 100 * np.array(entry["expected_best"])
                marker = figures.MARKERS[index % len(figures.MARKERS)]
                style = "solid" if entry["valid"] else "dashed"
                axes.plot(entry[unit], mean, color=color(index), linewidth=2.0, linestyle=style)
                axes.plot(entry[unit][-1:], mean[-1:], marker, color=color(index), markersize=5.5)
        axes.set_xlim(left=0)
        axes.set_ylim(*share_limits([v for entry in curves for v in entry["expected_best"]]))
        axes.set_xlabel(what)
        axes.set_ylabel("expected best, %")
        label = f"Expected best validation accuracy of every family against {what}"
        return inline(picture, name=f"expected-{unit}", label=label)


def _limits(curves: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Room for every line and for the bands where they are narrowest: the rest is cut off."""
    means = [value for entry in curves for value in entry["expected_best"]]
    ends = [entry[edge][-1] for entry in curves for edge in ("low", "high")]
    return share_limits([*means, *ends])


def _expected_table(curves: Sequence[Mapping[str, Any]], unit: str) -> str:
    write = (lambda x: f"{x:.0f}") if unit == "trials" else seconds
    rows = [
        [entry["family"], write(x), percent(mean), percent(low), percent(high)]
        for entry in curves
        for x, mean, low, high in zip(
            entry[unit] or (), entry["expected_best"], entry["low"], entry["high"], strict=False
        )
    ]
    rows, caption = limited(rows, "Expected best and its 95 % simultaneous band")
    head = ["family", "trials" if unit == "trials" else "device time", "expected", "low", "high"]
    return table(head, rows, caption=caption)


def _spent_table(search: Families, unit: str) -> str:
    write = {"trials": lambda x: f"{x:.0f}", "gpu_seconds": seconds, "flops": count}[unit]
    rows = []
    for family, curves in search.items():
        spent, best = figures.changes(*spending(curves, unit))
        rows += [
            [family, write(float(s)), percent(float(b))] for s, b in zip(spent, best, strict=True)
        ]
    rows, caption = limited(rows, "Where the best improved, and the end")
    return table(["family", figures.UNIT_LABELS[unit], "best finished"], rows, caption=caption)
