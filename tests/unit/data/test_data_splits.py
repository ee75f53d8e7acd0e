"""Splits and subsets: stratified, nested, disjoint, and a function of content and seed alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.config import DataSpec
from trainables.data.build import prepare
from trainables.data.store import assign_splits, carve, stratified_order, train_indices
from trainables.errors import UserError

class_sizes = st.lists(st.integers(1, 30), min_size=1, max_size=6)
seeds = st.integers(0, 2**40)


def rows_of(sizes, seed=0):
    rng = np.random.default_rng([seed, *sizes])
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int64)
    return labels, rng.integers(0, 2**64, len(labels), dtype=np.uint64)


def sainte_lague(sizes, seats):
    """Reference: one seat to each class, then always to the highest size / (2 * seats + 1)."""
    given_out = [0] * len(sizes)
    for _ in range(seats):
        empty = [c for c, n in enumerate(given_out) if n == 0]
        quotient = [n / (2 * g + 1) if g < n else -1 for n, g in zip(sizes, given_out, strict=True)]
        given_out[empty[0] if empty else int(np.argmax(quotient))] += 1
    return given_out


@settings(deadline=None)
@given(class_sizes, seeds, st.data())
def test_every_prefix_is_apportioned_by_sainte_lague(sizes, seed, data):
    labels, digests = rows_of(sizes)
    order = stratified_order(labels, digests, seed=seed, salt="x")
    assert sorted(order) == list(range(len(labels)))
    cut = data.draw(st.integers(len(sizes), len(labels)))
    counts = np.bincount(labels[order[:cut]], minlength=len(sizes))
    reference = np.array(sainte_lague(sizes, cut))
    # classes with equal quotients may take the seat in either order
    assert np.abs(counts - reference).max() <= 1
    assert counts.sum() == cut
    for c in np.flatnonzero(counts > reference):
        ties = [sizes[d] / (2 * counts[d] + 1) for d in np.flatnonzero(counts < reference)]
        assert min(abs(sizes[c] / (2 * reference[c] + 1) - tie) for tie in ties) < 1e-9


@settings(deadline=None)
@given(class_sizes, seeds, st.randoms(use_true_random=False))
def test_the_order_of_rows_has_no_say(sizes, seed, random):
    labels, digests = rows_of(sizes)
    shuffled = np.array(random.sample(range(len(labels)), len(labels)))
    first = stratified_order(labels, digests, seed=seed, salt="x")
    second = stratified_order(labels[shuffled], digests[shuffled], seed=seed, salt="x")
    np.testing.assert_array_equal(digests[first], digests[shuffled][second])


@settings(deadline=None)
@given(class_sizes, seeds)
def test_a_carve_leaves_each_class_one_image(sizes, seed):
    labels, digests = rows_of(sizes)
    chosen = carve(labels, digests, count=len(labels), seed=seed, salt="val")
    left = np.delete(labels, chosen)
    assert np.bincount(left, minlength=len(sizes)).tolist() == [1] * len(sizes)


@settings(deadline=None)
@given(
    st.lists(st.integers(10, 40), min_size=2, max_size=6),
    seeds,
    st.floats(0.05, 0.4),
    st.floats(0.05, 0.4),
)
def test_carved_splits_are_disjoint_and_stratified(sizes, seed, val, test):
    labels, digests = rows_of(sizes)
    spec = DataSpec(val_fraction=val, test_fraction=test, split_seed=seed)
    assigned = assign_splits({"train": labels}, {"train": digests}, spec)
    together = np.concatenate([rows for _, rows in assigned.values()])
    assert sorted(together) == list(range(len(labels)))
    for name, fraction in (("val", val), ("test", test)):
        rows = assigned[name][1]
        assert len(rows) == max(len(sizes), round(fraction * len(labels)))
        counts = np.bincount(labels[rows], minlength=len(sizes))
        assert np.abs(counts - fraction * np.array(sizes)).max() <= 2


@settings(deadline=None)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=30), seeds, st.floats(0.05, 0.4))
def test_every_class_of_two_is_in_val_and_in_train(sizes, seed, val):
    labels, digests = rows_of(sizes)
    many = np.concatenate([labels, np.zeros(40, np.int64)])
    others = np.random.default_rng(seed).integers(0, 2**64, 40, dtype=np.uint64)
    digests = np.concatenate([digests, others])
    spec = DataSpec(val_fraction=val, split_seed=seed)
    assigned = assign_splits({"train": many}, {"train": digests}, spec)
    size = np.bincount(many)
    counts = {
        name: np.bincount(many[rows], minlength=len(size)) for name, (_, rows) in assigned.items()
    }
    assert (counts["train"] >= 1).all()
    spare_for_test = np.maximum(size - 2, 0).sum() >= max(1, round(0.1 * len(many)))
    if spare_for_test:
        assert (counts["val"][size >= 2] >= 1).all()
        assert (counts["test"][size >= 3] >= 1).all()


def test_seeds_and_splits_draw_differently():
    labels, digests = rows_of([200, 200])
    drawn = {
        tuple(carve(labels, digests, count=40, seed=seed, salt=salt))
        for seed in (0, 1)
        for salt in ("val", "test")
    }
    assert len(drawn) == 4


def test_a_split_that_is_there_is_kept_whole():
    labels, digests = rows_of([20, 20])
    both = {"train": labels, "val": labels[:7]}, {"train": digests, "val": digests[:7]}
    assigned = assign_splits(*both, DataSpec())
    assert assigned["val"][0] == "val"
    assert len(assigned["val"][1]) == 7
    assert {name: len(rows) for name, (_, rows) in assigned.items()} == {
        "train": 36,
        "val": 7,
        "test": 4,
    }


def test_too_few_images_for_a_split_are_one_line():
    labels, digests = rows_of([1, 1])
    with pytest.raises(UserError, match="too few images for a split") as caught:
        assign_splits({"train": labels}, {"train": digests}, DataSpec(source="few"))
    assert "\n" not in str(caught.value)
    assert "Fix:" in str(caught.value)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return prepare(DataSpec(folder=str(tmp_path_factory.mktemp("stores"))))


@settings(max_examples=30, deadline=None)
@given(
    st.floats(0.01, 1),
    st.floats(0.01, 1),
    st.none() | st.integers(1, 2000),
    st.integers(0, 3),
)
def test_data_fractions_are_nested_and_stratified(digits, one, other, limit, seed):
    small, large = sorted((one, other))

    def subset(fraction):
        spec = DataSpec(fraction=fraction, train_limit=limit, split_seed=seed)
        return train_indices(digits, spec)

    inside, outside = subset(small), subset(large)
    assert set(inside) <= set(outside)
    assert inside.dtype == np.int64
    assert (np.diff(inside) > 0).all()
    np.testing.assert_array_equal(inside, subset(small))
    labels = digits.split("train").labels
    whole = np.bincount(labels)
    total = min(limit or len(labels), len(labels))
    assert len(inside) == max(1, round(small * total))
    counts = np.bincount(labels[inside], minlength=10)
    assert np.abs(counts - len(inside) * whole / whole.sum()).max() < 2
    assert (counts > 0).all() or len(inside) < 10


def test_a_train_seed_draws_a_subset_of_its_own(digits):
    """Two of them share what chance makes them share: for m of n images about m * m / n."""
    labels = digits.split("train").labels
    size, count = len(labels), 300

    def subset(seed, fraction=1.0):
        spec = DataSpec(train_limit=count, train_seed=seed, fraction=fraction)
        return train_indices(digits, spec)

    # Seeds that differ in their first digits alone draw as differently as any others.
    subsets = [subset(seed) for seed in (1, 2, 3, 11, 21, 101, 1_000_001, 8_000_000_000_000_001)]
    shared = [
        len(np.intersect1d(one, other))
        for index, one in enumerate(subsets)
        for other in subsets[:index]
    ]
    expected = count * count / size
    assert abs(np.mean(shared) / expected - 1) < 0.1
    assert max(shared) < 1.5 * expected
    proportional = count * np.bincount(labels) / size
    for rows in subsets:
        assert np.abs(np.bincount(labels[rows], minlength=10) - proportional).max() < 2
    assert set(subset(1, 0.1)) <= set(subset(1))
    np.testing.assert_array_equal(
        train_indices(digits, DataSpec(train_seed=7)), train_indices(digits, DataSpec())
    )


def test_without_limits_all_images_are_trained_on(digits):
    rows = train_indices(digits, DataSpec())
    np.testing.assert_array_equal(rows, np.arange(digits.info.counts["train"]))
