"""Which trial won, by validation alone: what the finals retrain, what is exported and registered,
and whose checkpoints stay. Nothing here reads the test split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from orchestrator.ledger.state import State, TrialState, require_trials
from trainables.errors import UserError
from trainables.metrics import TOP1


@dataclass(frozen=True, kw_only=True)
class SelectedModel:
    """A trial and the epoch of it that is taken, ``value`` what it is judged by there on
    validation; ``why`` is a sentence for people."""

    trial: TrialState
    epoch: int
    value: float
    why: str

    @property
    def val_top1(self) -> float | None:
        """Its validation accuracy there, whatever it is judged by."""
        return self.trial.values(TOP1).get(self.epoch)


def winners(state: State) -> dict[str, TrialState]:
    """By search, its finished trial with the best validation figure of any epoch, by the metric
    that the run is judged by.

    Pruned and audited trials do not compete: the search has given them up. Where PASHA ended
    trials at different lengths, those that went furthest compete.
    """
    best: dict[str, TrialState] = {}
    for trial in state.trials.values():
        score = trial.best_score
        eligible = trial.stage == "search" and trial.status == "finished"
        if not eligible or score is None or trial.audited:
            continue
        leader = best.get(trial.search_name)
        if leader is None or (trial.epoch, score) > (leader.epoch, leader.best_score or 0.0):
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
        trial = max(chosen, key=lambda winner: (winner.epoch, winner.best_score or 0.0))
        if finals:
            trial = max(finals, key=_last_score)
            epoch, value = trial.epoch, trial.values()[trial.epoch]
            among = f"{len(finals)} finals of {candidate}"
        else:
            best, best_epoch = trial.best()
            assert best is not None
            assert best_epoch is not None
            epoch, value = best_epoch, best
            among = f"the finished search trials of {candidate}"
        by = "" if trial.metric is TOP1 else f" by {trial.metric.name}"
        why = f"{trial.trial} at epoch {epoch}: the best of {among} on validation{by}, {value:.4f}"
        models[candidate] = SelectedModel(trial=trial, epoch=epoch, value=value, why=why)
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
    means = {label: _mean_score(trials) for label, trials in finals.items() if trials}
    ranked = means or {label: model.trial.best_score or 0.0 for label, model in models.items()}
    best = max(ranked, key=ranked.__getitem__)
    lead = f"; {best} has the best mean" if means else ", and"
    others = f"{lead} of {len(ranked)} candidates" if len(ranked) > 1 else ""
    return replace(models[best], why=models[best].why + others)


def _finished_finals(state: State, candidate: str) -> list[TrialState]:
    """Finished finals of the winners that were frozen last."""
    frozen = set(state.frozen.trials.values()) if state.frozen else set[str]()
    return [
        trial
        for trial in state.trials.values()
        if (trial.stage, trial.candidate, trial.status) == ("final", candidate, "finished")
        and trial.winner in frozen
        and trial.epoch in trial.values()
    ]


def _last_score(trial: TrialState) -> float:
    return trial.scores()[trial.epoch]


def _mean_score(trials: Sequence[TrialState]) -> float:
    """The score of the mean of what the trials are judged by after their last epochs."""
    return float(trials[0].metric.score(fmean(trial.values()[trial.epoch] for trial in trials)))
