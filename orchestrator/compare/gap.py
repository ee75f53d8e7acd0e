"""From validation to test: how much too high the accuracy is that a winner was chosen for, and how
far apart its accuracies on two sets of images lie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.compare import statistics
from orchestrator.compare.finals import finished, grouped, newest_round, test_accuracy
from orchestrator.compare.runs import CandidateTrials, Curve, best_trial
from orchestrator.compare.statistics import MeanInterval, Part


@dataclass(frozen=True, kw_only=True)
class Gap:
    """From validation to test; differences of fractions.

    ``search_val_top1`` is the winner's accuracy that it was chosen for (of several searches, the
    mean), the best of many recipes and epochs and so too high; ``final_val_top1`` that of the same
    recipe over fresh seeds and validation images, after its last epoch, which nothing chose, and
    in which it met the test images. ``selection`` is the first less the second's mean, ``to_test``
    the second less test accuracy, paired by final: 0 in expectation where both sets of images are
    drawn alike. Its interval covers other searches, other seeds and other images of both kinds.
    """

    family: str
    search_val_top1: float | None
    final_val_top1: MeanInterval
    test_top1: MeanInterval
    selection: float | None
    to_test: MeanInterval


def gap_to_test(candidate: CandidateTrials) -> Gap | None:
    """The candidate's gap; ``None`` without finals.

    The winners' validation accuracies are as they were frozen, else of the best finished trial.
    """
    trials = newest_round(candidate)
    finals = [final for final in finished(trials) if final.last_top1 is not None]
    if not finals:
        return None
    groups, test = grouped(finals), test_accuracy(finals)
    val = [[_val(final) for final in group] for group in groups]
    gaps = [[_val(final) - final.test("top1") for final in group] for group in groups]
    of_val = _validation_images(candidate, finals, statistics.mean_of(val))
    final_val = statistics.mean_over(val, of_val, bounds=(0.0, 1.0))
    units = test.groups or test.images  # each group as one image, to be careful
    of_test = [statistics.binomial_part(test.mean, units)] if units else []
    chosen = _chosen(candidate, {final.state.winner for final in trials})
    return Gap(
        family=candidate.label, search_val_top1=chosen, final_val_top1=final_val, test_top1=test,
        selection=None if chosen is None else chosen - final_val.mean,
        to_test=statistics.mean_over(gaps, of_val + of_test),
    )  # fmt: skip


def _val(final: Curve) -> float:
    return math.nan if final.last_top1 is None else final.last_top1


def _chosen(candidate: CandidateTrials, winners: set[str | None]) -> float | None:
    """What the searches' winners were chosen for, in the mean."""
    chosen = [trial for trial in candidate.search if trial.name in winners]
    if not chosen and (best := best_trial(candidate.search)):
        chosen = [best]
    values = [trial.best[0] for trial in chosen if trial.best]
    return math.fsum(values) / len(values) if values else None


def _validation_images(
    candidate: CandidateTrials, finals: Sequence[Curve], top1: float
) -> list[Part]:
    """What other validation images would change in the finals' mean accuracy; nothing where it is
    not known how many there are. Each final draws its own, unless the source has such a split."""
    details = [final.state.detail for final in finals]
    images = min(
        filter(None, (d.get("val_images", candidate.val_images) for d in details)), default=0
    )
    if not images:
        return []
    splits = len({detail.get("dataset_hash") for detail in details})
    variance, freedom = statistics.binomial_part(top1, images)
    return [(variance / splits, freedom * splits)]
