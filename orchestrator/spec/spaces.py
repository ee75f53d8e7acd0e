"""What is searched, why each range is what it is, and which values a trial gets.

A space maps an axis path (``recipe.learning_rate``) to a domain. Its values are suggested by one
of three samplers:

``random``  independent draws, each a function of the sweep's seed, the candidate, the axis and the
            trial's index: more trials extend the list without changing it, and fixing one axis
            leaves the values of the others alone
``sobol``   scrambled Sobol points (Owen, 1998): any power of two of them fills every axis evenly
``tpe``     the tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011; optuna's),
            asked when a trial starts, by the trials of its candidate before it

All are functions of their arguments: the same seed, and for TPE the same past, give the same draw.
"""

from __future__ import annotations

import importlib
import math
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from trainables.backbones.adaptation import Family
from trainables.backbones.families import FAMILIES
from trainables.config import AUGMENT_LEVELS, NAMED_WEIGHTS, stable_hash
from trainables.spec import Spec


@dataclass(frozen=True)
class Uniform:
    """Uniform between ``low`` and ``high``."""

    kind: ClassVar[str] = "uniform"

    low: float
    high: float
    why: str = field(default="", compare=False)

    def at(self, u: float) -> float:
        """The value at quantile ``u`` in [0, 1), rounded to four digits."""
        return self.rounded(self.low + u * (self.high - self.low))

    def rounded(self, value: float) -> float:
        """``value`` as a trial gets it: four digits, inside the range."""
        # Four digits keep recipes readable and survive JSON and MLflow's strings unchanged.
        return min(max(float(f"{value:.4g}"), self.low), self.high)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, without the reason."""
        return {"kind": self.kind, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        return f"{self.kind}({self.low:g}, {self.high:g})"


@dataclass(frozen=True)
class LogUniform(Uniform):
    """Uniform in the logarithm, between ``low`` and ``high`` > 0."""

    kind: ClassVar[str] = "log"

    def at(self, u: float) -> float:
        """The value at quantile ``u`` in [0, 1), rounded to four digits."""
        return self.rounded(math.exp(math.log(self.low) + u * math.log(self.high / self.low)))


@dataclass(frozen=True)
class Choice:
    """One of ``values``, each as likely as the others."""

    values: tuple[Any, ...]
    why: str = field(default="", compare=False)

    def at(self, u: float) -> Any:
        """The value at quantile ``u`` in [0, 1)."""
        return self.values[int(u * len(self.values))]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, without the reason."""
        return {"kind": "choice", "values": list(self.values)}

    def __str__(self) -> str:
        return f"[{', '.join('none' if value is None else str(value) for value in self.values)}]"


Domain = Uniform | Choice
Space = Mapping[str, Domain]
Axes = Mapping[str, Any]  # axis path -> the value that a trial has of it
RANGES = {domain.kind: domain for domain in (LogUniform, Uniform)}


def sample(space: Space, *, seed: int, index: int, candidate: str = "") -> Axes:
    """One value per axis, a function of ``(seed, candidate, axis, index)`` only."""
    return {
        path: domain.at(random.Random(f"{seed}/{candidate}/{path}/{index}").random())
        for path, domain in space.items()
    }


def from_dict(plain: Mapping[str, Mapping[str, Any]]) -> dict[str, Domain]:
    """The space of which ``plain`` is the JSON form, without its reasons."""
    return {
        path: Choice(tuple(domain["values"]))
        if domain["kind"] == "choice"
        else RANGES[domain["kind"]](domain["low"], domain["high"])
        for path, domain in plain.items()
    }


def domain_mistakes(path: str, domain: Domain) -> list[str]:
    """Rules that a domain breaks by itself, one line each."""
    if isinstance(domain, Choice):
        mistake = f"{path} needs at least one value; got []. Fix: --set {path}=[A,B]"
        return [] if domain.values else [mistake]
    least, rule = -math.inf, "LOW < HIGH"
    if isinstance(domain, LogUniform):
        least, rule = 0.0, f"0 < {rule}"
    mistake = f"{path} needs {rule}; got {domain}. Fix: --set '{path}={domain.kind}(LOW,HIGH)'"
    return [] if least < domain.low < domain.high < math.inf else [mistake]


