"""The answer in two sentences that claim no more than the records hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.wording import day, interval, percent, points

if TYPE_CHECKING:
    from orchestrator.compare.comparison import Comparison
    from orchestrator.compare.finals import PairResult


def answer(comparison: Comparison) -> str:
    """The result in two sentences that claim no more than the records hold."""
    if comparison.claims:
        return " ".join(verdict["sentence"] for verdict in comparison.claims)
    if any(entry.final for entry in comparison.families):
        return _answer_of_finals(comparison)
    return f"{_search_sentence(comparison)} {_no_verdict(comparison)}"


def _search_sentence(comparison: Comparison) -> str:
    ranked = [(e.best.val_top1, e) for e in comparison.families if e.best]
    ranked.sort(key=lambda pair: -pair[0])
    on = f"on {comparison.dataset_name or 'a dataset without a record'}"
    if not ranked:
        total = sum(entry.trials for entry in comparison.families)
        return f"No trial has finished {on} ({total} on record), so nothing can be ranked."
    best, first = ranked[0]
    if len(ranked) == 1:
        return (
            f"{on[0].upper()}{on[1:]}, the best finished of {first.trials} {first.family} trials "
            f"has a validation accuracy of {percent(best)}."
        )
    counts = {entry.trials for _, entry in ranked}
    trials = f"{counts.pop()} trials each" if len(counts) == 1 else "unequal numbers of trials"
    flips = "; the order changes with the unit of an equal budget"
    return (
        f"{on[0].upper()}{on[1:]}, at {trials}, "
        f"{_leaders([entry.family for value, entry in ranked if value == best])} by validation "
        f"accuracy: {', '.join(f'{entry.family} {percent(value)}' for value, entry in ranked)}"
        f"{flips if comparison.budget.flips else ''}."
    )


def _leaders(families: Sequence[str]) -> str:
    if len(families) == 1:
        return f"{families[0]} has the best finished trial"
    return f"{', '.join(families[:-1])} and {families[-1]} tie in the best finished trial"


def _no_verdict(comparison: Comparison) -> str:
    opened = comparison.test_opened_at
    test = "test was never opened" if opened is None else f"test was opened on {day(opened)}"
    ranked = any(entry.best for entry in comparison.families)
    end = "this ranks single best trials and is not a verdict" if ranked else "there is no verdict"
    return f"Selection used val only, no finals are on record and {test}, so {end}."


def _answer_of_finals(comparison: Comparison) -> str:
    tested = [(e.family, e.final.test_top1) for e in comparison.families if e.final]
    tested.sort(key=lambda pair: -pair[1].mean)
    places = [f"{family} {interval(**vars(top1))}" for family, top1 in tested]
    opened = comparison.test_opened_at
    when = f" (opened {day(opened)})" if opened is not None else ""
    first = f"On {comparison.dataset_name or 'the'} test images{when}: {', '.join(places)}."
    if not comparison.pairs:
        return f"{first} Only one family has finals, so there is no pair to test."
    return f"{first} {_verdicts(comparison.pairs)}"


def _verdicts(pairs: Sequence[PairResult]) -> str:
    shown = [describe_verdict(pair) for pair in pairs if pair.better_and_worse]
    undecided = [pair for pair in pairs if not pair.better_and_worse]
    if not undecided:
        return f"Paired tests with Holm's correction show {', '.join(shown)}."
    rest = ", ".join(map(describe_verdict, undecided))
    sizes = [p.smallest_detectable for p in undecided if p.smallest_detectable is not None]
    limit = f" (smaller than {points(max(sizes))} could not have been shown)" if sizes else ""
    shows = f"show {', '.join(shown)}, but " if shown else "show "
    return f"Tests with Holm's correction {shows}{rest}{limit}."


def describe_verdict(pair: PairResult) -> str:
    """The verdict with the families' names."""
    if pair.better_and_worse is None:
        return f"no difference between {pair.a} and {pair.b}"
    return "{} better than {}".format(*pair.better_and_worse)
