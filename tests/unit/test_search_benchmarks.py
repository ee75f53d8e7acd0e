"""The benchmarks of rungs and samplers compare like with like, and end with one line."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks import rungs, samplers, screening
from benchmarks.common import RESULTS, ROOT
from orchestrator.compare.winners import winners
from orchestrator.simulate.run import simulate
from orchestrator.spec.limits import SchedulerSpec


@pytest.mark.parametrize("variant", list(rungs.VARIANTS))
def test_a_race_is_what_a_simulated_run_decides(variant: str, tmp_path: Path) -> None:
    """Oracle: the whole run, with its ledger."""
    for seed in range(2):
        search, scheduler = rungs.in_world("chance at first", seed), rungs.VARIANTS[variant]
        sweep = replace(search.spec.sweeps[0], scheduler=scheduler)
        state = simulate(
            replace(search.spec, sweeps=(sweep,)), search.world, tmp_path / str(seed),
            slots=rungs.SLOTS, images=search.images,
        ).state  # fmt: skip
        result = rungs.race(search, scheduler)
        pruned = {name for name, trial in state.trials.items() if trial.status == "pruned"}
        assert result.pruned == pruned
        assert result.epochs == sum(trial.epoch for trial in state.trials.values())
        assert result.chosen == winners(state)["resnet"].trial


def test_sparing_trials_only_adds_to_what_is_trained() -> None:
    results = rungs.outcomes(rungs.in_world("chance at first", 0))
    assert results["none"].epochs == rungs.TRIALS * SchedulerSpec().max_epochs
    assert not results["none"].pruned
    assert all(one.epochs <= results["none"].epochs for one in results.values())
    for variant in ("cutoff", "chance", "both"):
        assert results[variant].epochs >= results["plain"].epochs


def test_a_pruned_eventual_winner_is_counted() -> None:
    """Over some searches plain ASHA prunes a few, and then chose another trial."""
    searches = [rungs.outcomes(rungs.in_world("chance at first", seed)) for seed in range(12)]
    missed = [results for results in searches if rungs.winner_pruned(results, "plain")]
    assert missed
    assert all(results["plain"].chosen != results["none"].chosen for results in missed)


def test_searches_on_record_are_of_different_trials() -> None:
    spec = rungs.on_record("vit", 0).spec
    assert [sweep.family for sweep in spec.sweeps] == ["vit"]
    truths = {rungs.outcomes(rungs.on_record("vit", seed))["none"].truth for seed in range(4)}
    assert len(truths) > 1


def test_rungs_end_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rungs.json"
    monkeypatch.setattr(rungs, "IN_WORLDS", ("null",))
    monkeypatch.setattr(rungs, "VARIANTS", {k: rungs.VARIANTS[k] for k in ("plain", "both")})
    arguments = ["rungs", "--quick", "--repetitions", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    rungs.main()
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    result = json.loads(out.read_text())
    assert set(result["curves"]) == {"null", *(f"recorded: {f}" for f in FAMILIES)}
    assert last["at_equal_cost"]["null"]["plain"] == {"mean": 0, "low": 0, "high": 0}
    assert result["curves"]["null"]["variants"]["both"]["cost"]["n"] == 2


FAMILIES = ("resnet", "vit", "convnext")


def test_a_recipe_on_record_has_its_own_curve() -> None:
    surface = samplers.surfaces()["recorded: vit"]
    assert isinstance(surface, samplers.OnRecord)
    for trial in surface.trials[:3]:
        assert trial.axes is not None
        values, truth = surface.train(trial.axes, 0, 0)
        assert (values, truth) == (trial.values(), trial.best()[0])
    assert set(surface.given) == set(surface.space)


@pytest.mark.parametrize("sampler", list(samplers.SAMPLERS))
def test_the_given_recipe_is_trial_0_of_every_sampler(
    sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    surface = samplers.surfaces()["null"]
    drawn: list[Any] = []
    train = type(surface).train

    def noted(self: Any, axes: Any, index: int, seed: int) -> Any:
        drawn.append(axes)
        return train(self, axes, index, seed)

    monkeypatch.setattr(type(surface), "train", noted)
    monkeypatch.setattr(samplers, "TRIALS", (3, 6))
    chosen = samplers.found(surface, sampler, has_given=True, seed=0)
    assert set(chosen) == {3, 6}
    assert drawn[0] == surface.given
    assert len({tuple(axes.values()) for axes in drawn}) == 6


def test_samplers_end_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "samplers.json"
    monkeypatch.setattr(samplers, "IN_WORLDS", ("null",))
    monkeypatch.setattr(samplers, "TRIALS", (3, 6))
    monkeypatch.setattr(sys, "argv", ["samplers", "--quick", "--out", str(out)])
    samplers.main()
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    result = json.loads(out.read_text())
    curve = result["curves"]["null"]["from_recipe"]["6"]
    assert set(curve) == set(samplers.SAMPLERS)
    assert curve["random"]["difference"]["mean"] == 0
    assert last["less_random"]["alone"]["3"]["sobol"]["mean"] == pytest.approx(
        result["together"]["alone"]["3"]["sobol"]["mean"], abs=1e-4
    )


def test_a_simulated_probe_ranks_a_pool_as_well_as_is_said() -> None:
    def correlation(world: str, number: int) -> float:
        truth, probe = screening.pool(world, 0.6, np.random.default_rng(number))
        return float(stats.spearmanr(truth, probe).statistic)

    for world in screening.WORLDS:
        means = [correlation(world, number) for number in range(300)]
        assert np.mean(means) == pytest.approx(0.6, abs=0.03)


def test_a_longer_list_and_an_audit_cost_the_same() -> None:
    rows = screening.setting("normal", 0.6, 30)
    assert [row["audited"] for row in rows] == [0, 4, 9, 18]
    shares = [row["has_best"]["share"] for row in rows]
    assert shares == sorted(shares)  # a larger part holds the smaller one
    assert rows[0]["has_best"] == rows[0]["has_best_at_equal_cost"]
    assert rows[0]["correlation_error"] is None


def test_a_whole_pool_gives_its_own_rank_correlation() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 40))
    ones = np.ones(40)
    assert screening.weighted_spearman(a, b, ones) == pytest.approx(stats.spearmanr(a, b).statistic)


def test_the_docs_say_what_the_screening_benchmark_found() -> None:
    found = json.loads((RESULTS / "screening.json").read_text())
    shares = found["has_best_at_rank_correlation_0.6"]
    (audited,) = (
        row
        for row in found["settings"]
        if (row["world"], row["rank_correlation"], row["audit"]) == ("normal", 0.6, 0.2)
    )
    (thousand,) = (row for row in found["not_told_apart"] if row["images"] == 1000)
    wrong = thousand["wrong"]
    said = " ".join((ROOT / "docs" / "candidates.md").read_text().split())
    for words in (
        f"five best in {100 * shares['0.0']:.1f} % of simulated pools",
        f"in {100 * shares['0.2']:.0f} % with an audit of 0.2",
        f"have it in {100 * audited['has_best_at_equal_cost']['share']:.0f} %",
        f"an error of {audited['correlation_error']:.2f}",
        f"{wrong['share'] * wrong['n']:.0f} of {wrong['n']} pools at 1,000 images",
        f"named {thousand['named']['mean']:.0f} of 45",
    ):
        assert words in said