_WEIGHT_DECAY: dict[str, tuple[float, float, str]] = {
    "adamw": (1e-3, 0.3, "decoupled decay: 0.05 is common, tenths regularise small data"),
    "sgd": (1e-5, 1e-2, "coupled decay: 5e-4 is common with momentum"),
    "lion": (1e-2, 1.0, "Chen et al. 2023: 3 to 10 times AdamW's"),
}


# Of fine-tuning: how much slower the layers learn that know something already.
_BY_LAYER: dict[str, Domain] = {
    "recipe.layer_decay": Uniform(
        0.65, 1.0, "Bao et al. 2022 and He et al. 2022: 0.65 to 0.85 a layer; 1: all layers alike"
    ),
    "recipe.head_lr_multiplier": LogUniform(
        1.0, 10.0, "the classifier begins anew and may learn faster than the layers below it"
    ),
}


def _learning_rate(family: Family, scratch: bool, optimizer: str) -> LogUniform:
    rates = family.from_scratch if scratch else family.fine_tuned
    low, high, why = rates.low, rates.high, rates.why
    if optimizer == "sgd":
        low, high = (1e-2, 1.0) if scratch else (1e-3, 1e-1)
        why = "SGD with momentum: 0.1 from scratch, 0.001 to 0.06 fine-tuned (Dosovitskiy 2021)"
    elif optimizer == "lion":
        low, high = low / 10, high / 3
        why = "Chen et al. 2023: 3 to 10 times below AdamW's"
    return LogUniform(float(f"{low:.3g}"), float(f"{high:.3g}"), why)


def space_for(family: str, *, weights: str = "none", optimizer: str = "adamw") -> dict[str, Domain]:
    """The default space of a family: the same axes for each, so that none is searched harder.

    ``weights`` other than ``none`` means fine-tuning. A family that is not known gets the generic
    space.
    """
    scratch = weights == "none"
    facts = FAMILIES.get(family, FAMILIES["timm"])
    levels = AUGMENT_LEVELS[0 if scratch else 1 :]
    low, high, why = _WEIGHT_DECAY.get(optimizer, _WEIGHT_DECAY["adamw"])
    usual_warmup = 0.1 if scratch else 0.05  # the middle of its range, the same for all families
    return {
        "recipe.learning_rate": _learning_rate(facts, scratch, optimizer),
        "recipe.weight_decay": LogUniform(low, high, why),
        "recipe.augment": Choice(levels, "how much each architecture wants is what we measure"),
        "recipe.label_smoothing": Uniform(0.0, 0.2, "0.1 is common; more blurs few classes"),
        "recipe.warmup_share": Uniform(
            0.0,
            2 * usual_warmup,
            f"of a full trial; {usual_warmup:.0%} is common "
            + ("from scratch" if scratch else "in fine-tuning"),
        ),
        **({} if scratch else _BY_LAYER),
    }


# Ended trials that TPE wants to see; before, it has nothing to go by and draws Sobol points.
TPE_STARTUP_TRIALS = 10


def _by_epoch(values: Mapping[str | int, float]) -> Mapping[int, float]:
    return {int(epoch): value for epoch, value in values.items()}


@dataclass(frozen=True, kw_only=True)
class Observation(Spec):
    """A trial of the same sweep that was drawn before, and what is known of it by now.

    ``values``: epoch -> what it is judged by on validation, as its metric scores it. ``status`` is
    the ledger's."""

    axes: Axes
    values: Mapping[int, float] = field(metadata={"read": _by_epoch})
    status: str

    @property
    def ended(self) -> bool:
        """Whether nothing more is to come of it."""
        return self.status in ("finished", "pruned", "failed")


@dataclass(frozen=True, kw_only=True)
class WarmStart(Spec):
    """What a search has from the earlier runs ``sources``: ``recipes`` for its first trials, the
    best on record, and ``observations`` that TPE starts with."""

    sources: tuple[str, ...]
    recipes: tuple[Axes, ...]
    observations: tuple[Observation, ...] = ()


