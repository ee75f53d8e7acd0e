"""Published recipe → tuned: at equal length, by search, missing where one of them is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.compare.comparison import compare
from orchestrator.compare.report.page import report_html
from orchestrator.compare.runs import collect, load
from tests.unit.compare.compare_runs import RunFolder, compared, shown

START = {
    "source": "Touvron et al. 2021 (DeiT), main.py", "batch_size": 1024, "learning_rate": 1e-3,
    "axes": {"recipe.learning_rate": 1e-3}, "moved": {"recipe.learning_rate": 2e-2},
}  # fmt: skip
AXES: dict[str, Any] = {"learning_rate": 1e-3, "weight_decay": 0.1, "batch_size_per_worker": 32}


def of_vit(folder: Path) -> dict[str, Any]:
    (entry,) = [gain for gain in compared(folder)["published_recipes"] if gain["family"] == "vit"]
    return dict(entry)


def test_the_gain_is_the_best_trials_above_the_published_one(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "r", ("vit",), max_epochs=3)
    run.trial("vit", [0.2, 0.4, 0.3], published=START, **AXES)
    run.trial("vit", [0.2, 0.3, 0.55], **AXES)
    run.trial("vit", [0.9], end="pruned", **AXES)  # censored, never ranked
    folder = run.close()
    gain = of_vit(folder)
    assert gain["gain"] == pytest.approx(0.15)
    assert (gain["published_val_top1"], gain["tuned_val_top1"], gain["n"]) == (0.4, 0.55, 1)
    assert gain["searches"][0]["tuned_trial"] == "vit-0001"
    assert gain["source"] == START["source"]
    text = " ".join(shown(folder).split())
    assert "Published recipe → tuned" in text
    assert "vit: 40.0 % → 55.0 %, gain 15.0 points" in text
    assert "learning_rate 0.02 lies outside its range: 0.001" in text
    assert "DeiT" in report_html(compare([load(folder)]))


def test_the_mean_is_over_searches_that_have_both(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "r", ("vit",), max_epochs=2)
    for search, top in ((1, 0.5), (2, 0.7)):
        run.trial("vit", [0.1, 0.4], search=search, published=START, **AXES)
        run.trial("vit", [0.1, top], search=search, **AXES)
    run.trial("vit", [], end="failed", search=3, published=START, **AXES)
    run.trial("vit", [0.1, 0.9], search=3, **AXES)
    folder = run.close()
    gain = of_vit(folder)
    assert (gain["n"], len(gain["searches"])) == (2, 3)
    assert gain["gain"] == pytest.approx(0.2)
    assert gain["why"] is None
    assert gain["searches"][2]["gain"] is None
    assert "failed" in gain["searches"][2]["why"]
    assert "mean of 2 of 3 searches" in " ".join(shown(folder).split())


@pytest.mark.parametrize(
    ("end", "values", "why"),
    [
        ("pruned", [0.3], "was pruned after epoch 1"),
        ("failed", [0.3], "failed"),
        (None, [0.3], "has not ended"),
        ("finished", [0.3, 0.4], "ended at epoch 2, vit-0001 at 3: they do not compare"),
    ],
)
def test_what_did_not_train_as_long_is_missing(
    end: str | None, values: list[float | None], why: str, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "r", ("vit",), max_epochs=3)
    run.trial("vit", values, end=end, published=START, **AXES)
    run.trial("vit", [0.2, 0.3, 0.5], **AXES)
    folder = run.close()
    gain = of_vit(folder)
    assert gain["gain"] is None
    assert why in gain["why"]
    text = " ".join(shown(folder).split())
    assert f"vit: missing, vit-0000 {why}" in text
    assert "missing" in report_html(compare([load(folder)]))


def test_tuning_that_found_nothing_better_gained_nothing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "r", ("vit",), max_epochs=2)
    run.trial("vit", [0.1, 0.6], published=START, **AXES)
    run.trial("vit", [0.1, 0.4], **AXES)
    assert of_vit(run.close())["gain"] == 0.0


def test_runs_of_before_say_that_they_did_not_begin_with_one(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "r", ("vit",), max_epochs=2)
    run.trial("vit", [0.1, 0.6], **AXES)
    folder = run.close()
    gain = of_vit(folder)
    assert (gain["gain"], gain["source"]) == (None, None)
    assert "did not begin with a published recipe" in gain["why"]
    assert "Published recipe" not in shown(folder)


def test_the_published_recipe_is_none_of_the_draws(tmp_path: Path) -> None:
    """Estimates of a random trial, and marks of a range that is too small, leave it out."""
    run = RunFolder(tmp_path / "r", ("vit",), max_epochs=2)
    run.trial("vit", [0.1, 0.99], published=START, **AXES)
    for top in (0.3, 0.4, 0.5):
        run.trial("vit", [0.1, top], **AXES)
    folder = run.close()
    (family,) = collect([load(folder)])
    assert (len(family.search), len(family.drawn)) == (4, 3)
    (curve,) = compared(folder)["curves_over_budget"]
    assert curve["n"] == 3
    assert max(curve["expected_best"]) == pytest.approx(0.5)
    assert compared(folder)["families"][0]["best_val_top1"] == 0.99  # it may win all the same


def weighted_run(folder: Path, **pretraining: str | None) -> Path:
    """A finished trial of each family, whose weights learned from what is given."""
    run = RunFolder(folder, tuple(pretraining), max_epochs=2)
    for family, learned in pretraining.items():
        detail = {"weights": "hub", "pretraining_data": learned, "model": "unheard_of"}
        run.trial(family, [0.4, 0.6], detail=detail, **AXES)
    return run.close()


def test_weights_that_learned_from_other_images_are_said_beside_the_answer(tmp_path: Path) -> None:
    folder = weighted_run(
        tmp_path / "r", vit="ImageNet-21k, then ImageNet-1k", resnet="ImageNet-1k"
    )
    made = compared(folder)
    assert {f["family"]: f["pretraining_data"] for f in made["families"]} == {
        "vit": "ImageNet-21k, then ImageNet-1k", "resnet": "ImageNet-1k"
    }  # fmt: skip
    assert "had learned from different images before" in made["answer"]
    assert "vit ImageNet-21k, then ImageNet-1k; resnet ImageNet-1k" in made["answer"]
    (row,) = [fact for fact in made["differences"] if fact["what"] == "pretraining_data"]
    assert not row["same"]
    assert "ImageNet-21k, then ImageNet-1k" in report_html(compare([load(folder)]))


def test_weights_that_are_alike_need_no_word(tmp_path: Path) -> None:
    made = compared(weighted_run(tmp_path / "r", vit="ImageNet-21k", resnet="ImageNet-21k"))
    assert "different images before" not in made["answer"]


def test_what_is_not_known_of_one_is_missing(tmp_path: Path) -> None:
    made = compared(weighted_run(tmp_path / "r", vit="ImageNet-21k", resnet=None))
    assert "resnet missing" in made["answer"]
