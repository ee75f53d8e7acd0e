"""The answer in two sentences that claim no more than the records hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.wording import day, interval, percent, points


def answer(comparison: Mapping[str, Any]) -> str:
    """The result in two sentences that claim no more than the records hold."""
    if comparison["claims"]:
        return " ".join(verdict["sentence"] for verdict in comparison["claims"])
    finals = [entry for entry in comparison["families"] if entry["final"]]
    if finals:
        return _answer_of_finals(comparison, finals)
    return f"{_search_sentence(comparison)} {_no_verdict(comparison)}"


def _search_sentence(comparison: Mapping[str, Any]) -> str:
    ranked = [e for e in comparison["families"] if e["best_val_top1"] is not None]
    ranked.sort(key=lambda entry: -entry["best_val_top1"])
    on = f"on {comparison['dataset'] or 'a dataset without a record'}"
    if not ranked:
        total = sum(entry["trials"] for entry in comparison["families"])
        return f"No trial has finished {on} ({total} on record), so nothing can be ranked."
    places = [f"{e['family']} {percent(e['best_val_top1'])}" for e in ranked]
    if len(ranked) == 1:
        best, of = percent(ranked[0]["best_val_top1"]), ranked[0]
        return (
            f"{on[0].upper()}{on[1:]}, the best finished of {of['trials']} {of['family']} trials "
            f"has a validation accuracy of {best}."
        )
    counts = {entry["trials"] for entry in ranked}
    trials = f"{counts.pop()} trials each" if len(counts) == 1 else "unequal numbers of trials"
    flips = "; the order changes with the unit of an equal budget"
    return (
        f"{on[0].upper()}{on[1:]}, at {trials}, {_leaders(ranked)} by validation accuracy: "
        f"{', '.join(places)}{flips if comparison['budget']['flips'] else ''}."
    )


def _leaders(ranked: Sequence[Mapping[str, Any]]) -> str:
    top = [e["family"] for e in ranked if e["best_val_top1"] == ranked[0]["best_val_top1"]]
    tied = f"{', '.join(top[:-1])} and {top[-1]} tie in the best finished trial"
    return f"{top[0]} has the best finished trial" if len(top) == 1 else tied


def _no_verdict(comparison: Mapping[str, Any]) -> str:
    opened = comparison["test_opened_at"]
    test = "test was never opened" if opened is None else f"test was opened on {day(opened)}"
    ranked = any(entry["best_val_top1"] is not None for entry in comparison["families"])
    end = "this ranks single best trials and is not a verdict" if ranked else "there is no verdict"
    return f"Selection used val only, no finals are on record and {test}, so {end}."


def _answer_of_finals(comparison: Mapping[str, Any], finals: list[Mapping[str, Any]]) -> str:
    finals = sorted(finals, key=lambda entry: -entry["final"]["test_top1"]["mean"])
    places = [f"{e['family']} {interval(e['final']['test_top1'])}" for e in finals]
    opened = comparison["test_opened_at"]
    when = f" (opened {day(opened)})" if opened is not None else ""
    first = f"On {comparison['dataset'] or 'the'} test images{when}: {', '.join(places)}."
    if not comparison["pairs"]:
        return f"{first} Only one family has finals, so there is no pair to test."
    return f"{first} {_verdicts(comparison['pairs'])}"


def _verdicts(pairs: Sequence[Mapping[str, Any]]) -> str:
    shown = [describe_verdict(pair) for pair in pairs if pair["verdict"] != "no difference shown"]
    open_ = [pair for pair in pairs if pair["verdict"] == "no difference shown"]
    if not open_:
        return f"Paired tests with Holm's correction show {', '.join(shown)}."
    rest = ", ".join(describe_verdict(pair) for pair in open_)
    known = [p["smallest_detectable"] for p in open_ if p["smallest_detectable"] is not None]
    limit = f" (smaller than {points(max(known))} could not have been shown)" if known else ""
    shows = f"show {', '.join(shown)}, but " if shown else "show "
    return f"Tests with Holm's correction {shows}{rest}{limit}."


def describe_verdict(pair: Mapping[str, Any]) -> str:
    """The verdict with the families' names."""
    if pair["verdict"] == "no difference shown":
        return f"no difference between {pair['a']} and {pair['b']}"
    better, worse = ("a", "b") if pair["verdict"] == "a better" else ("b", "a")
    return f"{pair[better]} better than {pair[worse]}"
