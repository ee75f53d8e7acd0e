"""Which values of a space a trial gets: at random, along a Sobol sequence, or by what came before.

``random``  independent draws, see :func:`orchestrator.spaces.sample`
``sobol``   scrambled Sobol points (Owen, 1998): any power of two of them fills every axis evenly
``tpe``     the tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011; optuna's): drawn
            when a trial starts, from the trials of its family before it

All are functions of their arguments: the same seed, and for TPE the same past, give the same draw.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.spaces import Choice, Domain, LogUniform, Space, sample, within
from trainables.recipe import stable_hash

# Ended trials that TPE wants to see; before, it has nothing to go by and draws Sobol points.
TPE_STARTUP_TRIALS = 10


@dataclass(frozen=True, kw_only=True)
class Past:
    """A trial of the same sweep that was drawn before, and what is known of it by now.

    ``values``: epoch -> validation accuracy. ``status`` is the ledger's.
    """

    axes: Mapping[str, Any]
    values: Mapping[int, float]
    status: str

    @property
    def ended(self) -> bool:
        """Whether more is to come of it."""
        return self.status in ("finished", "pruned", "failed")


def draw(
    sampler: str, space: Space, *, seed: int, family: str, index: int, past: Sequence[Past] = ()
) -> dict[str, Any]:
    """The searched values of trial ``index``: axis path -> value. Only ``tpe`` reads ``past``."""
    if sampler == "random" or not space:
        return sample(space, seed=seed, index=index, family=family)
    if sampler == "tpe" and sum(trial.ended for trial in past) >= TPE_STARTUP_TRIALS:
        return _tpe(space, past, seed=_seed(seed, family, index))
    return _sobol(space, index, seed=_seed(seed, family))


def load() -> None:
    """Import what TPE draws with, a second or so, now and not in the middle of a sweep."""
    importlib.import_module("optuna")
    importlib.import_module("scipy.stats.qmc")


def without(assignment: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """A copy of an assignment's dict that lacks the searched values: they are not drawn yet."""
    plain = _copied(assignment)
    for path in space:
        section, _, name = path.partition(".")
        del plain[section][name]
    return plain


def completed(assignment: Mapping[str, Any], axes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of an assignment's dict with the drawn values in their places."""
    plain = _copied(assignment)
    for path, value in axes.items():
        section, _, name = path.partition(".")
        plain[section][name] = value
    return plain


def tpe_mistakes(space: Space) -> list[str]:
    """What cannot be drawn once trials run: the place is another then, so paths must be whole."""
    weights = space.get("backbone.weights")
    named = weights.values if isinstance(weights, Choice) else ()
    short = [v for v in named if v not in ("hub", "none") and not Path(v).is_absolute()]
    return [
        f"backbone.weights, searched by tpe, must be hub, none or absolute paths; got {path}. "
        f"Fix: write {Path(path).absolute()}"
        for path in short
    ]


def _copied(assignment: Mapping[str, Any]) -> dict[str, Any]:
    return {key: dict(v) if isinstance(v, Mapping) else v for key, v in assignment.items()}


def _seed(*parts: Any) -> int:
    return int(stable_hash(list(parts))[:8], 16)


def _sobol(space: Space, index: int, *, seed: int) -> dict[str, Any]:
    # Imported here: scipy.stats takes longer to load than a command's help may take.
    from scipy.stats import qmc

    paths = sorted(space)
    engine = qmc.Sobol(len(paths), scramble=True, rng=seed)
    if index:
        engine.fast_forward(index)
    point = engine.random(1)[0]  # (axes,)
    return {path: space[path].at(float(u)) for path, u in zip(paths, point, strict=True)}


def _tpe(space: Space, past: Sequence[Past], *, seed: int) -> dict[str, Any]:
    """A finished trial counts with its best accuracy; a pruned one behind all of those, by how far
    it came and its last accuracy; a failed one last; one that still trains as bad, so that trials
    drawn meanwhile go elsewhere (the constant liar)."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=0, multivariate=True, constant_liar=True, seed=seed
        )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    paths = sorted(space)
    asked = {path: _distribution(space[path]) for path in paths}
    study.add_trials([_observed(trial, space, asked) for trial in past])
    params = study.ask(asked).params
    return {path: _value(space[path], params[path]) for path in paths}


def _distribution(domain: Domain) -> Any:
    from optuna import distributions

    if isinstance(domain, Choice):
        # Places, not values: optuna's values are a few plain types, and True equals 1.
        return distributions.CategoricalDistribution(range(len(domain.values)))
    return distributions.FloatDistribution(
        domain.low, domain.high, log=isinstance(domain, LogUniform)
    )


def _value(domain: Domain, drawn: Any) -> Any:
    return domain.values[drawn] if isinstance(domain, Choice) else within(domain, drawn)


def _observed(trial: Past, space: Space, asked: Mapping[str, Any]) -> Any:
    from optuna.trial import TrialState, create_trial

    values = {epoch: value for epoch, value in trial.values.items() if math.isfinite(value)}
    finished = trial.status == "finished" and bool(values)
    ended = TrialState.COMPLETE if finished else TrialState.PRUNED
    # Of a pruned trial optuna reads the last step; without one it ranks the trial last of all, as
    # a failed one should be: nobody wants that recipe again.
    last = [max(values)] if values and trial.status == "pruned" else []
    return create_trial(
        state=ended if trial.ended else TrialState.RUNNING,
        value=max(values.values()) if finished else None,
        params={path: _drawn(space[path], trial.axes[path]) for path in asked},
        distributions=dict(asked),
        intermediate_values={epoch: values[epoch] for epoch in last},
    )


def _drawn(domain: Domain, value: Any) -> Any:
    return domain.values.index(value) if isinstance(domain, Choice) else value
