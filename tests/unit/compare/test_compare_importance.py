"""Which axis matters and where its best lies, on trials whose law is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.compare.compare_runs import RunFolder, compared

PEAK = 1e-3


def known_law(
    folder: Path, *, trials: int, noise: float = 0.004, low: float = -4, high: float = -2,
    pruned: bool = True,
) -> dict[str, Any]:  # fmt: skip
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
    made = compared(run.close())
    json.dumps(made, allow_nan=False)
    return made


def test_the_axis_that_matters_comes_first(tmp_path: Path) -> None:
    made = known_law(tmp_path / "run", trials=60)["importance"][0]
    assert (made["epoch"], made["n"]) == (1, 60)  # the last epoch that all of them reached
    axes = {entry["axis"]: entry for entry in made["axes"]}
    assert next(iter(axes)) == "recipe.learning_rate"
    assert axes["recipe.learning_rate"]["low"] > 0.5
    assert axes["recipe.augment"]["share"] < 0.05
    assert made["explained"] > 0.6
    assert all(entry["low"] <= entry["share"] <= entry["high"] for entry in made["axes"])


def test_noise_is_not_called_important(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    draw = np.random.default_rng(0)
    for _ in range(40):
        run.trial(
            "vit", [float(draw.uniform(0.4, 0.6))],
            learning_rate=float(10 ** draw.uniform(-4, -2)),
            weight_decay=float(draw.uniform(0, 0.2)),
        )  # fmt: skip
    made = compared(run.close())["importance"][0]
    assert made["explained"] < 0.1
    assert all(entry["low"] < 0.05 for entry in made["axes"])


@pytest.mark.parametrize("trials", [0, 7])
def test_too_few_trials_say_nothing(tmp_path: Path, trials: int) -> None:
    made = known_law(tmp_path / "run", trials=trials)
    assert made["importance"] == []
    assert made["families"][0]["learning_rate_fit"] is None


def test_equal_accuracies_say_nothing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    for index in range(9):
        run.trial("vit", [0.5], learning_rate=1e-4 * (1 + index))
    assert compared(run.close())["importance"] == []


def test_the_basin_of_a_known_parabola(tmp_path: Path) -> None:
    """Within 2 points of a top that falls 10 points a squared decade: 0.45 decades each side."""
    found = known_law(tmp_path / "run", trials=80, pruned=False)["families"][0]
    made = found["learning_rate_fit"]
    assert (made["epoch"], made["at_edge"]) == (2, None)
    assert made["best"] == pytest.approx(PEAK, rel=0.15)
    assert made["decades"] == pytest.approx(2 * np.sqrt(0.2), rel=0.15)
    assert made["low"] < PEAK < made["high"]


@pytest.mark.parametrize(("low", "high", "edge"), [(-4, -3.3, "high"), (-2.6, -2, "low")])
def test_a_best_rate_outside_the_range_is_at_its_edge(
    tmp_path: Path, low: float, high: float, edge: str
) -> None:
    found = known_law(tmp_path / "run", trials=40, low=low, high=high, noise=0.001)
    made = found["families"][0]["learning_rate_fit"]
    assert made["at_edge"] == edge
    assert 10**low <= made["low"] <= made["best"] <= made["high"] <= 10**high
