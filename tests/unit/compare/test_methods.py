"""The paragraph of methods: what the ledger holds, and nothing that the run did not do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.compare.comparison import Comparison, compare
from orchestrator.compare.report.methods import (
    CALIBRATION,
    HOLM,
    OF_DATASET,
    OF_SCHEDULER,
    OF_TEST,
    RAY,
    TIMM,
    TOST,
    methods_of,
)
from orchestrator.compare.runs import load
from orchestrator.ledger.cost import spent_device_hours
from orchestrator.wording import day, points
from tests.unit.compare.compare_runs import RunFolder, search_run, tournament_run
from trainables.backbones.families import FAMILIES


@pytest.fixture(scope="module")
def tournament(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compare([load(tournament_run(tmp_path_factory.mktemp("runs") / "whole"))])


def test_a_tournaments_numbers_are_those_of_its_ledger(tournament: Comparison) -> None:
    methods = methods_of(tournament)
    assert methods
    (run,) = tournament.runs
    search = [t for t in run.state.trials.values() if t.stage == "search"]
    audited = sum(trial.audited for trial in search)
    assert audited
    by_status = {
        status: sum(getattr(entry, status) for entry in tournament.families)
        for status in ("finished", "pruned", "failed")
    }
    detectable = max(pair.smallest_detectable or 0 for pair in tournament.pairs)
    opened = tournament.test_opened_at
    assert opened
    for said in (
        "3 image classifiers on digits (1,438 train, 180 val, 179 test images of 10 classes",
        "vit (test_vit, 0.4 M parameters, from random weights, images of 32 px)",
        "1 independent search of 24 trials, drawn at random over learning rate, weight decay, "
        "batch size per worker",
        "compared the trials of a search after epochs 1 and 3, reduction factor 3",
        f"Of {len(search)} trials " + ", ".join(f"{n} {s}" for s, n in by_status.items()),
        f"{audited} trials due to be pruned",
        f"3 fresh seeds, 9 finals in all; only then was the test split opened, on {day(opened)}",
        "95 % intervals for new seeds of the winner and images",
        "Holm's correction over 3 pairs",
        f"A difference of {points(detectable)}",
        f"{spent_device_hours(run.state):.3g} CPU-hours",
        "torch 2.15.0",
        "5bec5bec5bec5bec",
    ):
        assert said in methods.text
    for reference in (OF_DATASET["digits"], TIMM, RAY, OF_SCHEDULER["asha"], OF_TEST["Welch"],
                      HOLM, TOST, CALIBRATION, *(FAMILIES[e.family].reference
                                                 for e in tournament.families)):  # fmt: skip
        assert methods.references.count(reference) == 1
    assert OF_TEST["McNemar"] not in methods.references


def test_a_search_alone_has_no_word_of_tests(tmp_path: Path) -> None:
    methods = methods_of(compare([load(search_run(tmp_path / "run"))]))
    assert methods
    for absent in ("final", "test split", "Holm", "audit", "interval"):
        assert absent not in methods.text
    assert not {HOLM, TOST, CALIBRATION, *OF_TEST.values()} & set(methods.references)


def test_what_is_not_on_record_is_missing_or_left_out(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit",), dataset={"height": 8, "width": 8})
    run.trial("vit", [0.5], end=None)
    methods = methods_of(compare([load(run.close(None))]))
    assert methods
    assert "1 have not ended" in methods.text
    assert "None" not in methods.text


def test_two_runs_of_unlike_lengths_say_whose_is_whose(tmp_path: Path) -> None:
    folders = [search_run(tmp_path / "a", ("vit",)), search_run(tmp_path / "b", ("vit",), epochs=4)]
    runs = [load(folder) for folder in folders]
    methods = methods_of(compare(runs))
    assert methods
    assert "9 epochs" in methods.text
    assert "4 epochs" in methods.text
    assert methods.text.count("vit (a)") > 1


@pytest.mark.parametrize("nothing", ["no trial", "claim"])
def test_without_a_search_there_is_no_paragraph(
    tournament: Comparison, tmp_path: Path, nothing: str
) -> None:
    empty = compare([load(RunFolder(tmp_path / "run").close(None))])
    claim = replace(tournament, claims=({"sentence": "x"},))
    assert methods_of(empty if nothing == "no trial" else claim) is None
