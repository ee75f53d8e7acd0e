"""python -m benchmarks.label_noise [--digits] [--data FILE] [--weights FILE] [--quick]

Of the labels that are suspected, how many are wrong, and of the wrong ones, how many are suspected?

5,000 CIFAR-10 training images, of which 5 % get another label: ``uniform``, any other class alike,
or ``confused``, the class that the probe on clean labels most often takes them for. Predictions are
out of fold: a linear probe (the screen's) on frozen features of tf_efficientnet_lite1 with ImageNet
weights at 240 px, five folds, each trained on the noisy labels of the other four; the strength of
its penalty is chosen on noisy labels too. In a run, finals predict val and test instead, which they
were not trained on; the code that suspects labels is the same
(``orchestrator.compare.confident_learning``). With ``--digits``: scikit-learn's 1,797 digits, whose
pixels are the features; a probe of them is right far more often, and so is what it suspects.

By rule: ``confident_joint`` is what the product lists. ``noise_rate`` lists as many as the joint
estimates, by margin for each pair of classes (the paper's method 4, cleanlab's default).
``not_predicted`` is every image whose label is not the most probable class, which needs no theory.
``first_100`` is the precision of the first hundred of the product's list (all of a shorter one).
Labels that are wrong in CIFAR-10 itself count as false alarms, so precision is a lower bound.
``noise_share`` is the share of wrong labels that the joint estimates; ``suggested`` the share of
suspected flips whose suggested class is the label that they had.

``weaker`` is the same of uniform flips where the probe sees some of the features only, drawn at
random: how right models must be for what they suspect, which the bar below which the product lists
nothing (``suspects.LEAST_RIGHT``) rests on.

Means over seeds (which images are flipped, and the folds) with Student's 95 % intervals. The result
goes to benchmarks/results/label-noise.json, or label-noise-digits.json.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import NATURAL_IMAGES, RESULTS, ROOT, arguments, finish, pictures
from orchestrator.compare.confident_learning import LabelErrors, label_errors
from orchestrator.compare.statistics import mean_interval
from trainables.config import BackboneSpec, DataSpec
from trainables.data.build import prepare
from trainables.evaluate.frozen import FrozenBackbone, frozen_features
from trainables.evaluate.linear import fit_linear_probe, judging_rows

WEIGHTS = ROOT.parent / "shared" / "weights" / "tf_efficientnet_lite1.safetensors"
IMAGES, SHARE, FOLDS, SEEDS = 5_000, 0.05, 5, 5
QUICK_IMAGES, QUICK_SEEDS = 300, 2
FEATURES, DIGITS_FEATURES = (8, 16, 32, 64, 128, 256), (3, 4, 6, 8, 12, 20)
CLASSES = 10
FILE, DIGITS_FILE = "label-noise.json", "label-noise-digits.json"

Labels = npt.NDArray[np.int64]
Matrix = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]


def features_of(data: Path, weights: str, folder: Path, images: int) -> tuple[Matrix, Labels]:
    """Features (N, D) and labels (N,) of as many training images."""
    spec = DataSpec(source=str(data), folder=str(folder))
    store = prepare(spec)
    rows = np.sort(np.random.default_rng(0).permutation(store.info.counts["train"])[:images])
    backbone = BackboneSpec(
        family="timm", model="tf_efficientnet_lite1", weights=weights, image_size=240
    )
    frozen = FrozenBackbone(backbone, store, "cpu")
    made = frozen_features(frozen, "train", rows, frozen.identity())
    return made.values, np.asarray(store.labels("train")[rows])


def digits_of(images: int | None) -> tuple[Matrix, Labels]:
    """Pixels (N, 64) and labels (N,) of the first images."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.data[:images].astype(np.float32), digits.target[:images].astype(np.int64)


def out_of_fold(features: Matrix, labels: Labels, seed: int) -> Matrix:
    """Probabilities (N, classes), each image's by a probe that was trained without it."""
    order = np.random.default_rng(seed).permutation(len(labels))
    probabilities = np.zeros((len(labels), CLASSES), np.float32)
    for fold in np.array_split(order, FOLDS):
        others = np.setdiff1d(order, fold)
        judging = judging_rows(np.random.default_rng(seed).permutation(len(others)))
        probe = fit_linear_probe(features[others], labels[others], classes=CLASSES, judging=judging)
        probabilities[fold] = probe_probabilities(probe, features[fold])
    return probabilities


def probe_probabilities(probe: Any, features: Matrix) -> Matrix:
    """(N, classes) of (N, D)."""
    import torch

    logits = probe.logits(torch.from_numpy(features).double())
    return np.asarray(logits.softmax(1).float().numpy())


def flipped(labels: Labels, towards: Labels, rng: np.random.Generator) -> tuple[Labels, Flags]:
    """Labels (N,) of which a share is ``towards`` (N,) instead, and which ones."""
    flips = np.zeros(len(labels), bool)
    flips[rng.permutation(len(labels))[: round(SHARE * len(labels))]] = True
    return np.where(flips, towards, labels), flips


def by_noise_rate(labels: Labels, probabilities: Matrix, errors: LabelErrors) -> Flags:
    """As many of each pair of classes as the joint estimates, those with the largest margin."""
    listed = np.zeros(len(labels), bool)
    for given in range(CLASSES):
        rows = np.flatnonzero(labels == given)
        for true in range(CLASSES):
            number = round(float(errors.joint[given, true]) * len(labels))
            if given != true and number:
                margin = probabilities[rows, true] - probabilities[rows, given]
                listed[rows[np.argsort(-margin)[:number]]] = True
    return listed


