"""python examples/own_world.py

A world of your own for simulated runs is a class with two methods.

Here the better family is noisy: its seeds differ by 5 points. Does a tournament still find it?
Nothing is trained; ten tournaments take seconds. The worlds that come with the product are in
orchestrator/simulate/worlds.py, and ``python -m benchmarks.oracle`` judges every sentence in them.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import numpy as np

from orchestrator.compare.comparison import compare
from orchestrator.simulate.run import simulate
from orchestrator.simulate.worlds import Training, tournament
from trainables.config import Assignment


class NoisySeeds:
    """``vit`` is 2 points better on average; its seeds scatter."""

    def train(self, assignment: Assignment) -> Training:
        """Half of what is missing is learned in each epoch, at a second an epoch."""
        top1 = self._top1(assignment)
        curve = [top1 * (1 - 0.5**epoch) for epoch in range(1, assignment.epochs + 1)]
        metrics = tuple({"val_top1": value, "train_seconds": 1.0} for value in curve)
        return Training(metrics=metrics, seconds=(1.0,) * assignment.epochs)

    def correct(self, assignment: Assignment) -> np.ndarray:
        """1,000 test images, each right with the model's accuracy."""
        generator = np.random.default_rng(assignment.seed)
        return generator.random(1_000) < self._top1(assignment)

    def _top1(self, assignment: Assignment) -> float:
        vit = assignment.backbone.family == "vit"
        chance = random.Random(f"{assignment.trial_id}/{assignment.seed}")
        return 0.80 + 0.02 * vit + chance.gauss(0, 0.05 if vit else 0.005)


def main() -> None:
    for seed in range(10):
        with tempfile.TemporaryDirectory() as folder:
            run = simulate(tournament(seed=seed), NoisySeeds(), Path(folder), slots=2)
            # The comparison reads which images the finals got right from the run's folder.
            print(compare([run.data], forests=False).answer)


if __name__ == "__main__":
    main()
