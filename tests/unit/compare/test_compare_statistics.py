"""Statistics against scipy and statsmodels, and by simulation."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from orchestrator.compare.statistics import (
    MeanInterval,
    accuracy_interval,
    binomial_part,
    difference,
    holm,
    mcnemar,
    mean_interval,
    mean_over,
    paired_t,
    permutation,
)
from tests.unit.compare.compare_runs import RunFolder, compared, shown


def test_mean_interval_is_scipys() -> None:
    values = [0.91, 0.93, 0.9, 0.94, 0.92]
    made = mean_interval(values, 0.9)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert (made.mean, made.n, made.level) == (pytest.approx(np.mean(values)), 5, 0.9)
    assert (made.low, made.high) == (
        pytest.approx(expected.low),
        pytest.approx(expected.high),
    )


def test_one_value_has_no_interval() -> None:
    assert mean_interval([0.5]) == MeanInterval(mean=0.5, low=None, high=None, level=0.95, n=1)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (3, 3), (12, 4), (25, 60)])
def test_mcnemar_is_statsmodels(only_a: int, only_b: int) -> None:
    contingency = pytest.importorskip("statsmodels.stats.contingency_tables")
    a = np.repeat([True, False, True, False], [only_a, only_b, 40, 10])
    b = np.repeat([False, True, True, False], [only_a, only_b, 40, 10])
    expected = contingency.mcnemar([[40, only_a], [only_b, 10]], exact=True).pvalue
    assert mcnemar(a, b) == pytest.approx(expected)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_statsmodels(p_values: list[float]) -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    assert holm(p_values) == pytest.approx(multitest.multipletests(p_values, method="holm")[1])


def test_holm_of_nothing() -> None:
    assert holm([]) == []


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=4, max_size=10))
def test_permutation_is_scipys_exact_test(thirds: list[int]) -> None:
    whole = np.array(thirds)  # scipy's ties are exact in whole numbers only
    expected = stats.permutation_test(
        (whole, np.zeros_like(whole)), lambda x, y, axis: np.sum(x - y, axis=axis),
        permutation_type="samples", vectorized=True, n_resamples=np.inf,
    ).pvalue  # fmt: skip
    assert permutation(whole / 3) == pytest.approx(expected, abs=0.02)


def test_welch_is_scipys() -> None:
    a, b = [0.91, 0.93, 0.9, 0.94], [0.88, 0.93, 0.86]
    made = difference([a], [b], None)
    assert made is not None
    expected = stats.ttest_ind(a, b, equal_var=False)
    assert made.p_value == pytest.approx(expected.pvalue)
    interval = made.interval(0.9)
    assert (interval.low, interval.high) == pytest.approx(tuple(expected.confidence_interval(0.9)))


def test_no_spread_makes_no_certainty(tmp_path: Path) -> None:
    assert difference([[0.9, 0.9]], [[0.8, 0.8]], None) is None
    run = RunFolder(tmp_path / "run")
    for family, accuracy in (("vit", 0.9), ("resnet", 0.8)):
        for seed in (0, 1):
            run.trial(family, [0.5], stage="final", seed=seed, test={"top1": accuracy})
    made = compared(run.close())
    assert (made["pairs"][0]["p_value"], made["pairs"][0]["verdict"]) == (
        None, "not tested",
    )  # fmt: skip


def test_an_interval_ends_at_the_bounds_of_the_quantity() -> None:
    made = mean_interval([0.99, 1.0, 0.98], bounds=(0.0, 1.0))
    assert made.high == 1.0
    assert made.low == mean_interval([0.99, 1.0, 0.98]).low


def test_detectable_difference_has_the_stated_power() -> None:
    draw = np.random.default_rng(0)
    n, sd = 30, 0.02
    smallest = stats.t.ppf(0.975, 2 * n - 2) + stats.t.ppf(0.8, 2 * n - 2)
    smallest *= sd * np.sqrt(2 / n)
    found, said = 0, []
    for _ in range(400):
        made = difference([draw.normal(smallest, sd, n)], [draw.normal(0, sd, n)], None)
        assert made is not None
        found += made.p_value < 0.05
        said.append(made.detectable(0.05))
    assert np.mean(said) == pytest.approx(smallest, rel=0.05)
    assert 0.72 < found / 400 < 0.88


@pytest.mark.parametrize(
    ("images", "seeds", "top1", "sd"),
    [(500, 1, 0.9, 0.0), (500, 3, 0.97, 0.005), (200, 2, 0.995, 0.0), (5000, 3, 0.8, 0.02)],
)
def test_an_accuracy_is_covered_for_new_seeds_and_images(
    images: int, seeds: int, top1: float, sd: float
) -> None:
    """Each image is as hard for all seeds: half of what is right is the image's own."""
    draw = np.random.default_rng(0)
    covered, repeats = 0, 1500
    for _ in range(repeats):
        hard = draw.normal(size=images)
        values = []
        for _ in range(seeds):
            own = np.clip(top1 + draw.normal(0, sd), 0, 1)
            difficulty = (hard + draw.normal(size=images)) / np.sqrt(2)
            values.append(float((difficulty < stats.norm.ppf(own)).mean()))
        made = mean_over([values], [binomial_part(float(np.mean(values)), images)], bounds=(0, 1))
        assert made.low is not None
        assert made.high is not None
        assert 0 <= made.low < made.high <= 1
        covered += made.low <= top1 <= made.high
    assert covered / repeats > 0.93


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.integers(0, 5000))
def test_no_interval_of_an_accuracy_has_zero_width(values: list[float], images: int) -> None:
    parts = [binomial_part(float(np.mean(values)), images)] if images else []
    made = mean_over([values], parts, bounds=(0, 1))
    if made.low is None or made.high is None:
        assert made.low is made.high is None
        assert not images
    else:
        assert made.low < made.high


