"""Oracle worlds: synthetic learning results in which a claim's true effect is known.

Only the trainer is replaced. The trials are those of the claim's own design, what they "report"
is written as ledger records, and the verdict is reached from these as from any other ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from orchestrator.claims.design import ClaimOptions, facts_of, run_spec
from orchestrator.claims.experiments import CLAIMS
from orchestrator.ledger.state import Record, State, replay
from orchestrator.spec.run import RunSpec
from trainables.config import AUGMENT_LEVELS

OPTIONS = ClaimOptions(dataset="cifar10", preset="smoke")
TOKENS = {16: 5, 8: 17, 4: 65}
Rng = np.random.Generator
Curve = dict[str, np.ndarray]  # a metric by epoch, (E,)


def spec_of(name: str, **options: Any) -> RunSpec:
    """The run that tests a claim on a CIFAR-10 that nobody reads."""
    return run_spec(CLAIMS[name], replace(OPTIONS, **options), facts_of(OPTIONS))


@dataclass(frozen=True)
class World:
    """A claim's design with the records that do not depend on what the trials learn."""

    name: str
    spec: RunSpec
    header: Record
    trials: tuple[tuple[Record, dict[str, Any], int], ...]  # submission, assignment, seed's place

    @classmethod
    def of(cls, name: str, **options: Any) -> World:
        spec = spec_of(name, **options)
        info = {"name": "cifar10", "class_names": list("abcdefghij"), "height": 32, "width": 32,
                "counts": {"train": 45_000, "val": 1000}}  # fmt: skip
        header = {
            "run": spec.name, "spec": spec.as_dict(), "spec_hash": spec.hash(), "environment": {},
            "datasets": {sweep.family: info for sweep in spec.sweeps},
        }  # fmt: skip
        made, seeds = [], []
        for sweep in spec.sweeps:
            for index in range(sweep.trials):
                detail = sweep.submission(index)
                seeds.append(detail["assignment"]["seed"])
                record = {"time": 1.0, "event": "submitted", "trial": sweep.trial_name(index),
                          "family": sweep.family, "stage": "search", "detail": detail}  # fmt: skip
                made.append((record, detail["assignment"]))
        order = list(dict.fromkeys(seeds))
        trials = tuple((r, a, order.index(s)) for (r, a), s in zip(made, seeds, strict=True))
        created = {"time": 0.0, "event": "created", "detail": header}
        return cls(name, replace(spec), created, trials)

    def records(
        self, rng: Rng, *, effect: float, noise: float, fails: Callable[[str], bool] | None = None
    ) -> Iterator[Record]:
        """What the ledger would hold after training in a world with this ``effect`` (in the unit
        of the claim) and this much ``noise`` between seeds."""
        yield self.header
        learn = LEARNERS[self.name](rng, effect, noise)
        for submitted, assignment, seed in self.trials:
            yield submitted
            name = submitted["trial"]
            if fails and fails(name):
                yield {"time": 2.0, "event": "failed", "trial": name, "reason": "diverged: nan"}
                continue
            family = submitted["family"]
            detail = {"model": f"test_{family}", "train_images": 2000, "patch": 4,
                      "dataset_hash": str(seed)}  # fmt: skip
            yield {"time": 2.0, "event": "started", "trial": name, "attempt": 1, "detail": detail}
            curve = learn(family, assignment, seed)
            for epoch in range(1, assignment["epochs"] + 1):
                metrics = {metric: float(values[epoch - 1]) for metric, values in curve.items()}
                yield {"time": 3.0, "event": "reported", "trial": name, "epoch": epoch,
                       "metrics": metrics}  # fmt: skip
            yield {"time": 4.0, "event": "finished", "trial": name}
        yield {"time": 5.0, "event": "closed"}

    def state(self, rng: Rng, **world: Any) -> State:
        """The ledger's state at the end."""
        return replay(self.records(rng, **world))


Learner = Callable[[str, Mapping[str, Any], int], Curve]


def _flat(epochs: int, top: float) -> Curve:
    return {"val_top1": np.full(epochs, top)}


