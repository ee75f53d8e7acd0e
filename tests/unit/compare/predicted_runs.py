"""Runs whose finals have kept their predictions, of real images in a real store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.unit.compare.compare_runs import RunFolder
from trainables.config import DataSpec
from trainables.data.build import prepare
from trainables.data.store import ImageStore
from trainables.evaluate.predictions import Predictions, write_predictions
from trainables.storage.trial_files import predictions_file

Array = np.ndarray


def digits(folder: Path) -> tuple[DataSpec, ImageStore]:
    """scikit-learn's digits in a store below ``folder``."""
    data = DataSpec(folder=str(folder))
    return data, prepare(data)


def photographs(folder: Path, *, classes: int = 10, each: int = 40) -> tuple[DataSpec, ImageStore]:
    """Large pictures that compress badly, in an image folder: coarse noise under fine noise."""
    rng = np.random.default_rng(0)
    for number in range(classes):
        place = folder / "pictures" / f"kind of thing {number}"
        place.mkdir(parents=True)
        for index in range(each):
            coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((128, 128), Image.Resampling.BICUBIC), int)
            noisy = np.clip(smooth + rng.normal(0, 25, smooth.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(place / f"picture number {index}.jpg", quality=90)
    data = DataSpec(
        source=str(folder / "pictures"),
        folder=str(folder / "store"),
        test_fraction=0.4,
        short_side=128,
    )
    return data, prepare(data)


def drawn(
    labels: Array, rng: np.random.Generator, *, skill: float, weak: int | None = None,
    seen_as: dict[int, int] | None = None, num_classes: int = 10,
) -> Array:  # fmt: skip
    """Probabilities (N, classes) float32 of a model with more or less ``skill``, less on the class
    ``weak``. Images at the rows ``seen_as`` look to every model like these other classes."""
    truth = labels.copy()
    for row, other in (seen_as or {}).items():
        truth[row] = other
    logits = rng.normal(size=(len(labels), num_classes))
    strength = np.where(truth == weak, 0.1 * skill, skill)
    logits[np.arange(len(labels)), truth] += strength
    whole = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(whole / whole.sum(1, keepdims=True), np.float32)


def add_final(
    run: RunFolder, family: str, store: ImageStore, probabilities: dict[str, Array], *,
    seed: int = 0, search: int = 1,
) -> str:  # fmt: skip
    """A finished final that has kept its ``probabilities`` (N, classes) by split; its name."""
    labels = store.labels("test")
    correct = probabilities["test"].argmax(1) == labels
    trial = run.final(family, correct, seed=seed, search=search)
    for split, values in probabilities.items():
        write_predictions(
            predictions_file(run.folder / "finals" / trial, split),
            Predictions(
                split=split, labels=store.labels(split), probabilities=values,
                digests=store.digests(split),
            ),
        )  # fmt: skip
    return trial


WRONG_ROWS = {"test": {3: 9, 30: 1, 71: 7}, "val": {5: 8, 40: 2}}  # and what they look like


def looks_like(store: ImageStore, split: str) -> dict[int, int]:
    """Which rows' labels are wrong, and what all models see there: never the label."""
    labels = store.labels(split)
    return {
        row: (other if labels[row] != other else (other + 1) % 10)
        for row, other in WRONG_ROWS[split].items()
    }


def predicted_run(
    folder: Path, families: tuple[str, ...] = ("resnet", "vit"), *, searches: int = 3,
    seeds: int = 1, seed: int = 0,
) -> Path:  # fmt: skip
    """A tournament on digits: the first candidate is weak on class 8, and at ``WRONG_ROWS`` all see
    another class than the label."""
    data, store = digits(folder / "store")
    run = RunFolder(folder / "run", families, dataset=store.info.as_dict(), data=data)
    rng = np.random.default_rng(seed)
    for place, family in enumerate(families):
        for search in range(1, searches + 1):
            for number in range(seeds):
                probabilities = {
                    split: drawn(
                        store.labels(split), rng, skill=7.0, weak=8 if place == 0 else None,
                        seen_as=looks_like(store, split),
                    )
                    for split in ("test", "val")
                }  # fmt: skip
                add_final(run, family, store, probabilities, seed=number, search=search)
    return run.close()


def gallery_run(folder: Path) -> Path:
    """A tournament whose gallery is as full as ten classes make it: many mistakes of four
    candidates on photographs."""
    data, store = photographs(folder)
    families = ("resnet", "vit", "hybrid", "convnext")
    run = RunFolder(folder / "run", families, dataset=store.info.as_dict(), data=data)
    rng = np.random.default_rng(0)
    for family in families:
        for search in (1, 2, 3):
            splits = {s: drawn(store.labels(s), rng, skill=0.7) for s in ("test", "val")}
            add_final(run, family, store, splits, search=search)
    return run.close()
