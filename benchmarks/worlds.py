"""Synthetic learning curves whose truth is known: what a race of trials chose can be judged.

A trial's validation accuracy after epoch t is the three-parameter power law of Domhan,
Springenberg, Hutter, "Speeding up Automatic Hyperparameter Optimization of Deep Neural Networks by
Extrapolation of Learning Curves", IJCAI 2015 (table 1, pow3; Kadra et al., "Scaling Laws for
Hyperparameter Optimization", NeurIPS 2023, find the same law), moved to begin at chance:

    y(t) = c - (c - chance) (1 + t)^-a + noise

Both parameters come from two hyperparameters, u and v, uniform in [-1, 1] as random search draws
them. u is the logarithm of the learning rate: a low one learns slowly and a high one quickly, so
a = exp(u + a little of its own); the height c falls with the square of the distance from the best
value of either. So curves cross for a reason: fast starters with too high a rate are overtaken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CHANCE = 0.1
HIGHEST = 0.95
PENALTY = 0.3  # of accuracy, at distance 1 from the best value of one hyperparameter
SPEED_SD = 0.3  # of ln a, beyond what the learning rate explains
NOISE_SD = 0.01  # of one epoch's accuracy: 1,500 validation images or so, and the last steps
PACE_SD = 0.3  # of ln(seconds an epoch): trials of a sweep differ, and arrive out of step


@dataclass(frozen=True, kw_only=True)
class World:
    """``best_rate`` is the u of the highest c: at 0 the best learn at a middling speed, below it
    they are late bloomers."""

    best_rate: float


WORLDS: Mapping[str, World] = {
    "crossing": World(best_rate=0.0),
    "late bloomers": World(best_rate=-0.5),
}


@dataclass(frozen=True, kw_only=True)
class Trials:
    """Curves of a sweep: ``truth`` and ``seen`` are (N, epochs), ``pace`` (N,) seconds an epoch."""

    truth: npt.NDArray[np.float64]
    seen: npt.NDArray[np.float64]
    pace: npt.NDArray[np.float64]


def draw(world: World, *, trials: int, epochs: int, seed: int) -> Trials:
    """The same arguments give the same curves."""
    rng = np.random.default_rng(seed)
    u, v = rng.uniform(-1, 1, (2, trials, 1))
    speed = np.exp(u + rng.normal(0, SPEED_SD, u.shape))
    height = HIGHEST - PENALTY * ((u - world.best_rate) ** 2 + v**2)
    truth = height - (height - CHANCE) * (1 + np.arange(1, epochs + 1)) ** -speed
    seen = np.clip(truth + rng.normal(0, NOISE_SD, truth.shape), 0, 1)
    return Trials(truth=truth, seen=seen, pace=np.exp(rng.normal(0, PACE_SD, trials)))
