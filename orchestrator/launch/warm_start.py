"""``--from NAME``: a search that begins with the best recipes of earlier runs of its candidate, or
of its family where they have no candidate of that label.

For all candidates of a run or for none: one that began with good recipes beside one that did not
would be no comparison. What is taken is in the spec, so that a resume or a rerun does not depend
on the earlier runs any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import chain, zip_longest

from orchestrator.ledger import replication
from orchestrator.ledger.session import state_of
from orchestrator.ledger.state import Stage, State, TrialState, TrialStatus
from orchestrator.spec.run import RunSpec, SweepSpec
from orchestrator.spec.spaces import Axes, Choice, Domain, Observation, WarmStart
from trainables.config import Assignment
from trainables.errors import UserError, collected, raise_if_any
from trainables.metrics import Metric, metric_of

RECIPES = 3  # of each candidate


def warm_started(run: RunSpec, names: Sequence[str]) -> RunSpec:
    """``run`` with what the earlier runs ``names`` hold. One that was begun from the same names
    keeps what it was begun with, whatever has become of them.

    Raises ``UserError`` for a run that does not exist, for a sweep that searches nothing, and where
    a candidate has no finished trial on record whose recipe lies in the ranges that are searched
    now.
    """
    folder = replication.pull(run.storage, run.name)
    begun = {sweep.candidate: sweep.warm_start for sweep in state_of(folder).spec.sweeps}
    if begun and all(start and start.sources == tuple(names) for start in begun.values()):
        kept = [
            # Before there were labels, the family's name was the key.
            replace(sweep, warm_start=begun.get(sweep.candidate, begun.get(sweep.family)))
            for sweep in run.sweeps
        ]
        return replace(run, sweeps=tuple(kept))
    mistakes: list[str] = []
    states: list[State] = []
    for name in names:
        with collected(mistakes):
            states.append(state_of(replication.existing_run(name, run.storage)))
    raise_if_any(mistakes)
    starts: list[WarmStart] = []
    for sweep in run.sweeps:
        with collected(mistakes):
            starts.append(_warm_start(sweep, names, states))
    raise_if_any(mistakes)
    # The same for all candidates, and at most half of the trials: the rest is to search.
    most = min(max(1, sweep.trials // 2) for sweep in run.sweeps)
    count = min(RECIPES, most, *(len(start.recipes) for start in starts))
    started = [
        replace(sweep, warm_start=replace(start, recipes=start.recipes[:count]))
        for sweep, start in zip(run.sweeps, starts, strict=True)
    ]
    return replace(run, sweeps=tuple(started))


def _warm_start(sweep: SweepSpec, names: Sequence[str], states: Sequence[State]) -> WarmStart:
    if not sweep.space or sweep.grid:
        raise UserError(
            f"--from needs axes that are searched; {sweep.candidate} has none. "
            "Fix: leave --from out"
        )
    searched, metric = [_searched(sweep, state) for state in states], metric_of(sweep.metric)
    fitting = [[trial for trial in trials if _fits(sweep, trial)] for trials in searched]
    recipes: list[Axes] = []
    # The best of each run, then the second of each: accuracies of two runs may not compare.
    for trial in chain.from_iterable(zip_longest(*(_ranked(of_run, metric) for of_run in fitting))):
        axes = None if trial is None else _axes(sweep, trial)
        if axes is not None and axes not in recipes:
            recipes.append(axes)
    if not recipes:
        raise UserError(
            f"--from needs a finished trial of {sweep.candidate} that reported {metric.name} and "
            f"whose recipe lies in the ranges that are searched; {', '.join(names)} has none among "
            f"{sum(map(len, searched))} trials of it. Fix: name another run, or "
            "leave --from out for all candidates"
        )
    observations = [
        Observation(axes=_axes(sweep, trial), values=trial.scores(metric), status=trial.status)
        for trial in chain.from_iterable(fitting)
        if sweep.scheduler.sampler == "tpe" and trial.status.is_final and _compares(sweep, trial)
    ]
    return WarmStart(sources=tuple(names), recipes=tuple(recipes), observations=tuple(observations))


def _searched(sweep: SweepSpec, state: State) -> list[TrialState]:
    """The search trials that were drawn, of the candidate or else of its family."""
    of_family = [trial for trial in state.trials.values() if trial.family == sweep.family]
    own = [trial for trial in of_family if trial.candidate == sweep.candidate]
    return [
        trial
        for trial in own or of_family
        if trial.stage is Stage.SEARCH and trial.axes is not None
    ]


def _ranked(trials: Sequence[TrialState], metric: Metric) -> list[TrialState]:
    """The finished ones that have reported the metric, the best first."""
    finished = [
        (max(scores.values()), trial)
        for trial in trials
        if trial.status is TrialStatus.FINISHED and (scores := trial.scores(metric))
    ]
    return [trial for _, trial in sorted(finished, key=lambda ranked: -ranked[0])]


def _axes(sweep: SweepSpec, trial: TrialState) -> Axes:
    """What the trial had of each axis that is searched now, searched then or not."""
    axes = {}
    for path in sweep.space:
        section, _, name = path.partition(".")
        axes[path] = getattr(getattr(trial.assignment, section), name)
    if axes.get("recipe.warmup_share", 0.0) is None:  # of before there were shares
        epochs = trial.assignment.epochs
        share = trial.assignment.recipe.warmup_of(epochs) / epochs
        axes["recipe.warmup_share"] = float(f"{share:.4g}")
    return axes


def _fits(sweep: SweepSpec, trial: TrialState) -> bool:
    return all(_within(sweep.space[path], value) for path, value in _axes(sweep, trial).items())


def _compares(sweep: SweepSpec, trial: TrialState) -> bool:
    """Whether its accuracies are of the same images, backbone and length as the sweep's will be:
    TPE ranks both together."""
    return _setting(sweep, trial.assignment) == _setting(sweep, sweep.assignment(0, axes={}))


def _setting(sweep: SweepSpec, assignment: Assignment) -> dict[str, object]:
    """What is the same in all trials of the sweep, but for their recipes, and what their levels of
    augmentation are."""
    setting: dict[str, object] = {
        "epochs": assignment.epochs,
        "recipe.augment_set": assignment.recipe.augment_set,
    }
    for section in ("backbone", "data"):
        for one in fields(getattr(assignment, section)):
            setting[f"{section}.{one.name}"] = getattr(getattr(assignment, section), one.name)
    return {path: v for path, v in setting.items() if path not in {*sweep.space, "data.folder"}}


def _within(domain: Domain, value: object) -> bool:
    if isinstance(domain, Choice):
        return value in domain.values
    return isinstance(value, int | float) and domain.low <= value <= domain.high
