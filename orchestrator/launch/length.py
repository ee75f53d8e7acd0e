"""How long a full trial is, where nobody said: in optimizer steps, and so in epochs of the images.

A number of epochs means nothing by itself: nine of them are 135 steps on 1,000 images and 100,000
on a million. So ``scheduler.least_steps`` says how many steps a full trial is to have, and
``scheduler.max_epochs`` follows from the size of train, once, as the run begins; the ledger keeps
both. Nine epochs, if they have the steps; more, if they have not; fewer, if they would have more
than twenty times as many; and no more than what the budget affords.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from orchestrator.launch.forecast import Costs, images_per_epoch, search_seconds
from orchestrator.spec.defaults import UNSIZED_EPOCHS, default_grace, lengthened
from orchestrator.spec.run import RunSpec, SweepSpec
from trainables.config import DatasetFacts

log = logging.getLogger(__name__)

USUAL_EPOCHS = UNSIZED_EPOCHS
FEWEST_EPOCHS = 3  # with fewer there is no rung between warm-up and the end
MOST_EPOCHS = 300  # of a few images: an epoch costs more than its steps
# Times the least number of steps. 10,000 steps are what BiT-HyperRule gives a data set of 20,000 to
# 500,000 images (Kolesnikov et al., ECCV 2020, section 3.3), where 500 are for the smallest.
MOST_STEPS_FACTOR = 20

Images = Mapping[str, DatasetFacts]  # by candidate


def steps_per_epoch(sweep: SweepSpec, counts: Mapping[str, int]) -> int:
    """Optimizer steps of an epoch, the fewest that a trial of the sweep may have; ``counts`` are
    images by split."""
    variants = [
        variant
        for prefix in ("recipe.batch_size_per_worker", "data.")
        for variant in sweep.variants(prefix)
    ]
    return max(1, min(_steps(variant, counts) for variant in variants))


def _steps(sweep: SweepSpec, counts: Mapping[str, int]) -> int:
    return images_per_epoch(sweep, counts)[0] // sweep.recipe.batch_size_per_worker


def epochs_for(least_steps: int, steps: int) -> int:
    """The full length, in epochs of so many ``steps``, of a trial with at least ``least_steps``."""
    most = max(FEWEST_EPOCHS, MOST_STEPS_FACTOR * least_steps // steps)
    return min(MOST_EPOCHS, max(math.ceil(least_steps / steps), min(USUAL_EPOCHS, most)))


def is_open(spec: RunSpec) -> bool:
    """Whether the length of its trials follows from the size of train."""
    return any(sweep.scheduler.least_steps is not None for sweep in spec.sweeps)


def sized(spec: RunSpec, images: Images, texts: Iterable[str] = ()) -> RunSpec:
    """``spec`` with the number of epochs that its least steps ask for, the same for all candidates:
    the most that one of them needs. ``texts`` are what the command sets, as ``PATH=VALUE``."""
    if not is_open(spec):
        return spec
    epochs = max(
        epochs_for(
            sweep.scheduler.least_steps, steps_per_epoch(sweep, images[sweep.candidate].counts)
        )
        for sweep in spec.sweeps
        if sweep.scheduler.least_steps is not None
    )
    return at_length(spec, epochs, texts)


def at_length(spec: RunSpec, epochs: int, texts: Iterable[str] = ()) -> RunSpec:
    """``spec`` at ``epochs``; its first rung stays where it is set by ``texts``."""
    is_set = any(text.partition("=")[0].endswith("scheduler.grace_epochs") for text in texts)
    return replace(spec, sweeps=lengthened(spec.sweeps, epochs, keeps_grace=is_set))


def affordable(spec: RunSpec, costs: Costs, texts: Sequence[str] = ()) -> RunSpec:
    """``spec``, if its length is open, at no more epochs than each search's share of the budget is
    expected to pay for, finals included; at least one."""
    share_s = spec.search_share_s()
    if not is_open(spec) or share_s is None or any(cost is None for cost in costs.values()):
        return spec
    for epochs in range(spec.sweeps[0].scheduler.max_epochs, 0, -1):
        shorter = at_length(spec, epochs, texts)
        needs_s = [
            search_seconds(sweep, spec, cost)
            for sweep in shorter.sweeps
            if (cost := costs[sweep.candidate]) is not None
        ]
        if max(needs_s) <= share_s or epochs == 1:
            return shorter
    return spec


def length_text(spec: RunSpec, sweep: SweepSpec, counts: Mapping[str, int]) -> str:
    """Why a full trial is as long as it is, for the plan."""
    scheduler, steps = sweep.scheduler, steps_per_epoch(sweep, counts)
    epochs, least = scheduler.max_epochs, scheduler.least_steps
    each = f"{steps:,} step{'s' * (steps != 1)}"
    text = f"{epochs} epoch{'s' * (epochs != 1)} of {each}, {epochs * steps:,} in all"
    if least is None:
        return f"{text}: as set"
    wanted = epochs_for(least, steps)
    asked = f"at least {least:,} are wanted"
    if epochs < wanted and spec.budget:
        return f"{text}: {asked}, the budget affords no more"
    if wanted == MOST_EPOCHS:
        return f"{text}: {asked}, {MOST_EPOCHS} epochs are the most"
    if epochs > wanted:
        return f"{text}: as another candidate of the run needs"
    return f"{text}: {asked} (scheduler.least_steps)"


def rung_warning(sweep: SweepSpec) -> str | None:
    """That a rung lies in the warm-up of a trial, or right after it."""
    earliest, rungs = default_grace([sweep]), sweep.scheduler.rungs()
    if not rungs or rungs[0] >= earliest:
        return None
    return (
        f"the first rung, epoch {rungs[0]}, is less than an epoch after the longest warm-up. "
        f"Fix: --set scheduler.grace_epochs={earliest}"
    )
