"""Learning curves whose truth is known: what a simulated run chose and said can be judged.

A world answers two questions: what does the training of an assignment report, epoch by epoch, and
which test images does its model get right. A world of one's own is a class with these two methods.

Accuracy after epoch t is the three-parameter power law of Domhan, Springenberg, Hutter, "Speeding
up Automatic Hyperparameter Optimization of Deep Neural Networks by Extrapolation of Learning
Curves", IJCAI 2015 (table 1, pow3; Kadra et al., "Scaling Laws for Hyperparameter Optimization",
NeurIPS 2023, find the same law), moved to begin at chance:

    y(t) = c - (c - chance) (1 + t)^-a

Both parameters come from two hyperparameters, u and v in [-1, 1], which random search draws
uniformly: u is the place of the learning rate in its range, v that of the weight decay. A low rate
learns slowly and a high one quickly, so a = exp(u + a little of the recipe's own); the height c
falls with the square of the distance from the best value of either. So curves cross for a reason:
fast starters with too high a rate are overtaken.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from orchestrator.spec.limits import ResourceSpec, SchedulerSpec
from orchestrator.spec.run import RunSpec, SweepSpec
from orchestrator.spec.spaces import LogUniform
from trainables.backbones.families import FAMILIES
from trainables.config import Assignment, BackboneSpec, DatasetFacts, stable_hash

CHANCE = 0.1
HIGHEST = 0.95
PENALTY = 0.3  # of accuracy, at distance 1 from the best value of one hyperparameter
SPEED_SD = 0.3  # of ln a, beyond what the learning rate explains
SEED_SD = 0.005  # of the accuracy at full length, between seeds of one recipe
PACE_SD = 0.3  # of ln(seconds an epoch): trials of a sweep differ, and arrive out of step
# Of the noise of a validation accuracy: what all models share on these images, what one model has
# in all its epochs, and the rest. Of a test image's difficulty: what all models find hard, what
# one candidate does, and the rest.
NOISE_SHARES = (0.4, 0.35, 0.25)
IMAGE_SHARES = (0.5, 0.1, 0.4)
IMAGES_PER_EPOCH = 5_000
SPACE: Mapping[str, LogUniform] = {
    "recipe.learning_rate": LogUniform(1e-5, 1e-1),
    "recipe.weight_decay": LogUniform(1e-4, 1.0),
}


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a training reports: ``metrics`` and ``seconds`` of each epoch. One that is shorter than
    its assignment ends there: it has failed by ``failure``, or is unknown beyond. ``val_images``:
    how many a validation accuracy is over, drawn by the assignment's ``val_seed``."""

    metrics: tuple[Mapping[str, float], ...]
    seconds: tuple[float, ...]
    failure: str | None = None
    val_images: int | None = None


class World(Protocol):
    """Where simulated trainings come from. The same assignment gives the same answer, whatever its
    attempt."""

    def train(self, assignment: Assignment) -> Training:
        """The whole training, from epoch 1 to the assignment's last."""

    def correct(self, assignment: Assignment) -> npt.NDArray[np.bool_]:
        """Which test images the model at full length gets right: (N,)."""


