"""The answer: what was found, of what it speaks, and what a reader must know beside it.

One object, which the terminal, the report, MLflow's note and the JSON render alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.compare.families import CandidateSummary
from orchestrator.compare.finals import newest_round
from orchestrator.compare.runs import CandidateTrials, Values
from orchestrator.compare.statistics import AccuracyInterval
from orchestrator.compare.verdicts import (
    OF_LEVEL,
    Level,
    PairResult,
    PairVerdict,
    describe_verdict,
    detectable_text,
    failed_text,
)
from orchestrator.wording import MISSING, day, figure, interval
from trainables.metrics import TOP1, Metric

ORDER_CHANGES = "the order at an equal budget changes with the unit of cost"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A candidate's figure by the metric that is judged by: on test where it has finals, else the
    best finished trial's on validation, which has no interval. ``best_val_top1`` is that trial's
    accuracy then."""

    family: str
    test: AccuracyInterval | None
    best_value: float | None
    best_val_top1: float | None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """``level``: what the verdicts speak of; ``None`` where nothing was tested. ``places``: best
    first. ``caveats``: what belongs beside the verdict. ``lead`` says the result, the sentences
    ``beside`` it of what it speaks and the caveats; ``text`` says all of it."""

    level: Level | None
    places: tuple[Place, ...]
    verdicts: tuple[str, ...]
    caveats: tuple[str, ...]
    lead: str
    beside: tuple[str, ...]
    text: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What an answer is made of. ``order_changes``: with the unit of an equal budget, beyond the
    bands of what was expected; ``claims``: the verdicts on those that the runs tested;
    ``of_the_test_split``: why its images are not as fresh as they should be; ``image_sizes``: by
    candidate, the side in pixels that its best trial's backbone sees, as far as it is known."""

    metric: Metric
    dataset: str | None
    test_opened_at: float | None
    candidates: Sequence[CandidateTrials]
    entries: Sequence[CandidateSummary]
    pairs: Sequence[PairResult]
    order_changes: bool
    claims: Sequence[Values]
    of_the_test_split: Sequence[str] = ()
    image_sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def caveat_of_sides(self) -> str | None:
        """What to say of backbones that see images of different sides; ``None`` where all see the
        same."""
        if len(set(self.image_sizes.values())) < 2:
            return None
        each = ", ".join(f"{candidate} {side} px" for candidate, side in self.image_sizes.items())
        return f"the candidates see images of different sides: {each}"


def answer_of(facts: Facts) -> Answer:
    """The result in a few sentences that claim no more than the records hold."""
    caveats, places = tuple(_caveats(facts)), tuple(_places(facts.entries, facts.metric))
    levels = {pair.level for pair in facts.pairs if pair.level}
    level = levels.pop() if len(levels) == 1 else None
    beside: tuple[str, ...] = ()
    if facts.claims:
        lead = " ".join(verdict["sentence"] for verdict in facts.claims)
    elif any(place.test for place in places):
        lead, beside = _of_finals(facts, places), tuple(_beside(facts, level, caveats))
    else:
        lead, *others = _of_search(facts, places)
        beside = tuple(others)
    return Answer(
        level=level,
        places=places,
        verdicts=tuple(describe_verdict(pair) for pair in facts.pairs),
        caveats=caveats,
        lead=lead,
        beside=beside,
        text=" ".join([lead, *beside]),
    )


def _places(entries: Sequence[CandidateSummary], metric: Metric) -> list[Place]:
    """Those with finals first, each kind best first."""
    places = [
        Place(
            family=entry.family,
            test=entry.final.test if entry.final else None,
            best_value=entry.best_value,
            best_val_top1=entry.best_val_top1,
        )
        for entry in entries
    ]

    def rank(place: Place) -> tuple[bool, float]:
        value = place.test.mean if place.test else place.best_value
        return place.test is None, 0.0 if value is None else -float(metric.score(value))

    return sorted(places, key=rank)


def _caveats(facts: Facts) -> Iterator[str]:
    """What belongs in the headline besides the verdict."""
    for candidate in facts.candidates:
        finals = newest_round(candidate)
        if any(final.status == "failed" for final in finals):
            yield f"{candidate.label}: {failed_text(finals)}"
    if facts.order_changes:
        yield ORDER_CHANGES
    if learned := unlike_weights(facts.entries):
        yield learned
    if facts.caveat_of_sides:
        yield facts.caveat_of_sides
    yield from facts.of_the_test_split


