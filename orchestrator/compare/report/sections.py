"""The report's tables: families and recipes, failures, what differed between the arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.compare.report.html import details, items, named, paragraph, section, table
from orchestrator.compare.table import checkpoints_text, edge_text, unfinished_text
from orchestrator.wording import MISSING, NONE, axis_name, count, percent, seconds, value_text

Comparison = Mapping[str, Any]


def _ordered(comparison: Comparison) -> list[Mapping[str, Any]]:
    return sorted(comparison["families"], key=lambda entry: -(entry["best_val_top1"] or -1))


def families(comparison: Comparison) -> str:
    """Counts, cost and best finished trial of each family."""
    names = named(comparison["families"])
    head = ["family", "best val", "finished", "pruned", "failed", "open", "epochs to 90 %",
            "epochs", "images", "device time", "FLOPs", "backbone"]  # fmt: skip
    rows = [[names[entry["family"]], *_family_cells(entry)] for entry in _ordered(comparison)]
    if not rows:
        return section("families", "Families", paragraph("No family has a trial yet.", "missing"))
    caption = "Best validation accuracy is of finished trials only; a pruned trial is censored"
    return section(
        "families",
        "Families",
        table(head, rows, caption=caption, cards=True),
        "<h3>Best finished trials</h3>",
        _recipes(comparison),
        items([line for entry in _ordered(comparison) for line in _remarks(entry)]),
    )


def _family_cells(entry: Mapping[str, Any]) -> list[str]:
    speed = entry["convergence"]
    return [
        percent(entry["best_val_top1"]),
        *[str(entry[name]) for name in ("finished", "pruned", "failed", "unfinished")],
        str(speed["epochs"]) if speed else MISSING,
        str(entry["epochs"]),
        count(entry["images_seen"]),
        f"{seconds(entry['gpu_seconds'])} {(entry['device'] or '').upper()}".rstrip(),
        count(entry["flops"]),
        entry["backbone"] or MISSING,
    ]


def _recipes(comparison: Comparison) -> str:
    entries = _ordered(comparison)
    names = named(comparison["families"])
    axes = list(dict.fromkeys(axis for e in entries for axis in e["best_axes"] or {}))
    head = ["family", "trial", "at epoch", *map(axis_name, axes)]
    rows = [
        [
            names[entry["family"]],
            entry["best_trial"] or MISSING,
            str(entry["best_epoch"] or MISSING),
            *[_axis_cell(entry["best_axes"], axis) for axis in axes],
        ]
        for entry in entries
    ]
    return table(
        head, rows, caption="Searched axes of each family's best finished trial", cards=True
    )


def _axis_cell(axes: Mapping[str, Any] | None, axis: str) -> str:
    if axes is None:
        return MISSING
    return value_text(axes[axis]) if axis in axes else "not searched"


def _remarks(entry: Mapping[str, Any]) -> list[str]:
    family = entry["family"]
    found = [f"{family}: {edge_text(edge)}." for edge in entry["edges"]]
    basin = entry["learning_rate_basin"]
    if basin and basin["n"] > 1:
        found.append(
            f"{family}: {basin['n']} of {basin['finished']} finished trials lie within "
            f"{100 * basin['within']:.0f} points of the best, at learning rates "
            f"{basin['low']:.2g} to {basin['high']:.2g}."
        )
    if entry["best_trial"] is None:
        found.append(f"{family}: no trial finished{unfinished_text(entry)}.")  # type: ignore[arg-type]
    if entry["without_report"]:
        found.append(f"{family}: {entry['without_report']} trials ended or wait without a report.")
    return found


def speed(comparison: Comparison) -> str:
    """How soon each family's best finished trial came near its own best."""
    names = named(comparison["families"])
    found = [(e["family"], e["convergence"]) for e in _ordered(comparison) if e["convergence"]]
    if not found:
        return ""
    shares = [mark["share"] for mark in found[0][1]["to_share"]]
    rows = [
        [
            names[family],
            *[str(mark["epochs"]) for mark in speed["to_share"]],
            count(speed["images"]),
            seconds(speed["seconds"]),
            percent(speed["auc"]),
        ]
        for family, speed in found
    ]
    head = ["family", *[f"epochs to {share:.0%}".replace("%", " %") for share in shares],
            "images to 90 %", "device time to 90 %", "AUC (mean over epochs)"]  # fmt: skip
    caption = "Until the best finished trial first reached a share of its own best accuracy"
    return f"<h3>How fast they learned</h3>{table(head, rows, caption=caption, cards=True)}"


