"""Curves over budget: the bands hold as often as they say, pruning or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from orchestrator.compare.budget import best_of, cdf_bounds, expected_best
from tests.unit.compare.compare_runs import RunFolder, compared

ALPHA = 0.1
LAW = stats.beta(8, 2)  # of a trial's accuracy at full length
GRID = np.linspace(0, 1, 4001)


def truth(trials: np.ndarray) -> np.ndarray:
    """Expected best of k draws of ``LAW``, by quadrature."""
    return np.array([1 - np.trapezoid(LAW.cdf(GRID) ** k, GRID) for k in trials])


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=6), st.integers(1, 4)
)  # fmt: skip
def test_expected_best_is_the_mean_over_all_draws(values: list[float], k: int) -> None:
    every = np.array(np.meshgrid(*[values] * k)).reshape(k, -1).max(axis=0).mean()
    made = best_of(values, [], 0, trials=np.array([k]), alpha=0.5)
    assert made.expected_best[0] == pytest.approx(every)


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
    assert (made["valid"], made["why"]) == (False, "trials still run")
