"""Which trial wins: by validation alone, finals first; and what is said where none can."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.compare.winners import best_models, select_model
from orchestrator.ledger.events import FILE_NAME, read
from orchestrator.ledger.state import State, replay
from orchestrator.tracking.view import model_facts
from tests.unit.compare.compare_runs import RunFolder, tournament_run
from trainables.errors import UserError


def state_of(folder: Path) -> State:
    return replay(read(folder / FILE_NAME))


def test_without_finals_the_best_finished_search_trial_at_its_best_epoch(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "search")
    run.trial("resnet", [0.5, 0.8, 0.7])
    run.trial("resnet", [0.95], end="pruned")
    run.trial("vit", [0.6, 0.75])
    state = state_of(run.close())

    choice = select_model(state)
    assert (choice.trial.trial, choice.epoch, choice.val_top1) == ("resnet-0000", 2, 0.8)
    assert (
        "finished search trials of resnet on validation, 0.8000, and of 2 candidates" in choice.why
    )
    assert select_model(state, "vit").val_top1 == 0.75


def test_among_finals_the_test_split_has_no_say(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "finals")
    frozen = {}
    for family in ("resnet", "vit"):
        frozen[family] = {"trial": run.trial(family, [0.9]), "recipe_hash": "0", "val_top1": 0.9}
    run.ledger.append("frozen", detail={"winners": frozen, "final_seeds": 2})
    scores = {"resnet": [([0.9, 0.80], 0.99), ([0.5, 0.70], 0.98)], "vit": [
        ([0.1, 0.78], 0.20), ([0.1, 0.76], 0.10)]}  # fmt: skip
    for family, finals in scores.items():
        for values, test in finals:
            run.trial(
                family, values, stage="final", winner=frozen[family]["trial"], test={"top1": test}
            )
    state = state_of(run.close())

    choice = select_model(state)
    # vit's mean at the last epoch is 0.77, resnet's 0.75, for all its better tests and best final
    assert (choice.trial.family, choice.epoch, choice.val_top1) == ("vit", 2, 0.78)
    assert choice.trial.stage == "final"
    assert "vit has the best mean of 2 candidates" in choice.why
    assert model_facts(state, choice)["test_top1"] == 0.20
    resnet = select_model(state, "resnet")
    assert (resnet.val_top1, resnet.epoch) == (0.80, 2)


def test_a_whole_tournament_has_a_choice_of_every_family(tmp_path: Path) -> None:
    state = state_of(tournament_run(tmp_path / "t", trials=12, seeds=2))
    found = best_models(state)
    assert set(found) == {"resnet", "vit", "hybrid"}
    assert {choice.trial.stage for choice in found.values()} == {"final"}


@pytest.mark.parametrize(
    ("family", "said"),
    [(None, "none of its trials in x has"), ("vit", "no trial of vit in x has"),
     ("swin", "must be one of resnet, vit; got 'swin'")],
)  # fmt: skip
def test_nothing_to_export_is_one_line(tmp_path: Path, family: str | None, said: str) -> None:
    run = RunFolder(tmp_path / "x")
    run.trial("resnet", [0.5], end="pruned")
    run.trial("vit", [0.5], end=None)
    with pytest.raises(UserError, match=said) as caught:
        select_model(state_of(run.close(None)), family)
    assert len(caught.value.mistakes) == 1