def patches(rng: Rng, effect: float, noise: float) -> Learner:
    """``effect`` is that at equal FLOPs; at equal epochs patch 16 lies 10 points lower still."""

    def learn(family: str, assignment: Mapping[str, Any], seed: int) -> Curve:
        patch, upsampled = (assignment["backbone"][key] for key in ("patch", "image_size"))
        tokens = TOKENS[4 if upsampled else patch]
        epochs = np.arange(1, assignment["epochs"] + 1)
        top = 0.4 + rng.normal(0, noise) + (effect if patch < 16 else 0.0)
        rise = (epochs - epochs[-1]) * (0.1 / epochs[-1]) if tokens == 5 else 0.0 * epochs
        return {"val_top1": top + rise, "flops": epochs * tokens * 1e9}

    return learn


def rates(rng: Rng, effect: float, noise: float) -> Learner:
    """``effect`` decades under SGD, clearly more under AdamW: SGD decides."""
    middle = {"adamw": -1.8, "sgd": -1.0}
    moved: dict[Any, float] = {}

    def learn(family: str, assignment: Mapping[str, Any], seed: int) -> Curve:
        recipe = assignment["recipe"]
        optimizer = recipe["optimizer"]
        if (key := (family, optimizer, seed)) not in moved:
            lower = effect + (0.45 if optimizer == "adamw" else 0.0) if family == "vit" else 0.0
            moved[key] = middle[optimizer] - lower + rng.normal(0, noise)
        off = np.log10(recipe["learning_rate"]) - moved[key]
        top = max(0.1, 0.5 - 0.2 * off**2) + rng.normal(0, 0.008)
        return _flat(assignment["epochs"], top)

    return learn


def shifts(rng: Rng, effect: float, noise: float) -> Learner:
    def learn(family: str, assignment: Mapping[str, Any], seed: int) -> Curve:
        epochs = np.arange(1, assignment["epochs"] + 1)
        accuracy = 0.5 - 0.3 / epochs + rng.normal(0, 0.01)
        kept = 0.7 + (effect if family == "resnet" else 0.0) + rng.normal(0, noise)
        offsets = assignment["shift_offsets_px"]
        found = {f"shift_consistency_{o}px": np.full(len(epochs), kept) for o in offsets}
        return {"val_top1": accuracy, **found}

    return learn


def accuracy_of(log_odds: float, chance: float = 0.1) -> float:
    """Of a model that knows a share of the images, by log10 of its odds, and guesses the others."""
    return float(chance + (1 - chance) / (1 + 10 ** -np.asarray(log_odds)))


def strengths(rng: Rng, effect: float, noise: float) -> Learner:
    def learn(family: str, assignment: Mapping[str, Any], seed: int) -> Curve:
        level = AUGMENT_LEVELS.index(assignment["recipe"]["augment"])
        gain = -0.02 + (effect if family == "vit" else 0.0)  # augmentation by itself hurts
        top = 0.5 + gain * level / 3 + rng.normal(0, noise)
        return _flat(assignment["epochs"], top)

    return learn


def fractions(rng: Rng, effect: float, noise: float) -> Learner:
    """All in log10 of the odds of having learned, beyond what guessing among ten classes gives."""

    def learn(family: str, assignment: Mapping[str, Any], seed: int) -> Curve:
        decades = np.log10(assignment["data"]["fraction"])
        odds = 0.3 + 0.5 * decades + rng.normal(0, noise)
        odds += effect * decades if family == "vit" else 0.0
        return _flat(assignment["epochs"], accuracy_of(odds))

    return learn


def stems(rng: Rng, effect: float, noise: float) -> Learner:
    """Times to every accuracy are the hybrid's times 10 to the ``effect``, in seconds as well."""

    def learn(family: str, assignment: Mapping[str, Any], seed: int) -> Curve:
        epochs = np.arange(1, assignment["epochs"] + 1)
        slow = 10 ** (effect if family == "vit" else 0.0) * 10 ** rng.normal(0, noise)
        accuracy = 0.1 + 0.9 * np.minimum(1.0, epochs / (12.0 * slow))
        return {"val_top1": accuracy, "train_seconds": np.ones(len(epochs))}

    return learn


LEARNERS: dict[str, Callable[[Rng, float, float], Learner]] = {
    "small-patches-help": patches,
    "lr-lower-for-vit": rates,
    "cnn-more-shift-invariant": shifts,
    "augmentation-helps-vit-more": strengths,
    "vit-needs-more-data": fractions,
    "conv-stem-converges-faster": stems,
}
