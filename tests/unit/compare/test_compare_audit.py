"""The audit of pruning and the finals, against ledgers worked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from orchestrator.compare.audit import weighted_tau
from orchestrator.compare.runs import load
from orchestrator.compare.statistics import mean_interval, share_interval
from tests.unit.compare.compare_runs import DATASET, RunFolder, compared, probes, shown


def test_an_audit_by_hand(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit", "resnet"))
    run.trial("vit", [0.50, 0.70, 0.80], promoted=(1, 2))
    run.trial("vit", [0.45, 0.60, 0.75], promoted=(1, 2))
    run.trial("vit", [0.40, 0.65, 0.85], promoted=(1,), audited=2, seconds=10.0)
    run.trial("vit", [0.30, 0.50, 0.60], audited=1, seconds=10.0)
    run.trial("vit", [0.20], end="pruned")
    run.trial("vit", [0.10, 0.10], audited=1, end="failed")
    run.trial("resnet", [0.5])
    audit = compared(run.close())["audit"]
    assert [entry["family"] for entry in audit["families"]] == ["vit"]
    vit = audit["families"][0]
    assert (vit["pruned"], vit["audited"], vit["ended"]) == (4, 3, 3)
    assert vit["regret_top1"] == pytest.approx(0.05)
    assert vit["seconds"] == pytest.approx(11.0 + 22.0 + 2.2)
    first, second = vit["kendall_tau_by_rung"]
    final = [0.80, 0.75, 0.85, 0.60]
    assert (first["rung"], first["n"], second["rung"], second["n"]) == (1, 4, 2, 4)
    # Four were pruned and three of them audited, one of which failed: each stands for 4 / 3.
    repeated = [3, 3, 4, 4]
    for entry, early in ((first, [0.5, 0.45, 0.4, 0.3]), (second, [0.7, 0.6, 0.65, 0.5])):
        whole = stats.kendalltau(np.repeat(early, repeated), np.repeat(final, repeated))
        assert entry["tau"] == pytest.approx(whole.statistic)
        assert (entry["low"], entry["high"]) == (None, None)
    assert vit["better"] == vars(share_interval(1, 3))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(1, 4)),
                min_size=3, max_size=9))  # fmt: skip
def test_a_weight_is_so_many_trials(rows: list[tuple[int, int, int]]) -> None:
    x, y, weights = np.array(rows).T
    expected = stats.kendalltau(np.repeat(x, weights), np.repeat(y, weights)).statistic
    tau, low, high = weighted_tau(x, y, weights)
    assert tau == pytest.approx(None if np.isnan(expected) else expected)
    assert (low is None) == (high is None) == (tau is None or len(x) < 5)
    if tau is not None and low is not None and high is not None:
        assert -1 <= low <= tau <= high <= 1
        assert high > low


@pytest.mark.parametrize("n", [5, 8, 12, 24])
@pytest.mark.parametrize("true", [-0.3, 0.0, 0.6, 0.9])
def test_the_interval_of_tau_covers_it(n: int, true: float) -> None:
    draw, correlation, samples = np.random.default_rng(n), np.sin(np.pi / 2 * true), 400
    held = 0
    for _ in range(samples):
        x = draw.normal(size=n)
        y = correlation * x + np.sqrt(1 - correlation**2) * draw.normal(size=n)
        _, low, high = weighted_tau(x, y, np.ones(n))
        assert low is not None
        assert high is not None
        held += low <= true <= high
    assert held / samples >= 0.93


def test_a_perfect_order_of_few_trials_still_has_an_interval() -> None:
    order = np.arange(5.0)
    tau, low, high = weighted_tau(order, order, np.ones(5))
    assert (tau, high) == (pytest.approx(1.0), pytest.approx(1.0))
    assert low is not None
    assert low < 0.7


def test_the_terminal_names_the_audit(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    for value in (0.8, 0.7, 0.6):
        run.trial("vit", [value - 0.3, value], promoted=(1,))
    run.trial("vit", [0.2, 0.85], audited=1)
    text = " ".join(shown(run.close()).split())
    assert "vit: 1 of 1 pruned trials finished anyway; regret 5.0 points; Kendall's tau" in text
    assert "0.00 (no interval, n = 4) at epoch 1" in text


def test_pruning_that_lost_nothing_has_no_regret(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    run.trial("vit", [0.5, 0.8])
    run.trial("vit", [0.4, 0.6], audited=1)
    entry = compared(run.close())["audit"]["families"][0]
    assert entry["regret_top1"] == 0.0
    assert entry["kendall_tau_by_rung"] == [
        {"rung": 1, "tau": None, "n": 2, "low": None, "high": None, "level": 0.95}
    ]


def test_an_audit_that_still_runs_is_not_judged(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    run.trial("vit", [0.5, 0.8])
    run.trial("vit", [0.4, 0.9], audited=1, end=None)
    entry = compared(run.close(None))["audit"]["families"][0]
    assert (entry["audited"], entry["ended"], entry["regret_top1"]) == (1, 0, None)


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (0, 9), (3, 12), (5, 5)])
def test_a_share_has_statsmodels_exact_interval(hits: int, n: int) -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    made = share_interval(hits, n)
    expected = proportion.proportion_confint(hits, n, method="beta")
    assert (made.low, made.high) == pytest.approx(expected)


def finals(folder: Path, **more: Any) -> RunFolder:
    run = RunFolder(folder)
    draw = np.random.default_rng(0)
    for family in ("resnet", "vit"):
        winner = run.trial(family, [0.5, 0.95])
        run.trial(family, [0.5, 0.97], end="pruned")
        for seed in range(3):
            correct = draw.random(500) < 0.8
            patch = 4 if family == "vit" else None
            found = probes(patch, seed=seed)
            run.final(family, correct, seed=seed, winner=winner, probes=found, **more)
    return run


def test_the_gap_from_validation_to_test(tmp_path: Path) -> None:
    made = compared(finals(tmp_path / "run").close())
    vit = next(entry for entry in made["gap"] if entry["family"] == "vit")
    trials = load(tmp_path / "run").state.trials
    top1 = [trials[f"vit-final-{i:04d}"].outcome["test"]["top1"] for i in (2, 3, 4)]
    assert vit["search_val_top1"] == 0.95
    assert vit["final_val_top1"]["mean"] == pytest.approx(0.9)
    assert vit["selection"] == pytest.approx(0.05)
    assert vit["to_test"]["mean"] == pytest.approx(0.9 - np.mean(top1))
    # Seeds by their spread, 180 validation images of one split and 500 test images as binomials.
    # Two right ones and two wrong ones are added: Agresti and Coull 1998.
    share_val, share_test = (0.9 * 180 + 2) / 184, (np.mean(top1) * 500 + 2) / 504
    parts = [(np.var(top1, ddof=1) / 3, 2), (share_val * (1 - share_val) / 184, 183),
             (share_test * (1 - share_test) / 504, 503)]  # fmt: skip
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / df for part, df in parts)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    assert vit["to_test"]["high"] - vit["to_test"]["mean"] == pytest.approx(half)


def test_both_ends_of_the_gap_are_of_the_last_epoch(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    winner = run.trial("vit", [0.5, 0.95])
    for seed in (0, 1):
        test = {"top1": 0.7, "n": 100}
        run.trial("vit", [0.9, 0.8], stage="final", seed=seed, winner=winner, test=test)
    (gap,) = compared(run.close())["gap"]
    assert gap["final_val_top1"]["mean"] == pytest.approx(0.8)
    assert gap["to_test"]["mean"] == pytest.approx(0.1)
    assert gap["to_test"]["low"] < 0.1 < gap["to_test"]["high"], "the seeds agree, images differ"


def test_other_validation_images_weigh_less_where_each_final_draws_its_own(tmp_path: Path) -> None:
    widths = []
    for name, splits in (("same", "xx"), ("own", "xy")):
        run = RunFolder(tmp_path / name, ("vit",))
        for seed, split in enumerate(splits):
            detail = {"val_images": 100, "dataset_hash": split}
            test = {"top1": 0.7, "n": 10_000}
            run.trial("vit", [0.8], stage="final", seed=seed, test=test, detail=detail)
        (gap,) = compared(run.close())["gap"]
        widths.append(gap["to_test"]["high"] - gap["to_test"]["low"])
    assert widths[1] < 0.75 * widths[0]


def test_one_final_has_an_interval_of_its_images_and_nothing_known_has_none(
    tmp_path: Path,
) -> None:
    for images in (100, 0):
        run = RunFolder(tmp_path / f"run-{images}", ("vit",), dataset={**DATASET, "counts": {}})
        detail = {"val_images": images} if images else {}
        test = {"top1": 1.0, "n": images} if images else {"top1": 1.0}
        run.trial("vit", [1.0], stage="final", test=test, detail=detail)
        (gap,) = compared(run.close())["gap"]
        if images:
            assert gap["to_test"]["low"] < 0 < gap["to_test"]["high"], "all right, not certain"
        else:
            assert gap["to_test"]["low"] is gap["to_test"]["high"] is None


def test_finals_seeds_are_paired(tmp_path: Path) -> None:
    folder = finals(tmp_path / "run").close()
    pair = compared(folder)["pairs"][0]
    trials = load(folder).state.trials
    accuracy = {
        family: [trials[f"{family}-final-{i:04d}"].outcome["test"]["top1"] for i in (2, 3, 4)]
        for family in ("resnet", "vit")
    }
    expected = stats.ttest_rel(accuracy["resnet"], accuracy["vit"]).pvalue
    assert pair["p_value_seeds"] == pytest.approx(expected)


def test_only_the_newest_round_of_finals_counts(tmp_path: Path) -> None:
    run = finals(tmp_path / "run")
    for seed in (7, 8):
        trial = f"vit-final2-{seed:02d}"
        run.ledger.append(
            "submitted", trial=trial, family="vit", stage="final",
            detail={"assignment": {"seed": seed, "epochs": 9}, "axes": {}, "winner": "vit-0001"},
        )  # fmt: skip
        run.ledger.append("started", trial=trial, attempt=1)
        run.ledger.append("finished", trial=trial, detail={"test": {"top1": 0.6}, "probes": {}})
    vit = next(e for e in compared(run.close())["families"] if e["family"] == "vit")["final"]
    assert (vit["seeds"], vit["winner"]) == ([7, 8], "vit-0001")
    assert vit["test_top1"]["mean"] == pytest.approx(0.6)


def test_probes_are_pooled_over_seeds(tmp_path: Path) -> None:
    made = compared(finals(tmp_path / "run").close())
    pooled = {entry["family"]: entry["final"]["probes"] for entry in made["families"]}
    raw = [probes(4, seed=seed) for seed in range(3)]
    vit = pooled["vit"]
    assert vit["n"] == 3
    eces = [one["calibration"]["ece"] for one in raw]
    error = vit["numbers"]["calibration.ece"]
    assert (error["mean"], error["n"]) == (pytest.approx(np.mean(eces)), 3)
    assert error["low"] < mean_interval(eces).low, "64 images say less than the seeds alone"
    latencies = [one["speed"]["batch_1"]["latency_ms"] for one in raw]
    plain = mean_interval(latencies, bounds=(0, np.inf))
    assert vit["numbers"]["speed.batch_1.latency_ms"] == pytest.approx(vars(plain))
    axis = np.array([one["shift"]["consistency"]["axis"] for one in raw])
    assert vit["series"]["shift.consistency.axis"]["mean"] == pytest.approx(axis.mean(axis=0))
    assert np.shape(vit["series"]["attention_distance_px"]["mean"]) == (6, 2)
    assert vit["facts"]["shift.offsets_px"] == [0, 1, 2, 3, 4]
    assert vit["facts"]["speed.device"] == "a processor"
    assert [row["count"] for row in vit["reliability"]] == [72, 120]
    sure = [one["calibration"]["bins"][1]["accuracy"] for one in raw]
    assert vit["reliability"][1]["accuracy"] == pytest.approx(np.mean(sure))
    assert "attention_distance_px" not in pooled["resnet"]["series"]


def test_an_accuracy_has_one_interval_whoever_states_it(tmp_path: Path) -> None:
    """That of finals, also where their probes have seen the same test images."""
    run, draw = RunFolder(tmp_path / "run", ("vit",)), np.random.default_rng(0)
    for seed in range(2):
        correct = draw.random(500) < 0.95
        found = {**probes(4), "split": "test", "images": 500, "top1": float(correct.mean())}
        run.final("vit", correct, seed=seed, probes=found)
    final = compared(run.close())["families"][0]["final"]
    probed = final["probes"]["numbers"]["top1"]
    assert probed["low"] < probed["mean"] < probed["high"]
    assert probed == {key: final["test_top1"][key] for key in probed}


def test_no_number_or_share_of_images_has_an_interval_of_zero_width(tmp_path: Path) -> None:
    """All seeds agree in everything."""
    run = RunFolder(tmp_path / "run", ("vit",))
    for seed in range(2):
        run.final("vit", np.ones(4, bool), seed=seed, probes=probes(4))
    pooled = compared(run.close())["families"][0]["final"]["probes"]
    known = {name for name, number in pooled["numbers"].items() if number["low"] is not None}
    assert known == {"top1", "calibration.ece"}, "speed did not vary, and no images tell"
    for number in pooled["numbers"].values():
        assert number["low"] is number["high"] is None or number["low"] < number["high"]
    for name, series in pooled["series"].items():
        if name == "attention_distance_px":
            assert series["low"] is None
        else:
            assert (np.array(series["low"]) < np.array(series["high"])).all()
            assert np.min(series["low"]) >= 0
            assert np.max(series["high"]) <= 1


def test_speed_of_one_model_has_the_interval_of_its_rounds(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    rounds = [2.0, 2.2, 1.9, 2.1, 2.0]
    speed = {
        "device": "x",
        "rounds": 5,
        "batch_1": {"latency_ms": 2.05, "images_per_second": 1e3 / 2.05, "round_ms": rounds},
    }
    finals = [run.final("vit", np.ones(4, bool), seed=s, probes={"top1": 1.0}) for s in (0, 1)]
    run.ledger.append("speed_measured", trial=finals[0], detail=speed)
    run.ledger.append("speed_measured", trial=finals[1], detail={}, reason="it was not measured")
    made = compared(run.close())
    pooled = made["families"][0]["final"]["probes"]
    half = stats.t.ppf(0.975, 4) * stats.sem(rounds)
    latency, throughput = (
        pooled["numbers"][f"speed.batch_1.{name}"] for name in ("latency_ms", "images_per_second")
    )
    assert latency["n"] == 1
    assert (latency["low"], latency["high"]) == pytest.approx((2.05 - half, 2.05 + half))
    assert throughput["low"] == pytest.approx(1e3 / (2.05 + half))
    assert throughput["high"] == pytest.approx(1e3 / (2.05 - half))
    assert pooled["facts"]["speed.device"] == "x"
    assert not any("round_ms" in name for name in pooled["series"])
    assert made["notes"] == ["it was not measured"]


@pytest.mark.parametrize(
    "odd", [{}, {"depth": None}, {"rows": [[1.0], [1.0, 2.0]]}, {"new": {"score": 0.5}, "w": "x"}]
)
def test_probes_of_another_version_do_no_harm(tmp_path: Path, odd: dict[str, Any]) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    for seed in (0, 1):
        run.final("vit", np.ones(4, bool), seed=seed, probes=odd)
    pooled = compared(run.close())["families"][0]["final"]["probes"]
    if "new" in odd:
        assert pooled["numbers"]["new.score"]["mean"] == 0.5
        assert pooled["facts"]["w"] == "x"