def failures(comparison: Comparison) -> str:
    """Failed trials by family and reason."""
    found: Sequence[Mapping[str, Any]] = comparison["failures"]
    if not found:
        return section("failures", "Failures", paragraph("No trial failed."))
    names = named(comparison["families"])
    rows = [
        [names[f["family"]], str(f["trials"]), str(f["epochs"]), f["first_trial"], f["reason"]]
        for f in found
    ]
    head = ["family", "trials", "epochs spent", "first", "reason"]
    body = table(
        head, rows, caption="Failed trials by reason; their epochs count as cost", cards=True
    )
    return section("failures", "Failures and why", body)


def differences(comparison: Comparison) -> str:
    """What differed between the arms besides the architecture, and what did not."""
    rows = comparison["differences"]
    labels = [entry["family"] for entry in comparison["families"]]
    unlike = [row for row in rows if not row["same"]]
    alike = [row for row in rows if row["same"]]
    content = [
        paragraph(
            "An accuracy differs for every reason in this table at once, not for the "
            "architecture alone. Values are those of each family's best finished trial."
        )
    ]
    if unlike:
        body = [[r["what"], *[_value(r["values"].get(f)) for f in labels]] for r in unlike]
        caption = f"Different in the arms; {NONE} where an arm states nothing"
        content.append(table(["what", *labels], body, caption=caption))
    if alike:
        same = ", ".join(f"{r['what']} {_value(next(iter(r['values'].values())))}" for r in alike)
        content.append(paragraph(f"The same in all: {same}.", "soft"))
    spaces = comparison["spaces"]
    lines = [f"{family}: {_space_text(space)}" for family, space in spaces.items()]
    if lines:
        content.append(details("Search space of each family", items(lines)))
    return section("differences", "What differed between the arms", *content)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value_text(part) for part in value)
    return NONE if value is None else value_text(value)


def _space_text(space: Mapping[str, Any]) -> str:
    return ", ".join(f"{axis_name(axis)} {_domain_text(d)}" for axis, d in space.items()) or "none"


def _domain_text(domain: Mapping[str, Any]) -> str:
    if "values" in domain:
        return f"one of {', '.join(value_text(value) for value in domain['values'])}"
    scale = " (log)" if domain.get("kind") == "log" else ""
    return f"{value_text(float(domain['low']))} to {value_text(float(domain['high']))}{scale}"


def forecast(comparison: Mapping[str, Any]) -> str:
    """The same as a table; a run without a forecast has no section."""
    score = comparison["forecast"]
    if score is None:
        return ""
    ratio = score["ratio"]
    row = [f"{score['device']}-hours"]
    row += [f"{score[name]:.3g}" for name in ("expected", "worst", "actual")]
    row += [MISSING if ratio is None else f"{ratio:.2f}", score["basis"]]
    head = ["unit", "expected", "at worst", "actual", "actual / expected", "basis"]
    about = (
        "Made before the first trial: expected, if trials are pruned as chance would have it; at "
        "worst, if all train to full length; finals included in both. "
    )
    return section(
        "forecast",
        "Forecast",
        paragraph(about + checkpoints_text(comparison["runs"])),
        table(head, [row], caption="What the plan foretold, and what it cost"),
    )