def test_interval_over_seeds_covers_at_its_level() -> None:
    draw = np.random.default_rng(1)
    covered = 0
    for values in draw.normal(0.9, 0.01, size=(2000, 4)):
        made = mean_interval(values.tolist(), 0.9)
        covered += made.low <= 0.9 <= made.high
    assert abs(covered / 2000 - 0.9) < 4 * np.sqrt(0.9 * 0.1 / 2000)


def test_no_difference_is_found_too_often_over_seeds_and_images() -> None:
    """Two equal families: images of shared difficulty, seeds that move the accuracy."""
    draw = np.random.default_rng(2)
    runs, images, seeds = 600, 400, 3
    rejected = covered = 0
    for _ in range(runs):
        hard = draw.normal(1.2, 1.0, images)
        taste = draw.normal(0, 0.5, (2, images))  # what each family finds easy
        moved = draw.normal(0, 0.15, (2, seeds, 1))
        chance = 1 / (1 + np.exp(-(hard + taste[:, None] + moved)))
        correct = draw.random((2, seeds, images)) < chance
        accuracy = correct.mean(axis=2)
        mean = correct.mean(axis=1)
        made = difference([accuracy[0].tolist()], [accuracy[1].tolist()], mean[0] - mean[1])
        assert made is not None
        rejected += made.p_value < 0.05
        interval = made.interval(0.95)
        covered += interval.low <= 0 <= interval.high
    assert rejected / runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
    assert covered / runs >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / runs)


@pytest.mark.parametrize("test", [mcnemar, lambda a, b: permutation(1.0 * a - b, resamples=999)])
def test_equal_models_are_told_apart_no_more_often_than_alpha(test: Any) -> None:
    """Two models of one accuracy on images of shared difficulty."""
    draw = np.random.default_rng(6)
    runs, found = 800, 0
    for _ in range(runs):
        chance = draw.beta(6, 2, 300)
        a, b = draw.random((2, 300)) < chance
        found += test(a, b) < 0.05
    assert found / runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
    better = np.arange(300) < 60
    assert test(draw.random(300) < 0.7, better | (draw.random(300) < 0.85)) < 0.05


def test_holm_keeps_the_error_of_all_pairs_and_no_correction_does_not() -> None:
    """Four equal families, six pairs that share their seeds: any finding at all is an error."""
    draw = np.random.default_rng(7)
    runs, wrong, uncorrected = 400, 0, 0
    for values in draw.normal(0.9, 0.01, size=(runs, 4, 5)):
        p_values = []
        for i, j in combinations(range(4), 2):
            made = difference([values[i].tolist()], [values[j].tolist()], None)
            assert made is not None
            p_values.append(made.p_value)
        wrong += min(holm(p_values)) < 0.05
        uncorrected += min(p_values) < 0.05
    limit = 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
    assert wrong / runs <= limit
    assert uncorrected / runs > limit


def test_paired_t_is_scipys() -> None:
    a, b = [0.91, 0.93, 0.9], [0.88, 0.92, 0.86]
    gaps = [x - y for x, y in zip(a, b, strict=True)]
    assert paired_t(gaps) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert paired_t([0.1]) is None
    assert paired_t([0.1, 0.1]) is None


