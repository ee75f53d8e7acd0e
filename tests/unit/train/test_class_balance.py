"""Rare classes made to count: weights against scikit-learn's, epochs of classes drawn alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from tests.unit.train.engine_store import assignment, small_store
from trainables.config import Recipe
from trainables.finetune import fine_tune
from trainables.train.class_balance import balanced_draws, class_weights
from trainables.train.learner import Batch, batch_loss

SIZES = st.lists(st.integers(0, 60), min_size=2, max_size=8).filter(lambda sizes: sum(sizes) > 1)
KINDS = ("balanced", "effective")


def labels_of(sizes: list[int]) -> Any:
    drawn = np.random.default_rng(sum(sizes)).permutation(np.repeat(np.arange(len(sizes)), sizes))
    return drawn.astype(np.int64)


def weights_of(kind: str, sizes: list[int]) -> Any:
    weights = class_weights(Recipe(class_weights=kind), labels_of(sizes), len(sizes))
    assert weights is not None
    return weights.double().numpy()


@given(SIZES)
def test_balanced_weights_are_scikit_learns(sizes: list[int]) -> None:
    labels = labels_of(sizes)
    present = np.unique(labels)
    expected = compute_class_weight("balanced", classes=present, y=labels)
    np.testing.assert_allclose(weights_of("balanced", sizes)[present], expected, rtol=1e-6)


@given(SIZES, st.sampled_from(KINDS))
def test_the_mean_weight_of_an_image_is_one(sizes: list[int], kind: str) -> None:
    weights = weights_of(kind, sizes)
    assert weights @ np.array(sizes) / sum(sizes) == pytest.approx(1, rel=1e-6)
    assert (weights[np.array(sizes) == 0] == 0).all()


def test_effective_weights_are_those_of_the_paper() -> None:
    sizes = [1000, 200, 20, 4]
    beta = 1 - 1 / np.mean(sizes)
    expected = (1 - beta) / (1 - beta ** np.array(sizes))  # Cui et al. 2019, equation 3
    weights = weights_of("effective", sizes)
    np.testing.assert_allclose(weights / weights[0], expected / expected[0], rtol=1e-5)
    balanced = weights_of("balanced", sizes)
    # Between no weights and the full ones, and like the latter where classes are rare.
    assert 1 < weights[3] / weights[0] < balanced[3] / balanced[0]
    assert weights[3] / weights[2] == pytest.approx(balanced[3] / balanced[2], rel=0.05)


def test_equal_classes_have_no_weights_of_their_own() -> None:
    for kind in KINDS:
        np.testing.assert_allclose(weights_of(kind, [1, 1, 1]), 1, rtol=1e-6)
        np.testing.assert_allclose(weights_of(kind, [30, 30]), 1, rtol=1e-6)


def test_a_weight_is_that_of_the_whole_image() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    labels, partner = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 0, 2])
    share, weights = torch.tensor([0.3, 1.0, 0.0, 0.5]), torch.tensor([0.2, 1.0, 3.0])

    def losses(classes: torch.Tensor) -> torch.Tensor:
        soft = 0.9 * nn.functional.one_hot(classes, 3).float() + 0.1 / 3
        return -(soft * logits.log_softmax(1)).sum(1) * weights[classes]

    whole = Batch(torch.zeros(4), labels, partner, share)
    expected = (share * losses(labels) + (1 - share) * losses(partner)).mean()
    loss = batch_loss(logits, whole, 0.1, weights)
    torch.testing.assert_close(loss, expected)
    # Two workers, or two micro-batches: the means of the parts have the mean of the whole.
    parts = [
        batch_loss(logits[start : start + 2], whole.part(start, start + 2), 0.1, weights)
        for start in (0, 2)
    ]
    torch.testing.assert_close(sum(parts) / 2, loss)
    plain = Batch(torch.zeros(4), labels)
    torch.testing.assert_close(batch_loss(logits, plain, 0.1, weights), losses(labels).mean())


@given(SIZES, st.integers(0, 2**40), st.integers(0, 5))
def test_an_epoch_draws_all_classes_alike_and_keeps_its_length(
    sizes: list[int], seed: int, epoch: int
) -> None:
    labels = labels_of(sizes)
    images = 2 * len(labels) + 5  # a subset of the split is trained on
    rows = np.sort(np.random.default_rng(0).permutation(images)[: len(labels)])
    draws = balanced_draws(rows, labels, images, seed=seed, epoch=epoch)
    drawn = draws % images
    assert len(draws) == len(rows)
    assert len(np.unique(draws)) == len(draws)  # each has augmentation of its own
    assert (np.diff(drawn) >= 0).all()
    assert np.isin(drawn, rows).all()
    label_of = dict(zip(rows.tolist(), labels.tolist(), strict=True))
    in_class = np.bincount([label_of[row] for row in drawn.tolist()], minlength=len(sizes))
    assert np.ptp(in_class[np.array(sizes) > 0]) <= 1
    times = dict.fromkeys(rows.tolist(), 0)
    for row in drawn.tolist():
        times[row] += 1
    for label in range(len(sizes)):
        counts = [n for row, n in times.items() if label_of[row] == label]
        assert not counts or max(counts) - min(counts) <= 1
    again = balanced_draws(rows, labels, images, seed=seed, epoch=epoch)
    np.testing.assert_array_equal(draws, again)


def test_epochs_and_seeds_draw_other_images_of_a_large_class() -> None:
    labels = np.repeat([0, 1], [200, 10]).astype(np.int64)
    rows = np.arange(210)

    def large(seed: int, epoch: int) -> set[int]:
        draws = balanced_draws(rows, labels, 210, seed=seed, epoch=epoch)
        return {int(row) for row in draws % 210 if row < 200}

    first, second, other = large(0, 0), large(0, 1), large(1, 0)
    for one, two in ((first, second), (first, other)):
        assert 30 < len(one & two) < 80  # 105 of 200 each: about 55 in both


def test_repeats_of_an_image_are_augmented_each_for_itself() -> None:
    """A class of one image: its draws are the same picture, seen differently each time."""
    from trainables.train.loop import World
    from trainables.train.trial import Trial

    store = small_store(train=48)
    labels = store.split("train").labels
    labels[:] = np.where(np.arange(48) == 7, 0, 1)
    trial = Trial(assignment(augment="medium", sampler="balanced"), World(), store)
    batches = list(trial._batches(0))
    rare = torch.cat([batch.images[batch.labels == 0] for batch in batches])
    assert len(rare) == 24
    assert len(rare.flatten(1).unique(dim=0)) > 20


def test_weights_beside_a_balanced_sampler_are_said_to_change_nothing() -> None:
    both = assignment(sampler="balanced", class_weights="balanced", epochs=1)
    alone = assignment(sampler="balanced", epochs=1)
    (first,), (second,) = (list(fine_tune(each, store=small_store())) for each in (both, alone))
    assert first.metrics["train_loss"] == second.metrics["train_loss"]
    assert "changes nothing" in first.detail["notes"][0]
    assert "notes" not in second.detail


def test_defaults_are_not_written_so_that_hashes_stay() -> None:
    assert {"class_weights", "sampler"}.isdisjoint(Recipe().as_dict())
    written = Recipe(class_weights="effective", sampler="balanced").as_dict()
    assert Recipe.from_dict(written) == Recipe(class_weights="effective", sampler="balanced")
    before = Recipe.from_dict({})
    assert (before.class_weights, before.sampler) == ("none", "shuffle")
