"""The rule of the claims: statistics against scipy and statsmodels, readings by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from orchestrator.claims.effects import ROUNDING, Effect, judge, line
from orchestrator.claims.experiments.conv_stem_converges_faster import events
from orchestrator.claims.experiments.lr_lower_for_vit import _lower, optimum
from orchestrator.claims.results import TrialResult, at_flops, elsewhere, reached
from orchestrator.claims.verdict import interval_text
from orchestrator.compare.statistics import mean_interval
from orchestrator.ledger.state import ReportedEpoch, TrialState, TrialStatus
from trainables.config import Assignment, BackboneSpec

VALUES = (0.031, 0.012, 0.044, 0.027, 0.019)


def effect(values: tuple[float, ...] = VALUES, bound: str = "exact") -> Effect:
    return Effect(name="e", values=values, unit="points", bound=bound)


def result(accuracy: list[float], *, flops: list[float] | None = None, status: str = "finished",
         asked: int | None = None, chance: float = 0.1) -> TrialResult:  # fmt: skip
    assignment = Assignment(
        trial_id="vit-0000", backbone=BackboneSpec(family="vit"), epochs=asked or len(accuracy)
    )
    trial = TrialState("vit-0000", "vit", assignment, status=TrialStatus(status))
    for epoch, value in enumerate(accuracy, start=1):
        metrics = {"val_top1": value, "flops": (flops or [epoch * 1e9] * epoch)[epoch - 1]}
        trial.reports[epoch] = ReportedEpoch(epoch, 0.0, metrics)
    return TrialResult(trial=trial, seed=0, chance=chance)


@pytest.mark.parametrize("smallest", [0.0, 0.01, 0.05])
def test_p_values_and_intervals_are_students(smallest: float) -> None:
    verdict, (one,) = judge([effect()], smallest=smallest, alpha=0.05)
    side = "greater" if np.mean(VALUES) > smallest else "less"
    expected = stats.ttest_1samp(VALUES, smallest, alternative=side).pvalue
    assert one["p_value"] == pytest.approx(expected, rel=1e-9)
    assert one["p_value_holm"] == one["p_value"]
    assert verdict == ({"greater": "supported", "less": "refuted"}[side]
                       if expected <= 0.05 else "undetermined")  # fmt: skip
    interval = vars(mean_interval(VALUES, 0.9))
    assert {key: one[key] for key in interval} == interval
    # At one effect the interval and the verdict say the same thing.
    assert (one["low"] > smallest) == (verdict == "supported")
    assert (one["high"] < smallest) == (verdict == "refuted")


def test_several_effects_share_alpha_by_holm() -> None:
    good, poor = effect(), effect((0.030, 0.000, 0.050, 0.010, 0.025))
    alone = judge([poor], smallest=0.0, alpha=0.05)[1][0]["p_value"]
    assert 0.025 < alone < 0.05
    verdict, (first, second) = judge([good, poor], smallest=0.0, alpha=0.05)
    assert first["p_value_holm"] == pytest.approx(2 * first["p_value"])
    assert second["p_value_holm"] == pytest.approx(alone)
    assert verdict == "supported"
    # Two of the poor kind: the smaller of their p-values is doubled and says nothing any more.
    verdict, judged = judge([poor, poor], smallest=0.0, alpha=0.05)
    assert [one["verdict"] for one in judged] == ["undetermined", "undetermined"]
    assert verdict == "undetermined"
    against = effect(tuple(-value for value in VALUES))
    assert judge([good, against], smallest=0.0, alpha=0.05)[0] == "refuted"


@pytest.mark.parametrize(
    ("values", "bound", "expected"),
    [
        ((0.5,), "exact", "undetermined"),  # one seed
        ((0.5, 0.5, 0.5), "exact", "undetermined"),  # no spread is no certainty
        (VALUES, "at least", "supported"),
        (VALUES, "at most", "undetermined"),
        (VALUES, "unknown", "undetermined"),
        (tuple(-v for v in VALUES), "at most", "refuted"),
        (tuple(-v for v in VALUES), "at least", "undetermined"),
    ],
)
def test_what_is_not_known_does_not_decide(
    values: tuple[float, ...], bound: str, expected: str
) -> None:
    verdict, (one,) = judge([effect(values, bound)], smallest=0.005, alpha=0.05)
    assert verdict == expected
    assert (one["low"] is None) == (len(set(values)) == 1)


@given(
    values=st.lists(st.floats(-1, 1), min_size=1, max_size=8),
    same=st.booleans(),
    unit=st.sampled_from(["points", "ratio", "decades"]),
)
def test_no_interval_has_a_width_of_zero(values: list[float], same: bool, unit: str) -> None:
    """Nor looks as if: seeds that agree but for rounding have none, and it is said why."""
    values = values[:1] * len(values) if same else values
    one = Effect("e", values, unit).summary(0.05)
    if one["low"] is None:
        assert len(values) == 1 or np.ptp(values) <= ROUNDING
        why = "no interval)" if len(values) == 1 else "no interval: all seeds gave the same)"
        assert why in interval_text(one)
        return
    assert one["low"] < one["mean"] < one["high"]
    low, _, high = interval_text(one).partition(" interval ")[2].partition(" to ")
    assert low != high.partition(",")[0].removesuffix(" points").removesuffix(" decades")


def test_seeds_that_differ_by_rounding_alone_show_nothing() -> None:
    """The mean of three equal numbers is not always that number: its error is 1e-17, not 0."""
    verdict, (one,) = judge([effect((0.1, 0.1, 0.1))], smallest=0.01, alpha=0.05)
    assert verdict == "undetermined"
    assert one["p_value"] == 1.0
    assert (one["low"], one["high"]) == (None, None)


@given(
    values=st.lists(st.floats(-1, 1), min_size=2, max_size=8),
    smallest=st.floats(-0.5, 0.5),
    more=st.floats(0, 1),
)
def test_more_of_the_effect_never_speaks_against_it(
    values: list[float], smallest: float, more: float
) -> None:
    order = ("refuted", "undetermined", "supported")
    less_is, _ = judge([effect(tuple(values))], smallest=smallest, alpha=0.05)
    raised = tuple(value + more for value in values)
    if min(np.ptp(values), np.ptp(raised)) <= 2 * ROUNDING:
        return
    more_is, _ = judge([effect(raised)], smallest=smallest, alpha=0.05)
    assert order.index(more_is) >= order.index(less_is)


def test_the_power_it_names_is_the_power_it_has() -> None:
    """Worlds with the effect that is called detectable are supported in 4 of 5 cases."""
    rng = np.random.default_rng(0)
    sd, n = 0.02, 5
    error = sd / np.sqrt(n)
    freedom = n - 1
    true = 0.01 + (stats.t.ppf(0.95, freedom) + stats.t.ppf(0.8, freedom)) * error
    drawn = rng.normal(true, sd, (2000, n))
    judged = [judge([effect(tuple(row))], smallest=0.01, alpha=0.05) for row in drawn]
    share = np.mean([verdict == "supported" for verdict, _ in judged])
    assert 0.75 < share < 0.87
    named = np.mean([one["detectable"] for _, (one,) in judged])
    assert named == pytest.approx(true, rel=0.1)


def test_elsewhere_chooses_without_looking_at_the_seed_itself() -> None:
    rng = np.random.default_rng(0)
    table = {level: rng.normal(size=6) for level in "abc"}
    found = elsewhere(np.stack([*table.values()]))
    for seed in range(6):
        means = {level: np.delete(row, seed).mean() for level, row in table.items()}
        assert found[seed] == table[max(means, key=lambda level: means[level])][seed]
    # Among equal levels the best of all would look 0.5 standard deviations better than it is.
    drawn = rng.normal(size=(4000, 2, 5))
    chosen = np.mean([elsewhere(np.stack([a, b])).mean() for a, b in drawn])
    assert abs(chosen) < 0.03


def test_readings_off_a_curve() -> None:
    one = result([0.2, 0.5, 0.45, 0.6], flops=[1e9, 2e9, 4e9, 8e9])
    assert reached(one, 0.05, one.epochs) == 0.0  # guessing does it
    assert reached(one, 0.15, one.epochs) == pytest.approx(0.5)  # half-way from chance at 0
    assert reached(one, 0.35, one.epochs) == pytest.approx(1.5)
    assert reached(one, 0.55, one.epochs) == pytest.approx(3 + 2 / 3)
    assert reached(one, 0.61, one.epochs) is None
    assert at_flops(one, 4e9) == pytest.approx(0.45)
    assert at_flops(one, np.sqrt(2) * 1e9) == pytest.approx(0.35)


@given(
    best=st.integers(1, 3),
    off=st.floats(-0.24, 0.24),
    curvature=st.floats(0.01, 1),
    steps=st.lists(st.floats(0.3, 0.7), min_size=4, max_size=4),
)
def test_the_top_of_a_parabola_is_found_exactly(
    best: int, off: float, curvature: float, steps: list[float]
) -> None:
    x = np.concatenate(([-4.0], -4.0 + np.cumsum(steps)))
    top = x[best] + off * min(steps)
    found = optimum(10**x, 0.6 - curvature * (x - top) ** 2)
    assert found.at == pytest.approx(top, abs=1e-6)
    assert found.edge is None


def test_an_optimum_on_the_edge_is_a_bound() -> None:
    rates = np.array([1e-3, 1e-2, 1e-1])
    low, high = (optimum(rates, np.array(a)) for a in ([0.5, 0.4, 0.3], [0.3, 0.4, 0.5]))
    middle = optimum(rates, np.array([0.45, 0.5, 0.4]))
    assert (low.edge, high.edge, middle.edge) == ("low", "high", None)
    assert low.basin == pytest.approx(0.2)
    assert middle.basin == pytest.approx(0.4 + 0.2)
    assert _lower("e", [low, middle], [middle, middle]).bound == "at least"
    assert _lower("e", [middle, middle], [middle, high]).bound == "at least"
    assert _lower("e", [high, middle], [middle, middle]).bound == "at most"
    assert _lower("e", [high, middle], [high, middle]).bound == "unknown"
    assert _lower("e", [middle, middle], [middle, middle]).bound == "exact"


def test_survival_is_that_of_statsmodels() -> None:
    from scipy.stats import CensoredData, ecdf, logrank
    from statsmodels.duration.survfunc import SurvfuncRight, survdiff

    rng = np.random.default_rng(1)
    groups = []
    for slow in (2.0, 4.0):
        tops = [0.1 + 0.2 * np.minimum(1, np.arange(1, 9) / (slow * rng.uniform(0.5, 3)))
                for _ in range(12)]  # fmt: skip
        groups.append(events([result(list(top), asked=8) for top in tops], 0.2))
    assert not all(there.all() for _, there in groups)  # some runs are censored
    for lasted, there in groups:
        ours = ecdf(CensoredData(uncensored=lasted[there], right=lasted[~there])).sf
        theirs = SurvfuncRight(lasted, there.astype(int))
        for time, left in zip(theirs.surv_times, theirs.surv_prob, strict=True):
            assert ours.evaluate(time) == pytest.approx(left)
    lasted, there = (np.concatenate(part) for part in zip(*groups, strict=True))
    arm = np.repeat([0, 1], [len(groups[0][0]), len(groups[1][0])])
    samples = [CensoredData(uncensored=t[e], right=t[~e]) for t, e in groups]
    expected = survdiff(lasted, there.astype(int), arm)[1]
    assert logrank(*samples).pvalue == pytest.approx(expected, rel=1e-6)


def test_a_picture_has_the_intervals_of_the_comparison() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.1, (4, 3))
    drawn = line("s", 0, (1.0, 2.0, 3.0), values)
    for i, column in enumerate(values.T):
        expected = mean_interval(list(column))
        for key in ("mean", "low", "high"):
            assert drawn[key][i] == pytest.approx(getattr(expected, key), rel=1e-4)
    values[:, 1] = 0.5
    drawn = line("s", 0, (1.0, 2.0, 3.0), values)
    assert (drawn["low"][1], drawn["high"][1]) == (None, None)
    assert drawn["low"][0] < drawn["high"][0]
