"""Published recipe → tuned: what each search gained over the recipe that it began with.

The gain is the difference of two validation figures at full length. The tuned recipe is the best
of its search on the very images that the gain is counted on, the published one was chosen by
nobody: so the gain is too high by what that choice is worth, and 0 where tuning found nothing
better. How much less a winner reaches on other images is said where finals are
(:mod:`orchestrator.compare.gap`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from orchestrator.compare.runs import CandidateTrials, Curve, best_trial, top1_keys
from orchestrator.ledger.state import TrialStatus
from trainables.metrics import TOP1

FORMER_KEYS = {"published_val_top1": "published_val", "tuned_val_top1": "tuned_val"}
NOT_PUBLISHED = "its search did not begin with a published recipe"


@dataclass(frozen=True, kw_only=True)
class SearchGain:
    """One search: ``trial``, which has the published recipe, beside the best finished trial.

    Figures are the best of a finished trial's epochs by ``metric``. ``gain`` is by how much the
    second is better than the first; ``None`` where one of them is missing or they trained for
    unequal lengths, for the reason in ``why``.
    """

    search: str
    metric: str
    trial: str
    status: TrialStatus
    published_val: float | None
    tuned_trial: str | None
    tuned_val: float | None
    gain: float | None
    why: str | None

    def as_dict(self) -> dict[str, Any]:
        """As the compare JSON has it."""
        return vars(self) | top1_keys(self, **FORMER_KEYS)


@dataclass(frozen=True, kw_only=True)
class TuningGain:
    """A candidate's searches; figures by ``metric`` and ``gain`` are means over the ``n`` of them
    that have one.

    ``source``: paper and section, ``axes`` what trial 0 has of it, ``moved`` what was published
    where that is outside the searched range. ``why`` says why ``gain`` is missing.
    """

    family: str
    metric: str = TOP1.name
    source: str | None = None
    axes: Mapping[str, Any] = field(default_factory=dict)
    moved: Mapping[str, Any] = field(default_factory=dict)
    searches: tuple[SearchGain, ...] = ()
    n: int = 0
    published_val: float | None = None
    tuned_val: float | None = None
    gain: float | None = None
    why: str | None = NOT_PUBLISHED

    def as_dict(self) -> dict[str, Any]:
        """As the compare JSON has it."""
        return vars(self) | top1_keys(self, **FORMER_KEYS)


def tuning_gain(candidate: CandidateTrials) -> TuningGain | None:
    """The candidate's gain; ``None`` where its recipes were laid out and not searched."""
    if candidate.sweep is not None and (candidate.sweep.grid or not candidate.sweep.space):
        return None
    begun = [curve for curve in candidate.search if curve.state.published]
    if not begun:
        return TuningGain(family=candidate.label, metric=candidate.metric.name)
    searches = tuple(_of_search(first, candidate.search) for first in begun)
    pairs = [
        (one.published_val, one.tuned_val)
        for one in searches
        if one.gain is not None and one.published_val is not None and one.tuned_val is not None
    ]
    published = fmean(first for first, _ in pairs) if pairs else None
    tuned = fmean(best for _, best in pairs) if pairs else None
    start = begun[0].state.published
    assert start is not None
    return TuningGain(
        family=candidate.label, metric=candidate.metric.name,
        source=start.source, axes=start.axes, moved=start.moved,
        searches=searches, n=len(pairs), published_val=published, tuned_val=tuned,
        gain=None if published is None or tuned is None
        else candidate.metric.advantage(tuned, published),
        why=None if pairs else next((one.why for one in searches if one.why), None),
    )  # fmt: skip


def _of_search(first: Curve, trials: Sequence[Curve]) -> SearchGain:
    own = [curve for curve in trials if curve.state.search_name == first.state.search_name]
    tuned, published = best_trial(own), first.finished_value
    best = tuned.finished_value if tuned else None
    why = None
    if published is None:
        why = _unfinished(first)
    elif tuned and tuned.state.epoch != first.state.epoch:
        why = (
            f"{first.name} ended at epoch {first.state.epoch}, {tuned.name} at "
            f"{tuned.state.epoch}: they do not compare"
        )
    gain = None
    if why is None and best is not None and published is not None:
        gain = first.metric.advantage(best, published)
    return SearchGain(
        search=first.state.search_name, metric=first.metric.name, trial=first.name,
        status=first.status, published_val=published, tuned_trial=tuned.name if tuned else None,
        tuned_val=best, gain=gain, why=why,
    )  # fmt: skip


def _unfinished(first: Curve) -> str:
    if not first.status.is_final:
        return f"{first.name} has not ended"
    if first.status == TrialStatus.PRUNED:
        return f"{first.name} was pruned after epoch {first.state.epoch}"
    return f"{first.name} {first.status}"