def correctness(accuracy: float, n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < accuracy


def run_with_finals(folder: Path, *, seeds: int, by_image: bool = True, n: int = 2000) -> Path:
    run = RunFolder(folder, ("resnet", "vit", "hybrid"))
    run.trial("vit", [0.5, 0.9])
    run.ledger.append("test_opened")
    for place, (family, accuracy) in enumerate([("vit", 0.9), ("hybrid", 0.9), ("resnet", 0.7)]):
        for seed in range(seeds):
            correct = correctness(accuracy, n, 100 * place + seed)
            run.final(family, correct, seed=seed, by_image=by_image)
    return run.close()


def test_finals_have_n_and_an_interval(tmp_path: Path) -> None:
    made = compared(run_with_finals(tmp_path / "run", seeds=3))
    correct = np.stack([correctness(0.7, 2000, 200 + seed) for seed in range(3)])
    expected = accuracy_interval([correct.mean(axis=1).tolist()], correct.mean(axis=0))
    final = next(entry["final"] for entry in made["families"] if entry["family"] == "resnet")
    assert final["seeds"] == [0, 1, 2]
    assert final["test_top1"] == pytest.approx(vars(expected))
    assert final["device_seconds"] == pytest.approx(3 * 4.4)
    assert made["test_opened_at"] is not None
    vit = next(entry for entry in made["families"] if entry["family"] == "vit")
    assert vit["trials"] == 1  # finals are no part of the search and its cost
    assert vit["device_seconds"] == pytest.approx(4.4)


def test_pairs_over_seeds_and_images(tmp_path: Path) -> None:
    made = compared(run_with_finals(tmp_path / "run", seeds=3))
    pairs = {(pair["a"], pair["b"]): pair for pair in made["pairs"]}
    assert {pair: entry["verdict"] for pair, entry in pairs.items()} == {
        ("resnet", "vit"): "b better",
        ("resnet", "hybrid"): "b better",
        ("vit", "hybrid"): "not told apart",
    }
    raw = [pair["p_value"] for pair in made["pairs"]]
    assert [pair["p_value_holm"] for pair in made["pairs"]] == pytest.approx(holm(raw))
    one = pairs["resnet", "vit"]
    assert one["n"] == {
        "searches_a": 1, "searches_b": 1, "seeds_a": 3, "seeds_b": 3, "images": 2000,
        "groups": None,
    }  # fmt: skip
    assert {pair["level"] for pair in made["pairs"]} == {"recipes"}
    assert one["difference"]["low"] < one["difference"]["mean"] < one["difference"]["high"] < 0
    assert "this recipe of vit better than this recipe of resnet" in made["answer"]
    assert "this recipe of vit not told apart from this recipe of hybrid" in made["answer"]
    assert "p (Holm)" in shown(tmp_path / "run")


def test_one_seed_is_mcnemar_on_two_models(tmp_path: Path) -> None:
    made = compared(run_with_finals(tmp_path / "run", seeds=1))
    one = made["pairs"][0]
    assert (one["level"], one["method"]) == ("models", "McNemar's on these two models")
    a, b = correctness(0.7, 2000, 200), correctness(0.9, 2000, 0)
    assert one["p_value"] == pytest.approx(mcnemar(a, b))
    top1 = made["families"][0]["final"]["test_top1"]  # over images alone, and it says n = 1
    assert top1["low"] < top1["mean"] < top1["high"]
    assert "n = 1)" in shown(tmp_path / "run")


def test_one_seed_without_images_has_no_p_value(tmp_path: Path) -> None:
    made = compared(run_with_finals(tmp_path / "run", seeds=1, by_image=False))
    assert [(p["p_value"], p["p_value_holm"], p["verdict"]) for p in made["pairs"]] == [
        (None, None, "not tested")
    ] * 3
    assert made["families"][0]["final"]["test_top1"]["low"] is None
    assert "no interval" in shown(tmp_path / "run")


def test_seeds_without_images_are_welchs_test(tmp_path: Path) -> None:
    made = compared(run_with_finals(tmp_path / "run", seeds=3, by_image=False))
    one = made["pairs"][0]
    seeds = [
        [correctness(p, 2000, 100 * k + s).mean() for s in range(3)]
        for k, p in [(2, 0.7), (0, 0.9)]
    ]
    assert one["method"] == "Welch's t over seeds"
    assert one["p_value"] == pytest.approx(stats.ttest_ind(*seeds, equal_var=False).pvalue)
