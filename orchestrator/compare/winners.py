"""Which trial won, by validation alone: what the finals retrain, what is exported and registered,
and whose checkpoints stay. Nothing here reads the test split.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import fmean

from orchestrator.ledger.state import State, TrialState, require_trials
from trainables.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SelectedModel:
    """A trial and the epoch of it that is taken; ``why`` is a sentence for people."""

    trial: TrialState
    epoch: int
    val_top1: float
    why: str


def winners(state: State) -> dict[str, TrialState]:
    """By search, its finished trial with the best validation accuracy of any epoch.

    Pruned and audited trials do not compete: the search has given them up. Where PASHA ended
    trials at different lengths, those that went furthest compete.
    """
    best: dict[str, TrialState] = {}
    for trial in state.trials.values():
        value, _ = trial.best()
        eligible = trial.stage == "search" and trial.status == "finished"
        if not eligible or value is None or trial.audited:
            continue
        leader = best.get(trial.search_name)
        if leader is None or (trial.epoch, value) > (leader.epoch, leader.best()[0] or 0.0):
            best[trial.search_name] = trial
    return best


def best_models(state: State) -> dict[str, SelectedModel]:
    """Each candidate's best final, or its best search trial where it has no final, over all
    searches.

    A final is taken at its last epoch, as it met the test split, hence compared there; a search
    trial at its best epoch.
    """
    models = {}
    winners_by_candidate: dict[str, list[TrialState]] = {}
    for winner in winners(state).values():
        winners_by_candidate.setdefault(winner.candidate, []).append(winner)
    for candidate, chosen in winners_by_candidate.items():
        finals = _finished_finals(state, candidate)
        trial = max(chosen, key=lambda winner: (winner.epoch, winner.best()[0] or 0.0))
        if finals:
            trial = max(finals, key=_last_top1)
            epoch, value = trial.epoch, _last_top1(trial)
            among = f"{len(finals)} finals of {candidate}"
        else:
            best, best_epoch = trial.best()
            epoch, value = best_epoch or 0, best or 0.0
            among = f"the finished search trials of {candidate}"
        why = f"{trial.trial} at epoch {epoch}: the best of {among} on validation, {value:.4f}"
        models[candidate] = SelectedModel(trial=trial, epoch=epoch, val_top1=value, why=why)
    return models


def select_model(state: State, candidate: str | None = None) -> SelectedModel:
    """The best model of the run, or of one ``candidate``.

    Of several candidates with finals, the one whose finals are best on average is taken.
    Raises ``UserError`` where the candidate is unknown or has no finished trial.
    """
    require_trials(state)
    models, name = best_models(state), state.header.run
    candidates = list(dict.fromkeys(trial.candidate for trial in state.trials.values()))
    if candidate is not None and candidate not in candidates:
        raise UserError(
            f"--candidate must be one of {', '.join(candidates)}; got {candidate!r}. "
            f"Fix: --candidate {candidates[0]}"
            if candidates
            else f"the run {name} has no trial yet. Fix: orchestrator status {name}"
        )
    if candidate in models:
        return models[candidate]
    if candidate is not None or not models:
        of = f"no trial of {candidate}" if candidate else "none of its trials"
        raise UserError(
            f"a trial must have finished to be exported; {of} in {name} has. "
            f"Fix: orchestrator status {name}"
        )
    finals = {label: _finished_finals(state, label) for label in models}
    means = {label: fmean(map(_last_top1, trials)) for label, trials in finals.items() if trials}
    ranked = means or {label: model.val_top1 for label, model in models.items()}
    best = max(ranked, key=ranked.__getitem__)
    lead = f"; {best} has the best mean" if means else ", and"
    others = f"{lead} of {len(ranked)} candidates" if len(ranked) > 1 else ""
    return replace(models[best], why=models[best].why + others)


def _finished_finals(state: State, candidate: str) -> list[TrialState]:
    """Finished finals of the winners that were frozen last."""
    frozen = {won["trial"] for won in state.frozen.get("winners", {}).values()}
    return [
        trial
        for trial in state.trials.values()
        if (trial.stage, trial.candidate, trial.status) == ("final", candidate, "finished")
        and trial.winner in frozen
        and math.isfinite(_last_top1(trial))
    ]


def _last_top1(trial: TrialState) -> float:
    """Validation accuracy of the last epoch; NaN where it is missing."""
    report = trial.reports.get(trial.epoch)
    return report.metrics.get("val_top1", math.nan) if report else math.nan
