"""Whether the comparison survives leaving out the test images whose labels are suspected: often a
data set's wrong labels do not change the order of models, and sometimes they do (Northcutt, Athalye
and Mueller, "Pervasive label errors in test sets destabilize machine learning benchmarks", 2021).

The same comparison is made again without those images, by accuracy, whatever metric the run is
judged by, among the candidates whose finals have kept their predictions. The candidates' own
predictions say which they are, so all accuracies rise; this is no test of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.compare.finals import by_search, finished, newest_round
from orchestrator.compare.predicted import TestPredictions
from orchestrator.compare.runs import Array, CandidateTrials, Curve
from orchestrator.compare.statistics import mean_of
from orchestrator.compare.suspects import SuspectReport
from orchestrator.compare.verdicts import PairResult, PairVerdict, compare_pairs, describe_verdict
from trainables.metrics import TOP1


@dataclass(frozen=True, kw_only=True)
class Cleaning:
    """The comparison before and after ``left_out`` of ``images`` test images: mean accuracies
    and the order by them, best first, and the verdicts of every pair."""

    left_out: int
    images: int
    accuracy: Mapping[str, float]
    accuracy_cleaned: Mapping[str, float]
    order: tuple[str, ...]
    order_cleaned: tuple[str, ...]
    pairs_cleaned: tuple[PairResult, ...]
    changed: tuple[str, ...]
    order_survives: bool
    verdicts_survive: bool
    sentence: str


def clean(
    candidates: Sequence[CandidateTrials],
    predictions: TestPredictions,
    suspects: SuspectReport,
    margin: float,
) -> Cleaning | None:
    """``None`` where the images are not known by their digests, or nothing would be left."""
    if predictions.digests is None or suspects.missing is not None:
        return None
    names = {name: index for index, name in enumerate(predictions.class_names)}
    suspected = [
        (int(one.digest, 16), names[one.label]) for one in suspects.suspects if one.split == "test"
    ]
    kept = ~_is_among(predictions, suspected)
    left_out = int((~kept).sum())
    if not kept.any():
        return None
    predicted = {one.label for one in predictions.candidates}
    whole = [each for each in candidates if each.label in predicted]
    cleaned = [
        replace(each, curves=tuple(_without(c, kept) for c in each.curves)) for each in whole
    ]
    before, after = _accuracies(whole), _accuracies(cleaned)
    again = compare_pairs(cleaned, margin, TOP1)
    changed = tuple(_changed(compare_pairs(whole, margin, TOP1), again))
    orders = _order(before), _order(after)
    return Cleaning(
        left_out=left_out, images=int(kept.size), accuracy=before, accuracy_cleaned=after,
        order=orders[0], order_cleaned=orders[1], pairs_cleaned=again, changed=changed,
        order_survives=orders[0] == orders[1], verdicts_survive=not changed,
        sentence=_sentence(left_out, kept.size, *orders, changed, again),
    )  # fmt: skip


def _is_among(predictions: TestPredictions, suspected: Sequence[tuple[int, int]]) -> Array:
    """(N,): whether an image of these pixels and this label is suspected."""
    assert predictions.digests is not None
    wanted = set(suspected)
    pairs = zip(predictions.digests.tolist(), predictions.labels.tolist(), strict=True)
    return np.array([pair in wanted for pair in pairs], bool)


def _without(curve: Curve, kept: Array) -> Curve:
    """A final as if test had had the images ``kept`` (N,) alone."""
    if curve.state.stage != "final" or curve.correct is None or curve.correct.size != kept.size:
        return curve
    correct = curve.correct[kept]
    test = {**(curve.state.outcome.get("test") or {}), "top1": float(correct.mean()),
            "n": int(correct.size)}  # fmt: skip
    return replace(
        curve,
        correct=correct,
        state=replace(curve.state, outcome={**curve.state.outcome, "test": test}),
    )


def _accuracies(candidates: Sequence[CandidateTrials]) -> dict[str, float]:
    """By candidate that has finals, the mean over searches."""
    finals = {each.label: finished(newest_round(each)) for each in candidates}
    return {label: mean_of(by_search(curves)) for label, curves in finals.items() if curves}


def _order(accuracies: Mapping[str, float]) -> tuple[str, ...]:
    return tuple(sorted(accuracies, key=lambda label: (-accuracies[label], label)))


def _changed(before: Sequence[PairResult], after: Sequence[PairResult]) -> list[str]:
    """Of every pair whose verdict is another one."""
    again = {(pair.a, pair.b): pair for pair in after}
    return [
        f"{describe_verdict(pair)} becomes {describe_verdict(other)}"
        for pair in before
        if (other := again.get((pair.a, pair.b))) and other.verdict is not pair.verdict
    ]


def _sentence(
    left_out: int,
    images: int,
    order: Sequence[str],
    cleaned: Sequence[str],
    changed: Sequence[str],
    pairs: Sequence[PairResult],
) -> str:
    """What changes and what does not; of an order, only what the verdicts bear."""
    if not left_out:
        return "No label of test is suspected, so there is nothing to leave out."
    share = f"{100 * left_out / images:.1f} %"
    of = f"the {left_out} of {images} test images with suspected labels ({share})"
    if len(order) < 2:
        return f"Without {of} there is one candidate as before, and no pair."
    decided = any(pair.verdict in (PairVerdict.A_BETTER, PairVerdict.B_BETTER) for pair in pairs)
    if list(order) == list(cleaned):
        what = f"the order of the mean accuracies stays {', '.join(order)}"
    else:
        orders = f"from {', '.join(order)} to {', '.join(cleaned)}"
        what = f"the order of the mean accuracies changes {orders}"
    if not pairs:
        return f"Without {of}, {what}."
    if changed:
        return f"Without {of}, {what}, and of the verdicts {'; '.join(changed)}."
    stays = "every verdict stays" if decided else "every verdict stays: none is told apart"
    return f"Without {of}, {what}, and {stays}."
