"""Recipe sensitivity on the page: which axes mattered, and where their best values lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.compare.importance import FEWEST, SEEDS, Trials, at_equal_budget
from orchestrator.compare.report import recipe_figures
from orchestrator.compare.report.html import (  # fmt: skip
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
from orchestrator.compare.runs import Curve
from orchestrator.wording import axis_name, percent, recipe_text

TITLE = "Recipe sensitivity"
LEAD = (
    "Which choices of the recipe moved the accuracy? A random forest learns accuracy from the "
    "recipe; an axis matters as much as the forest's error on held-out trials grows when that "
    "axis is shuffled. All trials of a family are read at the last epoch that every one of them "
    "reached, so that pruned ones count as much as the others and early accuracy stands for late."
)


def sensitivity(families: Mapping[str, Sequence[Curve]], comparison: Mapping[str, Any]) -> str:
    """Importance of each axis, the trials across the axes, and the learning rate's basin."""
    important = {entry["family"]: entry for entry in comparison["importance"]}
    if not important:
        lead = f"Missing: importance needs {FEWEST} trials of a family that reached an epoch."
        return section("recipe", TITLE, paragraph(lead, "missing"))
    limits = recipe_figures.bar_limits(list(important.values()))
    bars, lines = [], []
    for index, (family, curves) in enumerate(families.items()):
        trials = at_equal_budget(curves, comparison["spaces"].get(family, {}))
        found = important.get(family)
        if found and trials:
            title = Markup(f"{dot(index)}{text(family)}, after epoch {trials.epoch}")
            picture = recipe_figures.bars(found, index=index, name=f"axes-{index}", limits=limits)
            bars.append(figure(picture, _importance_table(found), title=title))
            order = [entry["axis"] for entry in found["axes"]]
            picture = recipe_figures.parallel(trials, order, index=index, name=f"lines-{index}")
            lines.append(figure(picture, _trials_table(trials, order), title=title))
    return section(
        "recipe", TITLE, paragraph(LEAD),
        f"<h3>How much each axis mattered</h3>{paragraph(_reading(comparison))}",
        f'<div class="row">{"".join(bars)}</div>',
        "<h3>Trials across the axes</h3>",
        paragraph(
            "One line a trial, the most important axis first; the strongest is the best. Of more "
            f"than {recipe_figures.LINES} trials the best and a random part of the rest are drawn."
        ),
        f'<div class="row">{"".join(lines)}</div>',
        _basins(comparison),
    )  # fmt: skip


def _reading(comparison: Mapping[str, Any]) -> str:
    unknown = [e["family"] for e in comparison["families"]]
    known = [entry["family"] for entry in comparison["importance"]]
    unknown = [family for family in unknown if family not in known]
    poor = [e["family"] for e in comparison["importance"] if e["explained"] <= 0]
    parts = [f"Bars are means over {SEEDS} seeds of split and forest, lines their full range; a "
             "range that reaches zero shows nothing."]  # fmt: skip
    if poor:
        parts.append(
            f"For {', '.join(poor)} the forest predicts held-out trials no better than their "
            "mean: its bars mean nothing yet."
        )
    if unknown:
        parts.append(f"Missing for {', '.join(unknown)}: fewer than {FEWEST} trials.")
    return " ".join(parts)


def _importance_table(found: Mapping[str, Any]) -> str:
    rows = [
        [axis_name(entry["axis"]), *[percent(entry[key]) for key in ("share", "low", "high")]]
        for entry in found["axes"]
    ]
    caption = (
        f"{found['n']} trials; the forest explains {percent(found['explained'])} of the variance "
        "of held-out ones"
    )
    return table(["axis", "share of variance", "lowest", "highest"], rows, caption=caption)


def _trials_table(trials: Trials, order: Sequence[str]) -> str:
    ranked = sorted(zip(trials.values, trials.curves, strict=True), key=lambda pair: -pair[0])
    rows = [
        [curve.trial, percent(float(value)), recipe_text({a: curve.axes.get(a) for a in order})]
        for value, curve in ranked
    ]
    rows, caption = limited(rows, f"Accuracy after epoch {trials.epoch}, best first")
    return table(["trial", "accuracy", "recipe"], rows, caption=caption)


def _basins(comparison: Mapping[str, Any]) -> str:
    lines = []
    for entry in comparison["families"]:
        fit = entry["learning_rate_fit"]
        if fit is None:
            lines.append(f"{entry['family']}: missing; too few trials near its best rate, or "
                         "their accuracies show no top.")  # fmt: skip
            continue
        edge = f"; accuracy still rises at the {fit['at_edge']} end of the rates tried"
        lines.append(
            f"{entry['family']}: {fit['best']:.2g}; within {100 * fit['within']:.0f} points from "
            f"{fit['low']:.2g} to {fit['high']:.2g} ({fit['decades']:.1f} decades, {fit['n']} "
            f"trials, epoch {fit['epoch']}){edge if fit['at_edge'] else ''}."
        )
    lead = "By a parabola through the trials within a decade of the best one, at the same epoch."
    return f"<h3>Best learning rate and the width of its basin</h3>{paragraph(lead)}{items(lines)}"
