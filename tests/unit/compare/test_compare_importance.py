"""Which axis matters, where its best lies and which ranges were too small, on trials whose law is
known."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from orchestrator.compare.recipe_axes import (
    EDGE_TOP,
    TOP,
    _at_least,
    at_full_length,
    edges,
    learning_rate_fit,
    trials_of,
)
from orchestrator.compare.runs import CandidateTrials, collect, load
from orchestrator.spec.spaces import sample
from tests.unit.compare.compare_runs import RunFolder, compared, shown

PEAK = 1e-3


def known_law(
    folder: Path, *, trials: int, noise: float = 0.004, low: float = -4, high: float = -2,
    pruned: bool = True,
) -> Path:  # fmt: skip
    """Accuracy falls 10 points a squared decade from the peak, 2 points with weight decay."""
    run = RunFolder(folder, ("vit",))
    draw = np.random.default_rng(4)
    for index in range(trials):
        rate, decay = 10 ** draw.uniform(low, high), draw.uniform(0, 0.2)
        value = 0.8 - 0.1 * np.log10(rate / PEAK) ** 2 - 0.1 * decay + draw.normal(0, noise)
        early, late = float(0.8 * value), float(value)
        stop = pruned and index % 2 == 0
        run.trial(
            "vit", [early] if stop else [early, late], end="pruned" if stop else "finished",
            learning_rate=float(rate), weight_decay=float(decay),
            augment=("none", "light")[index % 3 == 0],
        )  # fmt: skip
    run.trial("vit", [0.01], end="failed", learning_rate=9e-3, weight_decay=0.1, augment="none")
    return run.close()


def comparison_of(folder: Path, **law: Any) -> dict[str, Any]:
    made = compared(known_law(folder, **law))
    json.dumps(made, allow_nan=False)
    return made


def test_the_axis_that_matters_comes_first(tmp_path: Path) -> None:
    made = comparison_of(tmp_path / "run", trials=60)["importance"][0]
    assert (made["epoch"], made["n"], made["full"]) == (2, 60, 30)
    axes = {entry["axis"]: entry for entry in made["axes"]}
    assert next(iter(axes)) == "recipe.learning_rate"
    assert axes["recipe.learning_rate"]["low"] > 0.4
    assert axes["recipe.augment"]["share"] < 0.05
    assert made["explained"] > 0.6
    assert all(0 <= entry["low"] <= entry["share"] <= entry["high"] <= 1 for entry in made["axes"])
    assert sum(entry["share"] for entry in made["axes"]) <= made["explained"] + 1e-9


def test_noise_has_no_importance(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    draw = np.random.default_rng(0)
    for _ in range(40):
        run.trial(
            "vit", [float(draw.uniform(0.4, 0.6))],
            learning_rate=float(10 ** draw.uniform(-4, -2)),
            weight_decay=float(draw.uniform(0, 0.2)),
        )  # fmt: skip
    assert compared(run.close())["importance"] == []


@pytest.mark.parametrize("trials", [0, 7])
def test_too_few_trials_say_nothing(tmp_path: Path, trials: int) -> None:
    made = comparison_of(tmp_path / "run", trials=trials)
    assert made["importance"] == []
    assert made["families"][0]["learning_rate_fit"] is None


def test_equal_accuracies_say_nothing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    for index in range(9):
        run.trial("vit", [0.5], learning_rate=1e-4 * (1 + index))
    assert compared(run.close())["importance"] == []


def test_what_pruned_trials_would_have_reached_follows_the_others() -> None:
    """On a straight line without residuals the prediction is exact; who cannot be predicted is
    missing."""
    early = np.array([0.1, 0.2, 0.3, 0.4, 0.25])
    reached = np.column_stack([early, np.where(early == 0.25, np.nan, 0.2 + 1.5 * early)])
    everyone, rng = np.arange(5), np.random.default_rng(0)
    made = at_full_length(reached, everyone, rng)
    assert made == pytest.approx(0.2 + 1.5 * early)
    assert np.isnan(at_full_length(reached, np.array([0, 1, 4]), rng)[4])


def test_a_pruned_trial_does_not_enter_with_its_early_accuracy(tmp_path: Path) -> None:
    family = collect([load(known_law(tmp_path / "run", trials=20))])[0]
    trials = trials_of(family)
    assert trials
    assert trials.epoch == 2
    assert trials.reached.shape == (20, 2)
    assert trials.at_full_length.sum() == 10


def test_the_best_rate_of_a_known_parabola(tmp_path: Path) -> None:
    families = comparison_of(tmp_path / "run", trials=80, pruned=False)["families"]
    made = families[0]["learning_rate_fit"]
    assert (made["epoch"], made["n"], made["at_edge"]) == (2, 80, None)
    assert made["best"] == pytest.approx(PEAK, rel=0.15)
    assert made["low"] < PEAK < made["high"]
    assert made["decades"] == pytest.approx(math.log10(made["high"] / made["low"]))
    assert made["decades"] < 0.5


@pytest.mark.parametrize(("low", "high", "edge"), [(-4, -3.3, "high"), (-2.7, -2, "low")])
def test_a_best_rate_outside_the_tried_ones_is_not_ruled_out(
    tmp_path: Path, low: float, high: float, edge: str
) -> None:
    found = comparison_of(tmp_path / "run", trials=40, low=low, high=high, noise=0.001)
    made = found["families"][0]["learning_rate_fit"]
    assert made["at_edge"] == edge
    assert made["low"] <= PEAK <= made["high"]
    assert made["low"] <= made["best"] <= made["high"]


def test_audited_trials_weigh_as_many_as_they_stand_for(tmp_path: Path) -> None:
    """Ten finished trials rise with the rate; the audited one of twenty shows that this ends."""
    run = RunFolder(tmp_path / "run", ("vit",))
    for index in range(10):
        run.trial("vit", [0.1, 0.5 + 0.01 * index], learning_rate=1e-4 * 1.3**index)
    for index in range(20):
        more = {"audited": 1} if index == 0 else {"end": "pruned"}
        run.trial("vit", [0.05, 0.1] if index == 0 else [0.05], learning_rate=9e-3, **more)
    family = collect([load(run.close())])[0]
    made = learning_rate_fit(family)
    assert made
    assert made.n == 11
    trials = trials_of(family)
    assert trials
    rate, value = trials.columns["recipe.learning_rate"], trials.reached[:, -1]
    whole = trials.at_full_length
    repeated = [1] * 10 + [20]
    square, slope, _ = np.polyfit(
        np.repeat(rate[whole], repeated), np.repeat(value[whole], repeated), 2
    )
    best = np.clip(-slope / (2 * square), *np.sort(rate[whole])[[10 - TOP, 9]])
    assert math.log10(made.best) == pytest.approx(best)


@pytest.mark.parametrize(
    ("there", "drawn", "top", "total"),
    [(0, 3, 5, 24), (2, 3, 5, 24), (3, 3, 3, 8), (5, 9, 5, 40)],
)
def test_chance_of_a_pile_is_the_hypergeometric_one(
    there: int, drawn: int, top: int, total: int
) -> None:
    expected = stats.hypergeom.sf(there - 1, total, drawn, top)
    assert _at_least(there, drawn, top, total) == pytest.approx(expected)


def searched(folder: Path, *, trials: int = 24) -> CandidateTrials:
    run = RunFolder(folder, ("vit",))
    for index in range(trials):
        run.trial("vit", [0.5 + 0.01 * index], learning_rate=1e-3)
    return collect([load(run.close())])[0]


def redrawn(family: CandidateTrials, seed: int, rank: Any = None) -> CandidateTrials:
    """Other recipes of its space; after ``rank``, the recipes are handed out from the worst to the
    best trial."""
    drawn = [sample(family.space, seed=seed, index=index) for index in range(len(family.curves))]
    drawn = sorted(drawn, key=rank) if rank else drawn
    curves = [
        replace(curve, state=replace(curve.state, axes=dict(axes)))
        for curve, axes in zip(family.curves, drawn, strict=True)
    ]
    return replace(family, curves=tuple(curves))


def test_an_axis_that_does_not_matter_is_flagged_as_seldom_as_stated(tmp_path: Path) -> None:
    family = searched(tmp_path / "run")
    flagged = sum(bool(edges(redrawn(family, seed))) for seed in range(500))
    assert flagged <= stats.binom.ppf(0.999, 500, 0.05)


def test_an_optimum_in_the_middle_is_not_flagged_and_one_at_the_end_is(tmp_path: Path) -> None:
    family = searched(tmp_path / "run")

    def miss(best: float) -> Any:
        return lambda axes: -abs(math.log10(axes["recipe.learning_rate"] / best))

    middle = [edges(redrawn(family, seed, miss(1e-3))) for seed in range(50)]
    assert not any(edge.axis == "recipe.learning_rate" for found in middle for edge in found)
    ends = [edges(redrawn(family, seed, miss(1e-2))) for seed in range(50)]
    flags = [e for found in ends for e in found if e.axis == "recipe.learning_rate"]
    assert {edge.end for edge in flags} == {"high"}
    assert len(flags) > 25
    assert all(0 < edge.p_value_holm <= 0.05 < edge.there / edge.top for edge in flags)


def test_eight_trials_flag_no_edge(tmp_path: Path) -> None:
    """Not even where the best have the highest rates: that happens by chance."""
    family = searched(tmp_path / "run", trials=8)
    for seed in range(20):
        by_rate = redrawn(family, seed, lambda axes: axes["recipe.learning_rate"])
        assert edges(by_rate) == []


def test_a_pile_at_an_end_is_said(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    for index in range(24):
        rate = 9.5e-3 if index < EDGE_TOP else 1e-4 * 1.15**index
        run.trial("vit", [0.9 - 0.01 * index], learning_rate=rate, batch_size_per_worker=32)
    run.close()
    text = " ".join(shown(run.folder).split())
    assert "5 of the 5 best trials have a learning_rate in the outer 15 % at the high end" in text
    edge = compared(run.folder)["families"][0]["edges"][0]
    assert (edge["axis"], edge["end"], edge["there"]) == ("recipe.learning_rate", "high", 5)


def test_without_random_draws_no_edge_is_flagged(tmp_path: Path) -> None:
    family = searched(tmp_path / "run")
    assert family.sweep
    by_rate = (redrawn(family, seed, lambda a: a["recipe.learning_rate"]) for seed in range(50))
    flagged = next(family for family in by_rate if edges(family))
    tpe = replace(family.sweep, scheduler=replace(family.sweep.scheduler, sampler="tpe"))
    assert edges(replace(flagged, sweep=tpe)) == []