def unlike_weights(entries: Sequence[CandidateSummary]) -> str | None:
    """What the weights of each candidate had learned from, where that is not the same or not known
    of all; ``None`` where it is, and where nothing is known of any."""
    if len({entry.pretraining_data for entry in entries}) < 2:
        return None
    learned = "; ".join(f"{e.family} {e.pretraining_data or MISSING}" for e in entries)
    return f"their weights had learned from different images before ({learned})"


def _of_finals(facts: Facts, places: Sequence[Place]) -> str:
    metric = facts.metric
    tested = [f"{p.family} {interval(**vars(p.test), metric=metric)}" for p in places if p.test]
    opened = facts.test_opened_at
    when = f" (opened {day(opened)})" if opened is not None else ""
    by = "" if metric == TOP1 else f", by {metric.noun}"
    parts = [f"On {facts.dataset or 'the'} test images{when}{by}: {', '.join(tested)}."]
    if not facts.pairs:
        parts.append("Only one candidate has finals, so there is no pair to test.")
    else:
        parts.append(f"{_verdicts(facts.pairs, metric)}.")
    return " ".join(parts)


def _beside(facts: Facts, level: Level | None, caveats: Sequence[str]) -> Iterator[str]:
    labels = tuple(f"{candidate.label}:" for candidate in facts.candidates)
    if level is not None:
        yield f"This speaks of {OF_LEVEL[level]}."
    for caveat in caveats:
        # A name stays as it is written.
        yield f"{caveat if caveat.startswith(labels) else caveat[0].upper() + caveat[1:]}."


def _verdicts(pairs: Sequence[PairResult], metric: Metric) -> str:
    """What was decided, then what was not, with the difference that would have been seen."""
    open_ = [pair for pair in pairs if pair.verdict is PairVerdict.NOT_TOLD_APART]
    others = [describe_verdict(pair) for pair in pairs if pair not in open_]
    sizes = [size for pair in open_ if (size := pair.smallest_detectable) is not None]
    parts = ["; ".join(others)] if others else []
    if open_:
        seen = detectable_text(sizes, metric)
        limit = f" (a difference of {seen} would mostly have been seen)"
        if seen is None:
            limit = " (any difference would mostly have been missed)"
        parts.append(", ".join(map(describe_verdict, open_)) + (limit if sizes else ""))
    sentence = "; ".join(parts)
    corrected = " (Holm's correction over the pairs)" if len(pairs) > 1 else ""
    return f"Verdict{'s' * (len(pairs) > 1)}{corrected}: {sentence}"


def _of_search(facts: Facts, places: Sequence[Place]) -> tuple[str, str]:
    """What was found, and why that is no verdict."""
    opened, entries = facts.test_opened_at, facts.entries
    test = "test was never opened" if opened is None else f"test was opened on {day(opened)}"
    unjudged = f"Selection used val only, no finals are on record and {test}, so"
    ranked = [(value, p.family) for p in places if (value := p.best_value) is not None]
    metric = facts.metric
    on = f"on {facts.dataset or 'a dataset without a record'}"
    if not ranked:
        total = sum(entry.trials for entry in entries)
        nothing = f"No trial has finished {on} ({total} on record), so nothing can be ranked."
        return nothing, f"{unjudged} there is no verdict."
    counts = {entry.family: entry.trials for entry in entries}
    best, first = ranked[0]
    if len(ranked) == 1:
        lead = (
            f"the best finished of {counts[first]} {first} trials has a validation "
            f"{metric.noun} of {figure(best, metric)}"
        )
    else:
        *others, last = [candidate for value, candidate in ranked if value == best]
        numbers = {counts[candidate] for _, candidate in ranked}
        each = f"{counts[first]} trials each" if len(numbers) == 1 else "unequal numbers of trials"
        leads = f"{', '.join(others)} and {last} tie in" if others else f"{last} has"
        values = ", ".join(f"{candidate} {figure(value, metric)}" for value, candidate in ranked)
        lead = f"at {each}, {leads} the best finished trial by validation {metric.noun}: {values}"
        if facts.order_changes:
            lead += f"; {ORDER_CHANGES}"
        if learned := unlike_weights(facts.entries):
            lead += f"; {learned}"
        if facts.caveat_of_sides:
            lead += f"; {facts.caveat_of_sides}"
    if unfinished := [place.family for place in places if place.best_value is None]:
        lead += f"; no trial has finished of {', '.join(unfinished)}"
    ranks = "this ranks single best trials and is not a verdict"
    return f"{on[0].upper()}{on[1:]}, {lead}.", f"{unjudged} {ranks}."
