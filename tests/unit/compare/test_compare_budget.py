"""Curves over budget: the bands hold as often as they say, pruning or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from orchestrator.compare.budget import best_of, budget_curve, budgets, cdf_bounds, expected_best
from orchestrator.compare.runs import CandidateTrials, collect, load
from orchestrator.spec.spaces import WarmStart
from tests.unit.compare.compare_runs import RunFolder, compared

ALPHA = 0.1
LAW = stats.beta(8, 2)  # of a trial's accuracy at full length
GRID = np.linspace(0, 1, 4001)


def truth(trials: np.ndarray) -> np.ndarray:
    """Expected best of k draws of ``LAW``, by quadrature."""
    return np.array([1 - np.trapezoid(LAW.cdf(GRID) ** k, GRID) for k in trials])


VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=6)


def mean_of_best(values: Sequence[float], k: int) -> float:
    """Over every choice of k of the values."""
    return float(np.mean([max(chosen) for chosen in combinations(values, k)]))


@settings(max_examples=50, deadline=None)
@given(VALUES)
def test_expected_best_is_the_mean_over_all_choices(values: list[float]) -> None:
    trials = np.arange(1, len(values) + 1)
    made = best_of(values, [], 0, trials=trials, alpha=0.5).expected_best
    assert made == pytest.approx([mean_of_best(values, k) for k in trials])
    assert (made[0], made[-1]) == pytest.approx((np.mean(values), max(values)))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_an_audit_gives_on_average_what_all_trials_would(data: st.DataObject) -> None:
    """Over every audit that could have been drawn: the same up to as many trials as were audited,
    and no more beyond."""
    kept = data.draw(st.lists(st.floats(0, 1), max_size=3))
    lost = data.draw(st.lists(st.floats(0, 1), min_size=1, max_size=5))
    audited = data.draw(st.integers(1, len(lost)))
    trials = np.arange(1, len(kept) + len(lost) + 1)
    made = np.mean(
        [
            best_of(kept, seen, len(lost), trials=trials, alpha=0.5).expected_best
            for seen in combinations(lost, audited)
        ],
        axis=0,
    )
    whole = np.array([mean_of_best([*kept, *lost], k) for k in trials])
    assert made[:audited] == pytest.approx(whole[:audited])
    assert np.all(made <= whole + 1e-9)


def test_many_trials_are_counted_as_exactly_as_few() -> None:
    """Tang et al. (2020), section 3: the sum over order statistics, in whole numbers."""
    values = np.sort(np.random.default_rng(0).random(400))
    for k in (1, 7, 399, 400):
        weights = [math.comb(i - 1, k - 1) / math.comb(400, k) for i in range(1, 401)]
        made = best_of(values.tolist(), [], 0, trials=np.array([k]), alpha=0.5)
        assert made.expected_best[0] == pytest.approx(float(weights @ values), rel=1e-9)


@pytest.mark.parametrize("n", [1, 5, 40, 400])
def test_the_band_of_a_distribution_is_simultaneous_and_exact(n: int) -> None:
    low, high = cdf_bounds(n, ALPHA)
    assert (low[0], high[-1], low.size, high.size) == (0.0, 1.0, n + 1, n + 1)
    assert np.all(np.diff(low) >= 0)
    assert np.all(low <= np.arange(n + 1) / n)
    assert np.all(np.arange(n + 1) / n <= high)
    samples = 4000
    uniform = np.sort(np.random.default_rng(n + 1000).random((samples, n)), axis=1)
    held = np.mean(np.all((low[1:] <= uniform) & (uniform <= high[:-1]), axis=1))
    assert abs(held - (1 - ALPHA)) < 4 * np.sqrt(ALPHA * (1 - ALPHA) / samples) + 0.003


def test_one_draw_has_the_beta_interval() -> None:
    low, high = cdf_bounds(1, ALPHA)
    assert (low[1], high[0]) == pytest.approx((ALPHA / 2, 1 - ALPHA / 2), abs=0.005)


def test_bounds_by_hand() -> None:
    made = expected_best(np.array([0.4, 0.8]), np.array([0.0, 0.5, 1.0]), np.array([1, 2]))
    assert made == pytest.approx([0.6, 0.7])


def coverage(*, n: int, pruned: int, audited: int | None, runs: int) -> float:
    """How often the band holds for every k at once. Pruning keeps the best of noisy early looks;
    ``audited`` None drops the pruned trials from the sample, as if they had never been."""
    draw = np.random.default_rng(3)
    trials = np.unique(np.geomspace(1, n, 12).round().astype(int))
    true = truth(trials)
    held = 0
    for _ in range(runs):
        full = LAW.rvs(n, random_state=draw)
        order = np.argsort(full + draw.normal(0, 0.05, n))
        lost, kept = full[order[:pruned]], full[order[pruned:]]
        seen = draw.choice(lost, audited or 0, replace=False)
        of = pruned if audited is not None else 0
        band = best_of(kept, seen, of, trials=trials, alpha=ALPHA)
        held += bool(np.all((band.low <= true) & (true <= band.high)))
    return held / runs


@pytest.mark.parametrize(("pruned", "audited"), [(0, 0), (40, 40), (40, 8), (40, 2)])
def test_the_band_covers_with_and_without_pruning(pruned: int, audited: int) -> None:
    assert coverage(n=60, pruned=pruned, audited=audited, runs=300) >= 1 - ALPHA


def test_a_band_of_the_survivors_alone_would_not_cover() -> None:
    assert coverage(n=60, pruned=40, audited=None, runs=100) < 0.5


def test_an_audit_counts_for_all_that_were_pruned() -> None:
    kept, pruned = [0.8, 0.9], 8
    made = best_of(kept, [0.1, 0.5], pruned, trials=np.array([1, 10]), alpha=ALPHA)
    assert made.expected_best[0] == pytest.approx((0.8 + 0.9 + 4 * 0.1 + 4 * 0.5) / 10)
    assert np.all(made.low <= made.expected_best)
    assert np.all(made.expected_best <= made.high)
    whole = best_of(kept, [0.1, 0.5] * 4, pruned, trials=np.array([1, 10]), alpha=ALPHA)
    assert np.all(made.low <= whole.low)
    assert np.all(whole.high <= made.high)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_bounds_of_an_audit_hold_what_is_true_of_every_sample(data: st.DataObject) -> None:
    """The counts of the unseen are between none and all of them, and the curve never falls."""
    lost = data.draw(st.lists(st.floats(0, 1), min_size=1, max_size=12))
    seen = data.draw(st.integers(1, len(lost)))
    kept = data.draw(st.lists(st.floats(0, 1), min_size=1, max_size=6))
    trials = np.arange(1, 8)
    band = best_of(kept, lost[:seen], len(lost), trials=trials, alpha=ALPHA)
    for curve in (band.low, band.expected_best, band.high):
        assert np.all(np.diff(curve) >= -1e-12)
        assert np.all((curve >= -1e-12) & (curve <= 1 + 1e-12))
    assert np.all(band.low <= band.expected_best + 1e-12)
    assert np.all(band.expected_best <= band.high + 1e-12)


def curve_of(run: RunFolder) -> dict[str, Any]:
    return compared(run.close())["curves_over_budget"][0]


def test_without_pruning_the_curve_is_the_ledgers(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    for value in (0.6, 0.8):
        run.trial("vit", [0.1, value], seconds=1.0)
    run.trial("vit", [0.3], end="failed", seconds=1.0)
    made = curve_of(run)
    assert (made["valid"], made["n"], made["trials"]) == (True, 3, [1, 2, 3])
    assert made["expected_best"][0] == pytest.approx((0.6 + 0.8 + 0.0) / 3)
    assert made["seconds"] == pytest.approx([5 * 1.1 / 3 * k for k in (1, 2, 3)])
    assert made["flops"] == pytest.approx([5e9 / 3 * k for k in (1, 2, 3)])


def test_pruning_without_an_audit_is_descriptive_only(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    run.trial("vit", [0.5, 0.8])
    run.trial("vit", [0.5, 0.6])
    run.trial("vit", [0.99], end="pruned")  # censored: its value enters nothing
    made = curve_of(run)
    assert (made["valid"], made["audited"]) == (False, 0)
    assert "without an audit" in made["why"]
    assert made["expected_best"][0] == pytest.approx((0.8 + 0.6 + 0.6) / 3)


def test_an_audit_makes_the_band_valid(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    run.trial("vit", [0.5, 0.8])
    run.trial("vit", [0.2], end="pruned")
    run.trial("vit", [0.2, 0.4], audited=1)
    made = curve_of(run)
    assert (made["valid"], made["why"], made["pruned"], made["audited"]) == (True, None, 2, 1)
    assert made["expected_best"][0] == pytest.approx((0.8 + 0.4 + 0.4) / 3)


def test_finished_trials_of_unequal_length_are_no_sample_of_one_law(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    run.trial("vit", [0.5, 0.8, 0.9])
    run.trial("vit", [0.5, 0.7])
    made = curve_of(run)
    assert (made["valid"], made["why"]) == (False, "the finished trials are of unequal length")


@pytest.mark.parametrize("audited", [None, 1])
def test_an_unfinished_search_promises_nothing(tmp_path: Path, audited: int | None) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    run.trial("vit", [0.5, 0.8])
    run.trial("vit", [0.2, 0.3], audited=1)
    run.trial("vit", [0.5, 0.7], end=None, audited=audited)
    made = curve_of(run)
    assert (made["valid"], made["why"]) == (False, "not all trials have ended")


def family_of(folder: Path, *, trials: int = 12) -> CandidateTrials:
    run = RunFolder(folder, ("vit",))
    for index in range(trials):
        run.trial("vit", [0.5 + 0.01 * index])
    return collect([load(run.close())])[0]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"warm_start": WarmStart(sources=("earlier",), recipes=({},))}, "best recipes of earlier"),
        ({"grid": ({},) * 12}, "a grid"),
    ],
)
def test_recipes_that_are_not_drawn_at_random_are_descriptive(
    tmp_path: Path, more: dict[str, Any], why: str
) -> None:
    family = family_of(tmp_path / "run")
    assert family.sweep
    made = budget_curve(replace(family, sweep=replace(family.sweep, **more)))
    assert made
    assert not made.valid
    assert why in str(made.why)


@pytest.mark.parametrize(("sampler", "trials", "valid"), [
    ("tpe", 12, False), ("tpe", 8, True), ("random", 12, True), ("sobol", 12, True),
])  # fmt: skip
def test_what_tpe_draws_by_results_is_descriptive(
    tmp_path: Path, sampler: str, trials: int, valid: bool
) -> None:
    """Its first ten trials are Sobol points, as without it."""
    family = family_of(tmp_path / "run", trials=trials)
    assert family.sweep
    scheduler = replace(family.sweep.scheduler, sampler=sampler)
    family = replace(family, sweep=replace(family.sweep, scheduler=scheduler))
    made = budget_curve(family)
    assert made
    assert made.valid == valid
    low = budgets([family]).low["trials"]["vit"]
    assert (low is not None) == valid


def two_families(folder: Path, vit: Sequence[float], resnet: Sequence[float]) -> dict[str, Any]:
    """A ViT costs thirty times the time of a ResNet, which costs thirty times its FLOPs."""
    run = RunFolder(folder)
    for value in vit:
        run.trial("vit", [value], seconds=30.0, flops=1e9)
    for value in resnet:
        run.trial("resnet", [value], seconds=1.0, flops=3e10)
    return compared(run.close())


# One trial in six is good: the best of 60 is, that of two hardly ever.
RARE = [0.9 if index % 6 == 0 else 0.1 for index in range(60)]


def test_the_order_changes_only_beyond_the_bands(tmp_path: Path) -> None:
    made = two_families(tmp_path / "many", RARE, RARE)
    budget = made["budget"]
    assert budget["ranking"]["device_seconds"] == ["resnet", "vit"]
    assert budget["ranking"]["flops"] == ["vit", "resnet"]
    for unit, ahead, behind in (("device_seconds", "resnet", "vit"), ("flops", "vit", "resnet")):
        assert budget["low"][unit][ahead] > budget["high"][unit][behind]
    assert budget["flips"] is True
    assert "changes with the unit of cost" in made["answer"]
    near = [0.2 if value > 0.5 else 0.1 for value in RARE]
    made = two_families(tmp_path / "near", near, near)
    assert made["budget"]["ranking"] == budget["ranking"]
    assert made["budget"]["flips"] is False
    assert "changes with the unit of cost" not in made["answer"]


def test_without_a_band_there_is_no_change_of_order(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    for family, seconds, flops in (("vit", 30.0, 1e9), ("resnet", 1.0, 3e10)):
        for value in RARE:
            run.trial(family, [value], seconds=seconds, flops=flops)
        run.trial(family, [0.1], end="pruned", seconds=seconds, flops=flops)
    budget = compared(run.close())["budget"]
    assert budget["ranking"]["device_seconds"] != budget["ranking"]["flops"]
    assert set(budget["low"]["flops"].values()) == {None}
    assert "without an audit" in budget["why"]["vit"]
    assert budget["flips"] is False