@dataclass(frozen=True, kw_only=True)
class SyntheticWorld:
    """Curves by the law above. All that is given by candidate is 0 or 1 where it is not given, and
    a candidate is its timm model or else its family.

    ``best_rate`` is the u of the highest c: at 0 the best learn at a middling speed, below it they
    are late bloomers. ``effect`` is added to a candidate's accuracies, ``pace`` multiplies its
    seconds and FLOPs. ``val_images`` make the noise of validation, binomial. A training of a
    candidate with ``chance_epochs`` stays near chance for up to so many at first; the share
    ``diverging`` of all seeds fails on the way.
    """

    seed: int = 0
    best_rate: float = 0.0
    effect: Mapping[str, float] = field(default_factory=dict)
    pace: Mapping[str, float] = field(default_factory=dict)
    chance_epochs: Mapping[str, int] = field(default_factory=dict)
    diverging: float = 0.0
    val_images: int = 5_000
    test_images: int = 2_000

    def images(self, candidates: Iterable[str]) -> dict[str, DatasetFacts]:
        """By candidate, what a run's header has of the world's images, which have no pixels."""
        classes = tuple(map(str, range(round(1 / CHANCE))))
        counts = {"val": self.val_images, "test": self.test_images}
        facts = DatasetFacts(height=32, width=32, class_names=classes, counts=counts)
        return dict.fromkeys(candidates, facts)

    def accuracy(self, assignment: Assignment, epochs: int | None = None) -> float:
        """The truth: expected accuracy after ``epochs`` (at full length), over seeds and images."""
        return float(self._curve(assignment)[(epochs or assignment.epochs) - 1])

    def train(self, assignment: Assignment) -> Training:
        """See :class:`World`."""
        candidate, epochs = _candidate(assignment), assignment.epochs
        rng = self._rng("training", assignment.trial_id, assignment.seed)
        truth = np.clip(self._curve(assignment) + self._seed_effect(assignment), 0, 1)
        noise = np.sqrt(truth * (1 - truth) / self.val_images) * self._noise(assignment, rng)
        top1 = np.clip(truth + noise, 0, 1)  # (epochs,)
        pace = self.pace.get(candidate, 1.0) * math.exp(rng.normal(0, PACE_SD))
        flops = 1e9 * IMAGES_PER_EPOCH * self.pace.get(candidate, 1.0)
        length, failure = epochs, None
        if rng.random() < self.diverging:
            length, failure = int(rng.integers(epochs)), "diverged: the loss is not a number"
        metrics = tuple(
            {
                "val_top1": round(float(top1[epoch]), 6),
                "train_loss": round(2.4 * (1 - float(top1[epoch])), 6),
                "images_seen": float(IMAGES_PER_EPOCH * (epoch + 1)),
                "train_seconds": round(0.9 * pace, 6),
                "eval_seconds": round(0.1 * pace, 6),
                "flops": flops * (epoch + 1),
            }
            for epoch in range(length)
        )
        seconds = (pace,) * epochs
        return Training(
            metrics=metrics, seconds=seconds, failure=failure, val_images=self.val_images
        )

    def correct(self, assignment: Assignment) -> npt.NDArray[np.bool_]:
        """See :class:`World`: a model of accuracy p gets right the images whose difficulty for it,
        a standard normal, lies below the p-quantile."""
        whose = ((), (_candidate(assignment),), (assignment.trial_id, assignment.seed))
        difficulty = np.zeros(self.test_images)
        for share, owner in zip(IMAGE_SHARES, whose, strict=True):
            own = self._rng("image", *owner).standard_normal(self.test_images)
            difficulty += math.sqrt(share) * own
        top1 = self.accuracy(assignment) + self._seed_effect(assignment)
        return np.asarray(difficulty < NormalDist().inv_cdf(min(max(top1, 1e-6), 1 - 1e-6)))

    def _curve(self, assignment: Assignment) -> npt.NDArray[np.float64]:
        """Expected accuracy after each epoch: (epochs,)."""
        candidate, recipe = _candidate(assignment), assignment.recipe
        u = _place(SPACE["recipe.learning_rate"], recipe.learning_rate)
        v = _place(SPACE["recipe.weight_decay"], recipe.weight_decay)
        own = self._rng("recipe", candidate, recipe.learning_rate, recipe.weight_decay)
        speed = math.exp(u + own.normal(0, SPEED_SD))
        waits = int(own.integers(self.chance_epochs.get(candidate, 0) + 1))
        height = HIGHEST - PENALTY * ((u - self.best_rate) ** 2 + v**2)
        epochs = np.maximum(np.arange(1, assignment.epochs + 1) - waits, 0)
        climbed = height - (height - CHANCE) * (1 + epochs) ** -speed
        return np.clip(climbed + self.effect.get(candidate, 0.0), 0, 1)

    def _seed_effect(self, assignment: Assignment) -> float:
        return float(self._rng("seed", assignment.trial_id, assignment.seed).normal(0, SEED_SD))

    def _noise(self, assignment: Assignment, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        """Standard normal at each epoch, shared as ``NOISE_SHARES`` says: (epochs,)."""
        split, trial, epoch = (math.sqrt(share) for share in NOISE_SHARES)
        shared = self._rng("val", assignment.data.val_seed).standard_normal()
        own = rng.standard_normal(1 + assignment.epochs)
        return np.asarray(split * shared + trial * own[0] + epoch * own[1:])

    def _rng(self, *parts: Any) -> np.random.Generator:
        return np.random.default_rng(int(stable_hash([self.seed, *parts]), 16))


def _candidate(assignment: Assignment) -> str:
    return assignment.backbone.model or assignment.backbone.family


def _place(domain: LogUniform, value: float) -> float:
    """Where in its range ``value`` lies, in the logarithm: -1 at the low end, 1 at the high one."""
    return 2 * math.log(value / domain.low) / math.log(domain.high / domain.low) - 1


A, B = "resnet", "vit"  # the candidates of the worlds below


def tournament(
    *,
    candidates: tuple[str, ...] = (A, B),
    trials: int = 8,
    scheduler: SchedulerSpec | None = None,
    searches: int = 3,
    final_seeds: int = 1,
    seed: int = 0,
    resources: ResourceSpec | None = None,
) -> RunSpec:
    """A run over ``SPACE`` as ``orchestrator tournament`` would start it. A candidate that is no
    family is a timm model, be there such a one or not."""
    sweeps = tuple(
        SweepSpec(
            backbone=(
                BackboneSpec(family=name)
                if name in FAMILIES
                else BackboneSpec(family="timm", model=name)
            ),
            label=None if name in FAMILIES else name,
            space=SPACE,
            scheduler=scheduler or SchedulerSpec(),
            resources=resources or ResourceSpec(),
            trials=trials,
            seed=seed,
        )
        for name in candidates
    )
    return RunSpec(name="simulated", sweeps=sweeps, searches=searches, final_seeds=final_seeds)


WORLDS: Mapping[str, SyntheticWorld] = {
    "null": SyntheticWorld(),
    "unequal cost": SyntheticWorld(pace={B: 3.0}),
    "noisy validation": SyntheticWorld(val_images=200),
    "diverging seeds": SyntheticWorld(diverging=0.15),
    "chance at first": SyntheticWorld(chance_epochs={A: 3, B: 3}),
    "late bloomers": SyntheticWorld(best_rate=-0.5),
    "effect of 1 point": SyntheticWorld(effect={A: 0.01}),
    "effect of 3 points": SyntheticWorld(effect={A: 0.03}),
}
