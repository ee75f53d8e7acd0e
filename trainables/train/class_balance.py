"""Rare classes made to count: weights of the loss by class, and epochs that draw classes alike.

Both leave evaluation as it is. They are two corrections of one imbalance: weights are those of the
images as the sampler draws them, so that together they do not correct twice.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from trainables.config import Recipe
from trainables.data.store import Labels, Rows

KEY = 2  # keeps the draws of an epoch's images apart from those of their order and their mixing


def class_weights(recipe: Recipe, labels: Labels, classes: int) -> Tensor | None:
    """By class, what an image of it counts in the loss, (classes,) float32, of training images of
    ``labels`` (N,); ``None`` where all count alike. The mean over the images is 1, so the learning
    rate means what it meant; a class without an image has 0.

    ``balanced`` is N / (classes * n) for a class of n images, as scikit-learn's: every class has
    the same part in the loss. ``effective`` is the inverse of the effective number of images,
    (1 - beta^n) / (1 - beta) with beta = (M - 1) / M (Cui et al. 2019, "Class-balanced loss based
    on effective number of samples", section 3): n of a rare class, at most M of a common one. M is
    the mean number of images a class: the paper leaves it open and tries 10 to 10,000.
    """
    if recipe.class_weights == "none" or recipe.sampler == "balanced":
        return None
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    present = counts > 0
    numbers = counts[present]
    if recipe.class_weights == "effective":
        mean = numbers.mean()
        # One image a class: beta is 0, and each class has an effective number of 1.
        numbers = -mean * np.expm1(numbers * math.log1p(-1 / mean)) if mean > 1 else numbers**0
    weights = np.zeros(classes)
    weights[present] = 1 / numbers
    weights *= counts.sum() / (weights * counts).sum()
    return torch.from_numpy(weights).float()


def unused_weights(recipe: Recipe) -> str | None:
    """Why ``recipe.class_weights`` has no effect; ``None`` where it has, or is not asked for."""
    if recipe.class_weights == "none" or recipe.sampler != "balanced":
        return None
    return (
        f"recipe.class_weights={recipe.class_weights} changes nothing beside "
        "recipe.sampler=balanced, which draws all classes alike"
    )


def balanced_draws(rows: Rows, labels: Labels, images: int, *, seed: int, epoch: int) -> Rows:
    """The images of an epoch in which all classes are drawn alike, ascending by row: (N,) draws for
    the N training images ``rows``, ascending, of ``labels`` (N,).

    A draw is ``row + repeat * images``, of a split of so many ``images``: the row is its remainder,
    and each repeat of an image has draws of its own for augmentation and mixing. Every class has
    N // classes draws or one more. A class of more images than draws has some of them, none twice;
    one of fewer has each equally often, or once more. A function of seed and epoch alone.
    """
    generator = np.random.default_rng((seed, epoch, KEY))
    order = np.lexsort((generator.random(len(rows)), labels))  # by class, shuffled within
    _, first, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    quotas = np.full(len(sizes), len(rows) // len(sizes))
    quotas[generator.permutation(len(sizes))[: len(rows) % len(sizes)]] += 1
    rank = np.arange(quotas.sum()) - np.repeat(np.cumsum(quotas) - quotas, quotas)  # in its class
    size = np.repeat(sizes, quotas)
    drawn = rows[order[np.repeat(first, quotas) + rank % size]]
    draws: Rows = drawn + rank // size * images
    ascending: Rows = draws[np.lexsort((draws, drawn))]
    return ascending
