"""The comparison for a terminal: plain text that fits 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.compare.answer import describe_verdict
from orchestrator.compare.forecast import line as forecast_line
from orchestrator.wording import (
    MISSING,
    axis_name,
    count,
    interval,
    p_text,
    percent,
    points,
    recipe_text,
    seconds,
    signed,
    value_text,
)

WIDTH = 80


def table_text(comparison: Mapping[str, Any]) -> str:
    """The answer, the families, their best recipes, pairs, equal budgets, failures and notes."""
    blocks = [
        _wrap(comparison["answer"]),
        *_runs(comparison),
        _families(comparison["families"]),
        *_best(comparison["families"]),
        *_pairs(comparison["pairs"]),
        *_budget(comparison["budget"], comparison["families"]),
        *_audit(comparison["audit"]),
        _wrap(forecast_line(comparison["forecast"], comparison["runs"])),
        *_failures(comparison["failures"]),
        *_notes(comparison["notes"]),
    ]
    return "\n\n".join(blocks) + "\n"


def _wrap(text: str, indent: str = "", first: str | None = None) -> str:
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=indent if first is None else first,
        subsequent_indent=indent,
        break_on_hyphens=False,
    )


def _runs(comparison: Mapping[str, Any]) -> Iterator[str]:
    named = [f"{run['name']} ({run['status']})" for run in comparison["runs"]]
    images = comparison["dataset_info"] or {}
    val = images.get("counts", {}).get("val")
    size = f", {val} validation images (one is {points(1 / val)})" if val else ""
    yield _wrap(f"Dataset {comparison['dataset'] or MISSING}{size}. Run {', '.join(named)}.")


def _clip(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns, numbers to the right; the first column gives way to the others."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[0] = min(widths[0], WIDTH - sum(width + 2 for width in widths[1:]))
    return "\n".join(
        "  ".join(
            [
                _clip(row[0], widths[0]).ljust(widths[0]),
                *[cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)],
            ]
        )
        for row in rows
    )


def _families(families: Sequence[Mapping[str, Any]]) -> str:
    if not families:
        return "No family has a trial yet."
    ordered = sorted(families, key=_by_accuracy)
    kinds = {entry["device"] for entry in families if entry["device"]}
    cost = f"{kinds.pop().upper()} time" if len(kinds) == 1 else "device time"
    head = ["family", "best val", "finished", "pruned", "failed", "open", "to 90%", cost, "FLOPs"]
    rows = [head, *[_family_row(entry) for entry in ordered]]
    if not any(entry["unfinished"] for entry in families):
        rows = [[*row[:5], *row[6:]] for row in rows]
    return _columns(rows)


def _by_accuracy(entry: Mapping[str, Any]) -> float:
    return -entry["best_val_top1"] if entry["best_val_top1"] is not None else 1.0


def _family_row(entry: Mapping[str, Any]) -> list[str]:
    speed = entry["convergence"]
    return [
        entry["family"],
        percent(entry["best_val_top1"]),
        *[str(entry[name]) for name in ("finished", "pruned", "failed", "unfinished")],
        f"{speed['epochs']} ep" if speed else MISSING,
        seconds(entry["gpu_seconds"]),
        count(entry["flops"]),
    ]


def _best(families: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    lines = [_best_line(entry) for entry in sorted(families, key=_by_accuracy)]
    for entry in families:
        if entry["final"]:
            test = interval(entry["final"]["test_top1"])
            lines.append(_wrap(f"{entry['family']} test accuracy: {test}", "    ", "  "))
        lines += [
            _wrap(f"{entry['family']}: {edge_text(edge)}", "    ", "  ! ")
            for edge in entry["edges"]
        ]
    if lines:
        yield "\n".join(["Best finished trial", *lines])


def _best_line(entry: Mapping[str, Any]) -> str:
    if entry["best_trial"]:
        recipe = recipe_text(entry["best_axes"])
        text = f"{entry['best_trial']} at epoch {entry['best_epoch']}: {recipe}"
    else:
        text = f"{entry['family']}: {MISSING}, no trial finished{unfinished_text(entry)}"
    return _wrap(text, "    ", "  ")


def unfinished_text(entry: Mapping[str, Any]) -> str:
    """The best value on record where nothing finished, labelled with how its trial stands."""
    best = entry["best_unfinished"]
    if not best:
        return ""
    reached = f"{percent(best['val_top1'])} at epoch {best['epoch']}"
    return f"; {best['trial']} ({best['status']}) reached {reached}"


def edge_text(edge: Mapping[str, Any]) -> str:
    """One optimum on the edge of its range."""
    low, high = value_text(float(edge["low"])), value_text(float(edge["high"]))
    return (
        f"best {axis_name(edge['axis'])} {value_text(edge['value'])} is at the {edge['end']} "
        f"end of {low} to {high}; the space may be too small"
    )


def pair_text(pair: Mapping[str, Any]) -> str:
    """One pair of families: verdict, difference with interval, corrected p-value."""
    gap = pair["difference"]
    parts = [describe_verdict(pair), f"{pair['a']} − {pair['b']} = {points(gap['mean'])}"]
    if gap["low"] is not None:
        level = f"{100 * gap['level']:.0f} %"
        parts.append(f"{level} interval {signed(gap['low'])} to {signed(gap['high'])}")
    parts.append(f"p (Holm) {p_text(pair['p_value_holm'])}")
    parts.append(f"{pair['method']}, n = {pair['n']['seeds_a']} and {pair['n']['seeds_b']} seeds")
    return "; ".join(parts)


def _pairs(pairs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if pairs:
        yield "\n".join(
            ["Pairs on test", *[_wrap(pair_text(pair), "    ", "  ") for pair in pairs]]
        )


def _budget(budget: Mapping[str, Any], families: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if len(families) > 1:
        lines = [_wrap(text, "    ", "  ") for text in budget_lines(budget)]
        yield "\n".join(["Best finished at equal budget", *lines])


def budget_lines(budget: Mapping[str, Any]) -> list[str]:
    """One line a unit: the budget all families spent, and the ranking there."""
    named = {
        "trials": lambda at: f"{at:.0f} trials",
        "gpu_seconds": lambda at: f"{seconds(at)} of device time",
        "flops": lambda at: f"{count(at)}FLOPs",
    }
    lines = []
    for unit, ranked in budget["ranking"].items():
        at, best = budget["at"][unit], budget["best_val_top1"][unit]
        if at is None:
            lines.append(f"{unit}: {MISSING}")
            continue
        places = [f"{label} {percent(best[label])}" for label in ranked]
        places += [f"{label} {MISSING}" for label in budget["unranked"][unit]]
        lines.append(f"{named[unit](at)}: {', '.join(places)}")
    return lines


def _audit(audit: Mapping[str, Any] | None) -> Iterator[str]:
    if audit:
        lines = [_wrap(audit_text(entry), "    ", "  ") for entry in audit["families"]]
        yield "\n".join(["Pruning audit", *lines])


def audit_text(entry: Mapping[str, Any]) -> str:
    """One family's audit: how many were finished anyway, the regret, tau at the first rung."""
    parts = [f"{entry['ended']} of {entry['pruned']} pruned trials finished anyway"]
    parts.append(f"regret {points(entry['regret_top1'])}")
    taus = [f"{one['tau']:.2f} at epoch {one['rung']}".replace("-", "−")
            for one in entry["kendall_tau_by_rung"] if one["tau"] is not None]  # fmt: skip
    parts.append(f"Kendall's tau {', '.join(taus) or MISSING}")
    return f"{entry['family']}: {'; '.join(parts)}"


def _failures(failures: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if failures:
        lines = [
            _wrap(
                f"{f['family']}: {f['trials']} × {f['reason']} (first: {f['first_trial']})",
                "    ",
                "  ",
            )
            for f in failures
        ]
        yield "\n".join(["Failed trials", *lines])


def _notes(notes: Sequence[str]) -> Iterator[str]:
    if notes:
        yield "\n".join(["Notes", *[_wrap(note, "    ", "  ") for note in notes]])
