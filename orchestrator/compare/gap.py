"""From validation to test: how much too good the figure is that a winner was chosen for, and how
far apart its figures on two sets of images lie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.compare import statistics
from orchestrator.compare.finals import finished, newest_round, test_figure
from orchestrator.compare.runs import CandidateTrials, Curve, best_trial, grouped, top1_keys
from orchestrator.compare.statistics import MeanInterval, Part


@dataclass(frozen=True, kw_only=True)
class Gap:
    """From validation to test, by ``metric``; differences are above 0 where the first is better.

    ``search_val`` is the winner's figure that it was chosen for (of several searches, the mean),
    the best of many recipes and epochs and so too good; ``final_val`` that of the same recipe over
    fresh seeds and validation images, after its last epoch, which nothing chose, and in which it
    met the test images. ``selection`` is by how much the first is better than the second's mean,
    ``to_test`` by how much the second is better than ``test``, paired by final: 0 in expectation
    where both sets of images are drawn alike. Its interval covers other searches, other seeds and
    other images of both kinds; there is none where the metric is no share of images, whose number
    tells what other images would change. The compare JSON of runs that are judged by top1 has the
    first three also as ``search_val_top1``, ``final_val_top1`` and ``test_top1``."""

    family: str
    metric: str
    search_val: float | None
    final_val: MeanInterval
    test: MeanInterval
    selection: float | None
    to_test: MeanInterval

    def as_dict(self) -> dict[str, Any]:
        """As the compare JSON has it."""
        former = top1_keys(
            self, search_val_top1="search_val", final_val_top1="final_val", test_top1="test"
        )
        return vars(self) | former


def gap_to_test(candidate: CandidateTrials) -> Gap | None:
    """The candidate's gap; ``None`` without finals.

    The winners' validation figures are as they were frozen, else of the best finished trial.
    """
    trials, metric = newest_round(candidate), candidate.metric
    finals = [
        final
        for final in finished(trials)
        if final.last_value is not None and math.isfinite(final.test(metric.name))
    ]
    if not finals or (test := test_figure(finals, metric, candidate.class_names)) is None:
        return None
    groups = grouped(finals)
    val = [[_val(final) for final in group] for group in groups]
    gaps = [
        [metric.advantage(_val(final), final.test(metric.name)) for final in group]
        for group in groups
    ]
    highest = 1.0 if metric.is_share else math.inf
    of_val = _validation_images(candidate, finals, statistics.mean_of(val))
    is_share = metric.is_image_share
    units = test.groups or test.images  # each group as one image, to be careful
    of_test = [statistics.binomial_part(test.mean, units)] if units and is_share else []
    final_val = statistics.mean_over(val, of_val, bounds=(0.0, highest))
    to_test = statistics.mean_over(gaps, of_val + of_test)
    if not is_share:
        final_val, to_test = (replace(one, low=None, high=None) for one in (final_val, to_test))
    chosen = _chosen(candidate, {final.state.winner for final in trials})
    return Gap(
        family=candidate.label, metric=metric.name, search_val=chosen, final_val=final_val,
        test=test, to_test=to_test,
        selection=None if chosen is None else metric.advantage(chosen, final_val.mean),
    )  # fmt: skip


def _val(final: Curve) -> float:
    return math.nan if final.last_value is None else final.last_value


def _chosen(candidate: CandidateTrials, winners: set[str | None]) -> float | None:
    """What the searches' winners were chosen for, in the mean."""
    chosen = [trial for trial in candidate.search if trial.name in winners]
    if not chosen and (best := best_trial(candidate.search)):
        chosen = [best]
    values = [trial.best[0] for trial in chosen if trial.best]
    return math.fsum(values) / len(values) if values else None


def _validation_images(
    candidate: CandidateTrials, finals: Sequence[Curve], share: float
) -> list[Part]:
    """What other validation images would change in the finals' mean share of them; nothing where it
    is not known how many there are, or where the metric is no such share. Each final draws its own,
    unless the source has such a split."""
    if not candidate.metric.is_image_share:
        return []
    details = [final.state.detail for final in finals]
    images = min(
        filter(None, (d.get("val_images", candidate.val_images) for d in details)), default=0
    )
    if not images:
        return []
    splits = len({detail.get("dataset_hash") for detail in details})
    variance, freedom = statistics.binomial_part(share, images)
    return [(variance / splits, freedom * splits)]
