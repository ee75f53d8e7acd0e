"""How many epochs a scheduler is expected to train. Pure arithmetic: no ray."""

from __future__ import annotations

from orchestrator.limits import SchedulerSpec


def expected_epochs(scheduler: SchedulerSpec, trials: int) -> float:
    """Epochs that ASHA is expected to train when trials arrive at each rung in random order.

    The trial that finds m results at a rung goes on when it is at or above their (1 - 1/eta)
    quantile; for uniform values that has the probability (m - q) / (m + 1), q = (1 - 1/eta)
    (m - 1), and 1 for m = 0. (Li et al., MLSys 2020, section 3; the quantile as Tune takes it.)
    Of those pruned, the audited share is finished anyway. PASHA trains at most as much as ASHA.
    """
    keep = 1 - 1 / scheduler.reduction_factor
    arrive, before, epochs = float(trials), 0, 0.0
    for rung in scheduler.rungs():
        epochs += arrive * (rung - before)
        before = rung
        whole = int(arrive)
        odds = [1.0, *((m - keep * (m - 1)) / (m + 1) for m in range(1, whole + 1))]
        kept = sum(odds[:whole]) + (arrive - whole) * odds[whole]
        epochs += scheduler.audit * (arrive - kept) * (scheduler.max_epochs - rung)
        arrive = kept
    return epochs + arrive * (scheduler.max_epochs - before)


def expected_rest(scheduler: SchedulerSpec, epoch: int) -> float:
    """Epochs that one trial is still expected to train after ``epoch`` of them.

    At each rung ahead it goes on with probability 1/eta, as one of very many would.
    """
    odds, before, epochs = 1.0, epoch, 0.0
    for rung in scheduler.rungs():
        if rung <= epoch:
            continue
        epochs += odds * (rung - before)
        before = rung
        pruned = odds * (1 - 1 / scheduler.reduction_factor)
        epochs += scheduler.audit * pruned * (scheduler.max_epochs - rung)
        odds -= pruned
    return epochs + odds * (scheduler.max_epochs - before)