def suggest(
    sampler: str,
    space: Space,
    *,
    seed: int,
    candidate: str,
    index: int,
    past: Sequence[Observation] = (),
    startup_trials: int = TPE_STARTUP_TRIALS,
) -> Axes:
    """The searched values of trial ``index``: axis path -> value. Only ``tpe`` reads ``past``, once
    ``startup_trials`` of it have ended."""
    if sampler == "random" or not space:
        return sample(space, seed=seed, index=index, candidate=candidate)
    if sampler == "tpe" and sum(trial.ended for trial in past) >= startup_trials:
        return _tpe(space, past, seed=_seed(seed, candidate, index))
    return _sobol(space, index, seed=_seed(seed, candidate))


def load() -> None:
    """Import what TPE draws with, a second or so, now and not in the middle of a sweep."""
    importlib.import_module("optuna")
    importlib.import_module("scipy.stats.qmc")


def tpe_mistakes(space: Space) -> list[str]:
    """What cannot be drawn once trials run: the place is another then, so paths must be whole."""
    weights = space.get("backbone.weights")
    named = weights.values if isinstance(weights, Choice) else ()
    return [
        f"backbone.weights, searched by tpe, must be {', '.join(NAMED_WEIGHTS)} or absolute paths; "
        f"got {path}. "
        f"Fix: write {Path(path).absolute()}"
        for path in named
        if path not in NAMED_WEIGHTS and not Path(path).is_absolute()
    ]


def _seed(*parts: Any) -> int:
    return int(stable_hash(list(parts))[:8], 16)


def _sobol(space: Space, index: int, *, seed: int) -> Axes:
    # Imported here: scipy.stats takes longer to load than a command's help may take.
    from scipy.stats import qmc

    paths = sorted(space)
    engine = qmc.Sobol(len(paths), scramble=True, rng=seed)
    if index:
        engine.fast_forward(index)
    point = engine.random(1)[0]  # (axes,)
    return {path: space[path].at(float(u)) for path, u in zip(paths, point, strict=True)}


def _tpe(space: Space, past: Sequence[Observation], *, seed: int) -> Axes:
    """A finished trial counts with its best accuracy; a pruned one behind all of those, by how far
    it came and its last accuracy; a failed one last; one that still trains as bad, so that trials
    drawn meanwhile go elsewhere (the constant liar)."""
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=0, multivariate=True, constant_liar=True, seed=seed
        )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    asked = {
        # Places, not values: optuna's values are a few plain types, and True equals 1.
        path: CategoricalDistribution(range(len(domain.values)))
        if isinstance(domain, Choice)
        else FloatDistribution(domain.low, domain.high, log=isinstance(domain, LogUniform))
        for path, domain in sorted(space.items())
    }
    study.add_trials([_observed(trial, space, asked) for trial in past])
    params, axes = study.ask(asked).params, {}
    for path in asked:
        domain, value = space[path], params[path]
        axes[path] = domain.values[value] if isinstance(domain, Choice) else domain.rounded(value)
    return axes


def _observed(trial: Observation, space: Space, asked: Mapping[str, object]) -> Any:
    from optuna.trial import TrialState, create_trial

    values = {epoch: value for epoch, value in trial.values.items() if math.isfinite(value)}
    finished = trial.status == "finished" and bool(values)
    ended = TrialState.COMPLETE if finished else TrialState.PRUNED
    # Of a pruned trial optuna reads the last step; without one it ranks the trial last of all, as
    # a failed one should be: nobody wants that recipe again.
    last = [max(values)] if values and trial.status == "pruned" else []
    params = {path: trial.axes[path] for path in asked}
    for path, domain in space.items():
        if isinstance(domain, Choice):
            params[path] = domain.values.index(params[path])
    return create_trial(
        state=ended if trial.ended else TrialState.RUNNING,
        value=max(values.values()) if finished else None,
        params=params,
        distributions=dict(asked),
        intermediate_values={epoch: values[epoch] for epoch in last},
    )
