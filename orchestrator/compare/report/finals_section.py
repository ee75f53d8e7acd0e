"""Finals, gap and audit on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.compare.answer import describe_verdict
from orchestrator.compare.report.html import Markup, named, paragraph, section, table
from orchestrator.compare.statistics import POWER
from orchestrator.wording import MISSING, interval, p_text, percent, points, seconds, signed

Comparison = Mapping[str, Any]


def finals(comparison: Comparison) -> str:
    """Test accuracy over seeds, the tests of pairs, the gap to test; or that they are missing."""
    entries = [entry for entry in comparison["families"] if entry["final"]]
    entries.sort(key=lambda entry: -entry["final"]["test_top1"]["mean"])
    if not entries:
        lead = (
            "Missing: no final was run. A final retrains each family's frozen winner over fresh "
            "seeds and opens the test split once; without it there is a ranking and no verdict."
        )
        return section("finals", "Finals", paragraph(lead, "missing"))
    names = named(comparison["families"])
    lead = (
        "Each family's winner was frozen, trained again from scratch over fresh seeds, and only "
        "then met the test images, which no choice before had seen."
    )
    rows = [
        [
            names[entry["family"]],
            interval(**entry["final"]["test_top1"]),
            ", ".join(str(seed) for seed in entry["final"]["seeds"]),
            seconds(entry["final"]["gpu_seconds"]),
        ]
        for entry in entries
    ]
    head = ["family", "test accuracy", "seeds", "device time"]
    content = [paragraph(lead), *_reopened(comparison)]
    content.append(table(head, rows, caption="Means over seeds, Student's t interval", cards=True))
    if comparison["pairs"]:
        lead = (
            "Two-sided tests, Holm's correction across pairs. What is not shown may still be "
            "there: a difference below the smallest detectable would mostly be missed."
        )
        content += ["<h3>Pairs</h3>", paragraph(lead), _pairs(comparison["pairs"])]
    return section("finals", "Finals", *content, _gap(comparison["gap"], names))


def _reopened(comparison: Comparison) -> list[str]:
    if all(run["test_openings"] <= 1 for run in comparison["runs"]):
        return []
    return [paragraph("The test split was opened again after results on it were known: what was "
                      "chosen since may have been chosen for it.", "warn")]  # fmt: skip


def _pairs(pairs: Sequence[Mapping[str, Any]]) -> str:
    head = ["pair", "verdict", "difference", "interval", "p (Holm)", "smallest detectable", "test"]
    rows = [
        [
            f"{pair['a']} − {pair['b']}",
            describe_verdict(pair),  # type: ignore[arg-type]
            points(pair["difference"]["mean"]),
            _between(pair["difference"]),
            p_text(pair["p_value_holm"]),
            points(pair["smallest_detectable"]),
            f"{pair['method']}, n = {pair['n']['seeds_a']} and {pair['n']['seeds_b']} seeds",
        ]
        for pair in pairs
    ]
    caption = f"Differences of test accuracy; smallest detectable with a power of {POWER:.0%}"
    return table(head, rows, caption=caption, cards=True)


def _between(difference: Mapping[str, Any]) -> str:
    if difference["low"] is None:
        return MISSING
    return f"{signed(difference['low'])} to {signed(difference['high'])}"


def _gap(gaps: Sequence[Mapping[str, Any]], names: Mapping[str, Markup]) -> str:
    if not gaps:
        return ""
    lead = (
        "The winner was the best of many on its validation images, which flatters it; trained "
        "again it stands where it is. What is left between validation and test is the price of "
        "choosing an epoch, and chance."
    )
    rows = [
        [
            names[gap["family"]],
            percent(gap["search_val_top1"]),
            _with_range(gap["final_val_top1"]),
            points(gap["selection"]),
            f"{points(gap['to_test']['mean'])} ({_between(gap['to_test'])})",
            str(gap["to_test"]["n"]),
        ]
        for gap in gaps
    ]
    head = ["family", "val in the search", "val, trained again", "first − second",
            "val, trained again − test", "seeds"]  # fmt: skip
    caption = "Means over seeds, 95 % intervals in brackets; the last difference paired by seed"
    body = table(head, rows, caption=caption, cards=True)
    return f"<h3>From validation to test</h3>{paragraph(lead)}{body}"


def _with_range(mean: Mapping[str, Any]) -> str:
    if mean["low"] is None:
        return f"{percent(mean['mean'])} (no interval)"
    return f"{percent(mean['mean'])} ({100 * mean['low']:.1f}–{100 * mean['high']:.1f})"


def audit(comparison: Comparison) -> str:
    """What pruning got wrong, measured on the pruned trials that were finished anyway."""
    title = "What pruning got wrong"
    if comparison["audit"] is None:
        pruned = any(entry["pruned"] for entry in comparison["families"])
        lead = (
            "Missing: no pruned trial was finished to see what it would have become, so what "
            "pruning lost is unknown."
            if pruned
            else "Nothing was pruned."
        )
        return section("audit", title, paragraph(lead, "missing" if pruned else "prose"))
    names = named(comparison["families"])
    entries = comparison["audit"]["families"]
    lead = (
        "Some trials that pruning would have stopped, drawn at random, were finished anyway, off "
        "the books of the race. Regret is by how much the best of them ended above the best "
        "finished trial. Their share above it estimates that of all pruned trials."
    )
    rows = [
        [
            names[entry["family"]],
            f"{entry['ended']} of {entry['pruned']}",
            percent(entry["best_finished"]),
            percent(entry["best_audited"]),
            points(entry["regret_top1"]),
            _share(entry["better"]),
            seconds(entry["seconds"]),
        ]
        for entry in entries
    ]
    head = ["family", "audited", "best finished", "best audited", "regret", "above the best",
            "device time"]  # fmt: skip
    caption = "Pruned trials that were finished anyway"
    return section(
        "audit", title, paragraph(lead), table(head, rows, caption=caption, cards=True),
        "<h3>Does a rung order trials as the end does?</h3>",
        paragraph(
            "Kendall's tau between accuracy at the rung and best accuracy at full length, over "
            "finished and audited trials: 1 is the same order, 0 none, −1 the reverse."
        ),
        _taus(entries, names),
    )  # fmt: skip


def _share(share: Mapping[str, Any] | None) -> str:
    if share is None:
        return MISSING
    low, high = 100 * share["low"], 100 * share["high"]
    return f"{percent(share['mean'])} (95 % interval {low:.0f}–{high:.0f}, n = {share['n']})"


def _taus(entries: Sequence[Mapping[str, Any]], names: Mapping[str, Markup]) -> str:
    rungs = sorted({one["rung"] for entry in entries for one in entry["kendall_tau_by_rung"]})
    rows = []
    for entry in entries:
        found = {one["rung"]: one for one in entry["kendall_tau_by_rung"]}
        cells = [_tau(found.get(rung)) for rung in rungs]
        rows.append([names[entry["family"]], *cells])
    head = ["family", *[f"epoch {rung}" for rung in rungs]]
    return table(head, rows, caption="Kendall's tau-b by rung, with the number of trials")


def _tau(one: Mapping[str, Any] | None) -> str:
    if one is None or one["tau"] is None:
        return MISSING
    return f"{one['tau']:.2f} (n = {one['n']})".replace("-", "−")
