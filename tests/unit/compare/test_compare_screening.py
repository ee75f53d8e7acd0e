"""A screen audited: rank correlation and regret by hand, and how often their intervals hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from orchestrator.compare.comparison import Comparison, compare
from orchestrator.compare.report.page import report_html
from orchestrator.compare.runs import CandidateTrials, Curve, curve_of, load
from orchestrator.compare.screening import (
    NOTHING_AUDITED,
    Role,
    rank_correlation,
    regret,
    weighted_spearman,
)
from orchestrator.compare.shortlist import shortlist
from orchestrator.compare.statistics import share_interval
from orchestrator.compare.table import table_text
from orchestrator.ledger.events import Ledger
from orchestrator.ledger.state import Stage, TrialState, TrialStatus
from orchestrator.spec.run import RunSpec, SweepSpec
from orchestrator.spec.screening import ScreenSpec
from tests.unit.compare.compare_runs import DATASET
from tests.unit.screen.screens import write
from trainables.config import Assignment, BackboneSpec, DataSpec, Recipe, Screened

PROBES = {"a": 380, "b": 370, "c": 360, "d": 300, "e": 280, "f": 250, "g": 200, "h": 100}
IMAGES = 400


def backbone(label: str) -> BackboneSpec:
    return BackboneSpec(family="timm", model=label, weights="none", image_size=32)


def screen(storage: Path, *, audit: float, name: str = "s") -> list[str]:
    """A screen of eight, two of them shortlisted; who is audited."""
    spec = ScreenSpec(
        name=name, storage=str(storage), top=2, audit=audit,
        candidates={label: backbone(label) for label in PROBES},
    )  # fmt: skip
    found = {
        label: Screened(
            label=label, linear_top1=right / IMAGES, val_images=IMAGES, train_images=10,
            correct=np.packbits(np.arange(IMAGES) < right).tobytes().hex(),
        )
        for label, right in PROBES.items()
    }  # fmt: skip
    write(spec.folder, spec, *found.values(), closed=True)
    return list(shortlist(spec, found, {}).audited)


def tournament(
    storage: Path,
    name: str,
    tuned: dict[str, float],
    *,
    of: str = "s",
    failed: tuple[str, ...] = (),
) -> Path:
    """Three finals, of three searches, for each candidate; ``tuned`` are its accuracies."""
    labels = tuple(tuned)
    sweeps = tuple(
        SweepSpec(backbone=backbone(label), label=label, data=DataSpec()) for label in labels
    )
    spec = RunSpec(name=name, sweeps=sweeps, searches=3, final_seeds=1, from_screen=of)
    folder = storage / name
    ledger = Ledger(folder / "ledger.jsonl")
    ledger.append("created", detail={
        "schema": 1, "run": name, "spec": spec.as_dict(), "datasets": dict.fromkeys(labels, DATASET)
    })  # fmt: skip
    for label, top1 in tuned.items():
        for search, shift in ((1, -0.01), (2, 0.0), (3, 0.01)):
            trial = f"{label}-s{search}-final-00"
            assignment = Assignment(
                trial_id=trial, attempt=1, backbone=backbone(label), recipe=Recipe(),
                data=DataSpec(), seed=search, epochs=1,
            )  # fmt: skip
            ledger.append(
                "submitted", trial=trial, family="timm", candidate=label, stage="final",
                search=search, detail={"assignment": assignment.as_dict(), "axes": {}},
            )  # fmt: skip
            ledger.append("started", trial=trial, attempt=1, slot="slot-0", detail={})
            ledger.append("reported", trial=trial, attempt=1, epoch=1,
                          metrics={"val_top1": top1, "train_seconds": 1.0})  # fmt: skip
            if label in failed and search == 3:
                ledger.append("failed", trial=trial, reason="diverged: loss is nan")
            else:
                test = {"top1": top1 + shift, "n": 1000}
                ledger.append("finished", trial=trial, detail={"test": test})
    ledger.append("closed")
    ledger.close()
    return folder


def compared(*folders: Path) -> Comparison:
    return compare([load(folder) for folder in folders], forests=False)


def test_from_screen_is_read_and_changes_no_hash() -> None:
    spec = RunSpec(name="r", sweeps=(SweepSpec(backbone=backbone("a")),))
    begun = RunSpec(name="r", sweeps=spec.sweeps, from_screen="s")
    assert begun.hash() == spec.hash()
    assert RunSpec.from_dict(begun.as_dict()) == begun
    before = {key: value for key, value in spec.as_dict().items() if key != "from_screen"}
    assert RunSpec.from_dict(before).from_screen is None


def test_an_audited_screen_by_hand(tmp_path: Path) -> None:
    audited = screen(tmp_path, audit=0.5)
    assert len(audited) == 3
    tuned = {"a": 0.80, "b": 0.85, **dict(zip(sorted(audited), (0.90, 0.70, 0.60), strict=True))}
    made = compared(tournament(tmp_path, "t", tuned))
    assert made.screening is not None
    (audit,) = made.screening.audits
    assert (audit.screened_out, audit.audited, audit.missing) == (6, 3, {})
    assert {p.label: p.role for p in audit.participants} == {
        "a": Role.SHORTLIST, "b": Role.SHORTLIST, **dict.fromkeys(audited, Role.AUDIT)
    }  # fmt: skip
    assert {p.stands_for for p in audit.participants if p.role is Role.AUDIT} == {2.0}
    # Each audited one twice is the whole pool of eight.
    labels = ["a", "b", *sorted(audited), *sorted(audited)]
    whole = stats.spearmanr([PROBES[label] for label in labels], [tuned[label] for label in labels])
    assert audit.correlation is not None
    assert audit.correlation.rho == pytest.approx(whole.statistic)
    assert audit.regret_shortlist is not None
    assert audit.regret_first is not None
    best = sorted(audited)[0]
    assert audit.regret_shortlist.mean == pytest.approx(0.05)
    assert (audit.regret_shortlist.best, audit.regret_shortlist.trusted) == (best, "b")
    assert audit.regret_first.mean == pytest.approx(0.10)
    for one in (audit.regret_shortlist, audit.regret_first):
        assert one.low is not None
        assert one.high is not None
        assert 0 <= one.low <= one.mean <= one.high
    assert made.screening.record.first_best == share_interval(0, 1)
    text, page = " ".join(table_text(made).split()), report_html(made)
    assert "regret of trusting the shortlist: 5.0 points (95 % interval" in text
    assert "in 0 of 1 tournament (exact 95 % interval 0–98 %" in text
    assert '<section id="screening">' in page
    plain = json.loads(json.dumps(made.as_dict(), allow_nan=False))
    assert plain["screening"]["audits"][0]["regret_first"]["trusted"] == "a"
    assert plain["screening"]["record"]["runs"] == ["t"]


def test_without_an_audit_nothing_stands_for_the_others(tmp_path: Path) -> None:
    screen(tmp_path, audit=0.0)
    made = compared(tournament(tmp_path, "t", {"a": 0.9, "b": 0.8}))
    assert made.screening is not None
    (audit,) = made.screening.audits
    assert (audit.correlation, audit.regret_shortlist) == (None, None)
    assert audit.why == dict.fromkeys(("correlation", "regret_shortlist"), NOTHING_AUDITED)
    assert audit.first_was_best is True
    assert audit.shortlist_had_best is None
    assert made.screening.record.shortlist_best is None
    assert f"missing, {NOTHING_AUDITED}" in " ".join(table_text(made).split())


def test_failed_finals_and_other_backbones_say_nothing_and_are_named(tmp_path: Path) -> None:
    screen(tmp_path, audit=0.0)
    tuned = {"a": 0.9, "b": 0.8, "stranger": 0.95}
    made = compared(tournament(tmp_path, "t", tuned, failed=("a",)))
    assert made.screening is not None
    (audit,) = made.screening.audits
    assert audit.missing == {
        "a": "1 of 3 finals failed (diverged)",
        "stranger": "it has no probe within the screen's limits",
    }
    assert audit.first_was_best is None
    assert made.screening.record.first_best is None
    assert "over your tournaments: missing" in " ".join(table_text(made).split())


def test_a_screen_that_has_gone_is_said_to_be_missing(tmp_path: Path) -> None:
    made = compared(tournament(tmp_path, "t", {"a": 0.9, "b": 0.8}))
    assert made.screening is not None
    (audit,) = made.screening.audits
    assert set(audit.why.values()) == {"the screen s cannot be read"}
    assert "cannot be read" in report_html(made)


def test_the_record_is_over_the_storage_and_counts_a_screen_once(tmp_path: Path) -> None:
    for name in ("s", "other"):
        screen(tmp_path, audit=0.0, name=name)
    tournament(tmp_path, "old", {"a": 0.8, "b": 0.9})
    new = tournament(tmp_path, "new", {"a": 0.9, "b": 0.8})
    tournament(tmp_path, "third", {"a": 0.7, "b": 0.9}, of="other")
    (tmp_path / "broken").mkdir()
    first = (new / "ledger.jsonl").read_text().splitlines()[0]
    (tmp_path / "broken" / "ledger.jsonl").write_text(f"{first}\nno record\n{first}\n")
    made = compared(new)
    assert made.screening is not None
    record = made.screening.record
    assert set(record.runs) == {"new", "third"}
    assert record.first_best == share_interval(1, 2)
    assert record.unread.keys() == {"broken"}
    assert compared(tournament(tmp_path, "fourth", {"a": 1.0, "b": 0.8})).screening is not None


def test_a_run_without_a_screen_says_nothing_of_one(tmp_path: Path) -> None:
    folder = tournament(tmp_path, "t", {"a": 0.9, "b": 0.8}, of="")
    made = compared(folder)
    assert made.screening is None
    assert 'id="screening"' not in report_html(made)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(1, 4)),
                min_size=3, max_size=9))  # fmt: skip
def test_a_weight_is_so_many_candidates(rows: list[tuple[int, int, int]]) -> None:
    x, y, weights = np.array(rows).T
    rho = weighted_spearman(x, y, weights)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert rho is None
        return
    expected = stats.spearmanr(np.repeat(x, weights), np.repeat(y, weights)).statistic
    assert rho == pytest.approx(expected)
    known = rank_correlation(x, y, weights)
    if known.low is not None and known.high is not None:
        assert -1 <= known.low <= rho <= known.high <= 1
        assert known.high > known.low


@pytest.mark.parametrize("audited", [4, 9, 18])
@pytest.mark.parametrize("true", [0.0, 0.6, 0.97])
def test_the_interval_of_a_pools_rank_correlation_holds_it(audited: int, true: float) -> None:
    """Fifty candidates, five shortlisted by the probe, some of the others audited."""
    draw, held, repetitions = np.random.default_rng(audited), 0, 500
    pearson = 2 * np.sin(np.pi * true / 6)
    weights = np.array([1.0] * 5 + [45 / audited] * audited)
    for _ in range(repetitions):
        tuned = draw.normal(size=50)
        probe = pearson * tuned + np.sqrt(1 - pearson**2) * draw.normal(size=50)
        order = np.argsort(-probe)
        part = np.r_[order[:5], draw.permutation(order[5:])[:audited]]
        known = rank_correlation(probe[part], tuned[part], weights)
        whole = np.corrcoef(np.argsort(order), np.argsort(np.argsort(-tuned)))[0, 1]
        assert known.low is not None
        assert known.high is not None
        held += known.low <= whole <= known.high
    assert held / repetitions >= 0.93


def final(label: str, search: int, top1: float, correct: np.ndarray) -> Curve:
    assignment = Assignment(
        trial_id=f"{label}-{search}", attempt=1, backbone=backbone(label), recipe=Recipe(),
        data=DataSpec(), seed=search, epochs=1,
    )  # fmt: skip
    trial = TrialState(
        trial=f"{label}-final-{search:02d}", candidate=label, stage=Stage.FINAL, search=search,
        assignment=assignment, status=TrialStatus.FINISHED, outcome={"test": {"top1": top1}},
    )  # fmt: skip
    return curve_of(label, trial, correct)


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_the_interval_of_regret_holds_it(spread: float) -> None:
    """Six candidates, two of them trusted, three searches each, 200 images that all see."""
    draw, held, repetitions = np.random.default_rng(1), 0, 500
    for _ in range(repetitions):
        qualities = dict(zip("abcdef", 1.0 + spread * draw.normal(size=6), strict=True))
        hard = draw.normal(size=200)
        measured = {}
        for label, quality in qualities.items():
            curves = []
            for search in range(3):
                right = hard + draw.normal(0, 0.5, 200) < quality + 0.1 * draw.normal()
                curves.append(final(label, search + 1, float(right.mean()), right))
            measured[label] = CandidateTrials(
                label=label, sweep=None, geometry={}, curves=tuple(curves)
            )
        spread_of_all = np.sqrt(1 + 0.5**2 + 0.1**2)
        truth = {label: stats.norm.cdf(q / spread_of_all) for label, q in qualities.items()}
        known = regret(measured, ["a", "b"])
        assert known.low is not None
        assert known.high is not None
        true = max(truth.values()) - max(truth["a"], truth["b"])
        held += known.low - 1e-12 <= true <= known.high + 1e-12
    assert held / repetitions >= 0.93
