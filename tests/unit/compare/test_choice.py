"""Fronts and choices under limits, by ledgers worked by hand; how often the word best errs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.cli.main import group
from orchestrator.compare import statistics
from orchestrator.compare.choice import Basis, Limits, Price, Standing, _front, choose
from orchestrator.compare.comparison import Comparison, compare
from orchestrator.compare.report.page import report_html
from orchestrator.compare.runs import CandidateTrials, curve_of, load
from orchestrator.compare.statistics import MeanInterval
from orchestrator.compare.table import table_text
from orchestrator.compare.verdicts import compare_pairs
from tests.unit.compare.compare_runs import RunFolder, search_run
from trainables.metrics import TOP1

IMAGES = 2000
LATENCY = {"resnet": 2.0, "vit": 4.0, "hybrid": 9.0}
MARGIN = {"resnet": 0.6, "vit": 1.2, "hybrid": 1.8}  # of right images, on the normal scale


def speed(latency_ms: float | None, device: str = "a processor") -> dict[str, Any]:
    if latency_ms is None:
        return {}
    rounds = [latency_ms * factor for factor in (0.98, 1.0, 1.02)]
    batch = {"latency_ms": latency_ms, "images_per_second": 1000 / latency_ms, "round_ms": rounds}
    return {"speed": {"device": device, "precision": "fp32", "threads": 1, "batch_1": batch}}


def finals_run(
    folder: Path,
    latency: dict[str, float | None] = LATENCY,  # type: ignore[assignment]
    *,
    margin: dict[str, float] = MARGIN,
    searches: int = 3,
    seed: int = 0,
    device: str = "a processor",
) -> Path:
    """Three candidates, each with two trials and the finals of its searches, timed."""
    run, draw = RunFolder(folder, tuple(latency), max_epochs=2), np.random.default_rng(seed)
    hard = draw.normal(size=IMAGES)
    for place, (family, latency_ms) in enumerate(latency.items()):
        sizes = {"params_m": 5.0 * (place + 1)}
        for search in range(1, searches + 1):
            winner = run.trial(family, [0.4, 0.5], search=search, detail=sizes, learning_rate=1e-3)
            correct = hard + draw.normal(0, 0.4, IMAGES) < margin[family]
            measured = speed(latency_ms, device) if search == 1 else {}
            probes = {"images": 64, "top1": 0.5, **measured}
            run.final(family, correct, seed=search, search=search, detail=sizes,
                      winner=winner, probes=probes)  # fmt: skip
        run.trial(family, [0.99], end="pruned", search=1, learning_rate=1e-2)
    return run.close()


def compared(folder: Path, **limits: float) -> Comparison:
    return compare([load(folder)], forests=False, limits=Limits(**limits))


def test_the_best_within_is_called_best_where_the_verdicts_say_so(tmp_path: Path) -> None:
    made = compared(finals_run(tmp_path / "run"), max_latency_ms=5.0)
    choice = made.choice
    assert choice is not None
    assert (choice.best, choice.within, choice.is_shown) == ("vit", ("vit", "resnet"), True)
    assert choice.beyond == {"hybrid": "9 ms"}
    assert choice.text.startswith("Best under 5 ms: vit")
    assert "vit better than resnet" in choice.text
    assert made.tradeoffs.basis is Basis.TEST
    assert [s.label for s in made.tradeoffs.candidates] == ["hybrid", "vit", "resnet"]
    front = made.tradeoffs.front(Price.LATENCY)
    assert front is not None
    assert front.candidates == ("resnet", "vit", "hybrid")
    # The pruned trial's 0.99 is nowhere.
    assert all(s.top1 and s.top1.mean < 0.99 for s in made.tradeoffs.candidates)


def test_a_small_one_is_judged_by_its_parameters(tmp_path: Path) -> None:
    choice = compared(finals_run(tmp_path / "run"), max_params_m=5.0).choice
    assert choice is not None
    assert (choice.within, choice.is_shown) == (("resnet",), False)
    assert choice.beyond == {"vit": "10 M parameters", "hybrid": "15 M parameters"}
    assert "only resnet is known to be" in choice.text


def test_who_was_not_timed_is_missing_and_takes_the_strong_word_away(tmp_path: Path) -> None:
    made = compared(finals_run(tmp_path / "run", {**LATENCY, "hybrid": None}), max_latency_ms=5.0)
    choice = made.choice
    assert choice is not None
    assert choice.missing == {"hybrid": "its latency was not measured"}
    assert (choice.best, choice.is_shown) == ("vit", False)
    assert "hybrid (its latency was not measured)" in choice.text
    assert not choice.text.startswith("Best")
    front = made.tradeoffs.front(Price.LATENCY)
    assert front is not None
    assert front.missing == {"hybrid": "its latency was not measured"}


def test_a_missing_one_that_is_worse_by_a_verdict_changes_nothing(tmp_path: Path) -> None:
    folder = finals_run(tmp_path / "run", {**LATENCY, "resnet": None})
    choice = compared(folder, max_latency_ms=5.0).choice
    assert choice is not None
    assert (choice.best, choice.is_shown, set(choice.missing)) == ("vit", True, {"resnet"})


def test_a_latency_at_the_limit_is_said_to_be_there(tmp_path: Path) -> None:
    choice = compared(finals_run(tmp_path / "run"), max_latency_ms=4.01).choice
    assert choice is not None
    assert (choice.near, choice.best, choice.is_shown) == (("vit",), "vit", False)
    assert "Not told apart from the limit: vit (4 ms, 95 % interval" in choice.text


def test_alike_ones_are_not_called_best(tmp_path: Path) -> None:
    alike = dict.fromkeys(MARGIN, 1.0)
    choice = compared(finals_run(tmp_path / "run", margin=alike), max_latency_ms=20.0).choice
    assert choice is not None
    assert not choice.is_shown
    assert "does not show that it is the best" in choice.text


def test_nobody_within(tmp_path: Path) -> None:
    choice = compared(finals_run(tmp_path / "run"), max_latency_ms=1.0).choice
    assert choice is not None
    assert (choice.best, choice.within) == (None, ())
    assert choice.text.startswith("Under 1 ms no candidate is known to be.")


def test_without_finals_it_is_no_verdict(tmp_path: Path) -> None:
    folder = search_run(tmp_path / "run")
    made = compared(folder, max_params_m=100.0)
    assert made.choice is not None
    assert made.tradeoffs.basis is Basis.VALIDATION
    assert "not a verdict" in made.choice.text
    assert made.tradeoffs.front(Price.LATENCY) is None
    timed = compared(folder, max_latency_ms=5.0).choice
    assert timed is not None
    assert timed.missing.keys() == {"resnet", "vit", "hybrid"}


def test_latencies_of_two_devices_make_no_front(tmp_path: Path) -> None:
    runs = [finals_run(tmp_path / name, device=name) for name in ("one", "two")]
    made = compare([load(run) for run in runs], forests=False)
    front = made.tradeoffs.front(Price.LATENCY)
    assert front is not None
    assert front.candidates == ()
    assert front.why == (
        "latencies are of different devices: one, fp32, 1 thread; two, fp32, 1 thread"
    )


def standing(place: int, top1: int, latency: int) -> Standing:
    mean = MeanInterval(mean=top1 / 20, low=None, high=None, n=3)
    return Standing(
        label=f"c{place}", judged=mean, top1=mean,
        latency_ms=MeanInterval(mean=latency, low=None, high=None, n=1), timed_on="here",
        memory_gb=None, params_m=1.0, device_seconds=1.0, usd=None,
    )  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), min_size=1, max_size=10))
def test_nobody_beats_the_front_and_the_front_beats_all_others(
    points: list[tuple[int, int]],
) -> None:
    standings = [standing(place, *point) for place, point in enumerate(points)]
    front = _front(standings, Price.LATENCY, {"cpu"}, Basis.TEST, TOP1)

    def is_beaten(point: tuple[int, int]) -> bool:
        return any(
            other[0] >= point[0] and other[1] <= point[1] and other != point for other in points
        )

    for place, point in enumerate(points):
        assert (f"c{place}" in front.candidates) == (not is_beaten(point))


def test_terminal_json_and_report_say_the_same(tmp_path: Path) -> None:
    folder = finals_run(tmp_path / "run")
    made = compared(folder, max_latency_ms=5.0)
    assert made.choice is not None
    plain = made.as_dict()
    assert plain["choice"]["best"] == "vit"
    assert plain["tradeoffs"]["fronts"][0]["price"] == "latency_ms"
    assert plain["screening"] is None
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    text, page = " ".join(table_text(made).split()), report_html(made)
    assert made.choice.text in text
    assert "accuracy and latency: resnet, vit, hybrid" in text
    assert '<section id="tradeoffs">' in page
    assert "Test accuracy against milliseconds for one image" in page
    found = CliRunner().invoke(
        group, ["compare", "run", "--storage", str(tmp_path), "--max-latency-ms", "5", "--json"]
    )
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["choice"]["text"] == made.choice.text
    wrong = CliRunner().invoke(
        group, ["compare", "run", "--storage", str(tmp_path), "--max-params-m", "0"]
    )
    assert wrong.exit_code == 2


def test_best_is_seldom_said_of_alike_candidates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three candidates without a difference but chance: the strong word errs in at most 5 %."""
    # Decides nothing, and takes most of the time.
    monkeypatch.setattr(statistics, "permutation", lambda differences: 1.0)
    run = load(finals_run(tmp_path / "run"))
    draw, said, repetitions = np.random.default_rng(0), 0, 500
    finals = [t for t in run.state.trials.values() if t.stage == "final"]
    tradeoffs = compare([run], forests=False).tradeoffs
    for _ in range(repetitions):
        hard = draw.normal(size=200)
        candidates = []
        for family in LATENCY:
            own = [t for t in finals if t.candidate == family]
            curves = []
            for trial in own:
                quality = 1.0 + 0.1 * draw.normal()
                right = hard + draw.normal(0, 0.6, 200) < quality
                trial.outcome = {**trial.outcome, "test": {"top1": float(right.mean())}}
                curves.append(curve_of(family, trial, right))
            candidates.append(
                CandidateTrials(label=family, sweep=None, geometry={}, curves=tuple(curves))
            )
        means = {c.label: float(np.mean([f.test("top1") for f in c.curves])) for c in candidates}
        standings = [
            replace(s, top1=MeanInterval(mean=means[s.label], low=None, high=None, n=3))
            for s in tradeoffs.candidates
        ]
        ranked = tuple(sorted(standings, key=lambda s: -means[s.label]))
        drawn = replace(tradeoffs, candidates=ranked)
        pairs = compare_pairs(candidates, 0.01)
        said += choose(drawn, pairs, Limits(max_latency_ms=20.0)).is_shown
    assert said / repetitions <= 0.05