def shares(listed: Flags, flips: Flags) -> dict[str, float]:
    """Precision, recall, and how many are listed."""
    hits = float((listed & flips).sum())
    return {
        "precision": hits / max(1, int(listed.sum())),
        "recall": hits / int(flips.sum()),
        "listed": float(listed.sum()),
    }


def one_seed(features: Matrix, labels: Labels, towards: Labels, seed: int) -> dict[str, Any]:
    """What is suspected of one draw of flips."""
    noisy, flips = flipped(labels, towards, np.random.default_rng(1000 + seed))
    probabilities = out_of_fold(features, noisy, seed)
    errors = label_errors(noisy, probabilities)
    rows = np.arange(len(noisy))
    margin = probabilities[rows, errors.suggested] - probabilities[rows, noisy]
    order = np.argsort(-np.where(errors.suspected, margin, -1.0))
    first = order[: min(100, int(errors.suspected.sum()))]
    both = errors.suspected & flips
    return {
        "rules": {
            "confident_joint": shares(errors.suspected, flips),
            "noise_rate": shares(by_noise_rate(noisy, probabilities, errors), flips),
            "not_predicted": shares(probabilities.argmax(1) != noisy, flips),
        },
        "first_100": float(flips[first].mean()),
        "suggested": float((errors.suggested[both] == labels[both]).mean()),
        "noise_share": errors.noise_share,
        "accuracy_on_clean_labels": float((probabilities.argmax(1) == labels).mean()),
    }


def weaker(features: Matrix, labels: Labels, numbers: Sequence[int], seeds: int) -> list[Any]:
    """What is suspected of uniform flips by probes of so many features, each seed's drawn anew."""
    rows = []
    for number in numbers:
        runs = []
        for seed in range(seeds):
            rng = np.random.default_rng(2000 + seed)
            columns = rng.permutation(features.shape[1])[:number]
            towards = (labels + rng.integers(1, CLASSES, len(labels))) % CLASSES
            runs.append(one_seed(features[:, columns], labels, towards, seed))
        rows.append({"features": number, **over_seeds(runs)})
        right, first = (rows[-1][key]["mean"] for key in ("accuracy_on_clean_labels", "first_100"))
        print(f"{number} features: right in {right:.3f}, first 100 {first:.3f}", flush=True)
    return rows


def over_seeds(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Each figure's mean over seeds with its interval."""
    first = runs[0]
    return {
        name: (
            over_seeds([run[name] for run in runs])
            if isinstance(value, dict)
            else asdict(mean_interval([run[name] for run in runs]))
        )
        for name, value in first.items()
    }


def main() -> None:
    parser = arguments(__doc__, FILE)
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="of tf_efficientnet_lite1")
    parser.add_argument("--digits", action="store_true", help="scikit-learn's digits instead")
    chosen = parser.parse_args()
    images, seeds = (QUICK_IMAGES, QUICK_SEEDS) if chosen.quick else (IMAGES, SEEDS)
    if chosen.digits:
        features, labels = digits_of(images if chosen.quick else None)
        facts = {"data": "digits", "features": "pixels"}
        if chosen.out == RESULTS / FILE:
            chosen.out = RESULTS / DIGITS_FILE
    else:
        weights = str(chosen.weights) if chosen.weights.is_file() and not chosen.quick else "none"
        with tempfile.TemporaryDirectory() as folder:
            data = pictures(chosen.data, Path(folder), quick=chosen.quick)
            features, labels = features_of(data, weights, Path(folder), images)
        facts = {
            "data": "cifar10-train" if data == NATURAL_IMAGES else data.name,
            "backbone": "tf_efficientnet_lite1, 240 px",
            "weights": "none" if weights == "none" else "ImageNet-1k",
        }
    clean = out_of_fold(features, labels, seed=0)
    others = np.where(np.arange(CLASSES) == labels[:, None], -1.0, clean)
    rng = np.random.default_rng(7)
    kinds: dict[str, Callable[[], Labels]] = {
        "uniform": lambda: (labels + rng.integers(1, CLASSES, len(labels))) % CLASSES,
        "confused": lambda: others.argmax(1),
    }
    results = {}
    for kind, towards in kinds.items():
        runs = [one_seed(features, labels, towards(), seed) for seed in range(seeds)]
        results[kind] = over_seeds(runs)
        listed = results[kind]["rules"]["confident_joint"]
        print(kind, listed["precision"]["mean"], listed["recall"]["mean"], flush=True)
    numbers = DIGITS_FEATURES if chosen.digits else FEATURES
    weak = weaker(features, labels, numbers[:2] if chosen.quick else numbers, seeds)
    summary = {
        f"{kind}_{what}": result["rules"]["confident_joint"][what]["mean"]
        for kind, result in results.items()
        for what in ("precision", "recall")
    }
    finish(
        {
            "images": len(labels), "flipped_share": SHARE, "seeds": seeds, "folds": FOLDS,
            **facts,
            "accuracy_of_the_probe_without_noise": float((clean.argmax(1) == labels).mean()),
            "results": results,
            "weaker": weak,
        },
        chosen.out, summary,
    )  # fmt: skip


if __name__ == "__main__":
    main()
