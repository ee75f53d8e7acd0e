"""Suspected labels: made noise with known flips, what is listed, whether the verdict survives."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from orchestrator.compare.comparison import ByImage, compare
from orchestrator.compare.confident_learning import label_errors
from orchestrator.compare.runs import load
from orchestrator.compare.suspects import COLUMNS, write_suspects
from tests.unit.compare.compare_runs import RunFolder, tournament_run
from tests.unit.compare.predicted_runs import (
    WRONG_ROWS,
    add_final,
    digits,
    drawn,
    looks_like,
    predicted_run,
)
from trainables.errors import UserError


def seen(folder: Path) -> ByImage:
    by_image = compare([load(folder)]).by_image
    assert by_image is not None
    return by_image


@pytest.mark.parametrize("share", [0.02, 0.1])
def test_flipped_labels_are_most_of_what_is_suspected(share: float) -> None:
    rng = np.random.default_rng(5)
    truth = rng.integers(10, size=4000)
    probabilities = drawn(truth, rng, skill=6.0)
    flipped = rng.random(4000) < share
    labels = np.where(flipped, (truth + rng.integers(1, 10, 4000)) % 10, truth)
    errors = label_errors(labels, probabilities)
    assert flipped[errors.suspected].mean() > 0.8
    assert errors.suspected[flipped].mean() > 0.7
    right = errors.suggested[flipped & errors.suspected] == truth[flipped & errors.suspected]
    assert right.mean() > 0.95
    assert errors.noise_share == pytest.approx(share, abs=0.02)
    assert errors.joint.sum() == pytest.approx(1)
    # Each row is calibrated to the labels that there are: the paper's section 3.1.
    assert errors.joint.sum(1) == pytest.approx(np.bincount(labels, minlength=10) / 4000)


def test_the_definitions_of_the_paper_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    first = np.array([0.9, 0.8, 0.1, 0.2, 0.3, 0.55])
    errors = label_errors(labels, np.stack([first, 1 - first], axis=1))
    # Thresholds: 0.6 for class 0 (mean of 0.9, 0.8, 0.1), 0.65 for class 1 (0.8, 0.7, 0.45).
    assert errors.suspected.tolist() == [False, False, True, False, False, False]
    assert errors.suggested[2] == 1
    # The confident joint is [[2, 1], [0, 2]]: the last image is confident of no class.
    assert errors.joint == pytest.approx(np.array([[2 / 3, 1 / 3], [0, 1]]) * 0.5)
    assert errors.noise_share == pytest.approx(1 / 6)


def test_a_label_that_is_most_probable_is_never_suspected() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=500)
    probabilities = drawn(labels, rng, skill=2.0, num_classes=4)
    errors = label_errors(labels, probabilities)
    assert errors.suspected.any()
    assert (probabilities.argmax(1)[errors.suspected] != labels[errors.suspected]).all()


def test_a_class_without_labels_is_never_suggested() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(3, size=300)
    errors = label_errors(labels, drawn(labels, rng, skill=3.0, num_classes=5))
    assert set(errors.suggested) <= {0, 1, 2}
    assert np.isfinite(errors.joint).all()


def test_wrong_labels_are_listed_with_where_they_are(tmp_path: Path) -> None:
    folder = predicted_run(tmp_path)
    _, store = digits(tmp_path / "store")
    suspects = seen(folder).suspects
    assert suspects is not None
    listed = {(one.split, one.row): one for one in suspects.suspects}
    wrong = {(split, row) for split, rows in WRONG_ROWS.items() for row in rows}
    assert set(listed) >= wrong
    for (split, row), one in listed.items():
        if (split, row) in wrong:
            assert one.label == str(store.labels(split)[row])
            assert one.suggested == str(looks_like(store, split)[row])
            assert one.suggested_probability > one.label_probability
            places = store.places(split)
            assert places is not None
            assert one.path == places[row]
            assert one.finals == 6
    assert suspects.images == {"test": 180, "val": 180}
    margins = [one.suggested_probability - one.label_probability for one in suspects.suspects]
    assert margins == sorted(margins, reverse=True)
    assert suspects.sentence.startswith(f"{len(margins)} of 360 labels are suspected")


def test_images_that_two_carves_share_are_pooled(tmp_path: Path) -> None:
    """Val of another search may have the same image in another row, among others."""
    from trainables.config import DataSpec
    from trainables.data.build import prepare

    data, store = digits(tmp_path / "store")
    other = prepare(DataSpec(folder=data.folder, val_seed=7))
    run = RunFolder(tmp_path / "run", ("vit",), dataset=store.info.as_dict(), data=data)
    rng = np.random.default_rng(0)
    for search, carve in enumerate((store, other), start=1):
        probabilities = {s: drawn(carve.labels(s), rng, skill=7.0) for s in ("test", "val")}
        add_final(run, "vit", carve, probabilities, search=search)
    suspects = seen(run.close()).suspects
    assert suspects is not None
    both = np.intersect1d(store.digests("val"), other.digests("val")).size
    assert 0 < both < 180
    assert suspects.images == {"test": 180, "val": 360 - both}


def test_the_csv_has_all_of_them(tmp_path: Path) -> None:
    suspects = seen(predicted_run(tmp_path)).suspects
    assert suspects is not None
    assert write_suspects(suspects, tmp_path / "s.csv") == len(suspects.suspects) >= 5
    with (tmp_path / "s.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [row["path"] for row in rows] == [one.path for one in suspects.suspects]


def test_without_predictions_it_says_so(tmp_path: Path) -> None:
    assert compare([load(tournament_run(tmp_path / "run"))]).by_image is None
    with pytest.raises(UserError, match="no final has kept"):
        write_suspects(None, tmp_path / "s.csv")


def test_paths_are_missing_where_the_store_is(tmp_path: Path) -> None:
    folder = predicted_run(tmp_path)
    (tmp_path / "store").rename(tmp_path / "moved")
    suspects = seen(folder).suspects
    assert suspects is not None
    assert {one.path for one in suspects.suspects} == {None}


def test_cleaning_leaves_out_exactly_the_suspects_of_test(tmp_path: Path) -> None:
    by_image = seen(predicted_run(tmp_path))
    assert by_image.suspects is not None
    assert by_image.cleaning is not None
    cleaning = by_image.cleaning
    assert cleaning.left_out == by_image.suspects.count("test") > 0
    assert cleaning.images == 180
    for label, accuracy in cleaning.accuracy.items():
        assert cleaning.accuracy_cleaned[label] > accuracy
    assert cleaning.order == cleaning.order_cleaned == ("vit", "resnet")
    assert cleaning.order_survives
    assert cleaning.verdicts_survive
    assert "stays vit, resnet, and every verdict stays" in cleaning.sentence


def test_an_order_that_rests_on_wrong_labels_does_not_survive(tmp_path: Path) -> None:
    """One candidate alone gives wrong labels as they are, and is not sure."""
    data, store = digits(tmp_path / "store")
    rng = np.random.default_rng(0)
    labels = store.labels("test")
    wrong = {int(row): int((labels[row] + 3) % 10) for row in range(0, 180, 9)}
    skills = {"resnet": 3.5, "vit": 4.5, "hybrid": 4.5, "convnext": 4.5}
    run = RunFolder(tmp_path / "run", tuple(skills), dataset=store.info.as_dict(), data=data)
    for family, skill in skills.items():
        for search in (1, 2, 3):
            test = drawn(labels, rng, skill=skill)
            for row, other in wrong.items():
                test[row] = 0.001
                test[row, other] = 0.45 if family == "resnet" else 0.99
                test[row, labels[row]] = 0.55 if family == "resnet" else 0.01
            val = drawn(store.labels("val"), rng, skill=4.0)
            add_final(run, family, store, {"test": test, "val": val}, search=search)
    cleaning = seen(run.close()).cleaning
    assert cleaning is not None
    assert cleaning.order[0] == "resnet"
    assert cleaning.order_cleaned[-1] == "resnet"
    assert not cleaning.order_survives
    assert not cleaning.verdicts_survive
    assert "changes from resnet" in cleaning.sentence
    assert "becomes" in cleaning.sentence


def test_models_that_are_mostly_wrong_suspect_nothing(tmp_path: Path) -> None:
    """Of two epochs on digits they would suspect three labels in four."""
    data, store = digits(tmp_path / "store")
    run = RunFolder(tmp_path / "run", ("vit",), dataset=store.info.as_dict(), data=data)
    rng = np.random.default_rng(0)
    for search in (1, 2, 3):
        splits = {s: drawn(store.labels(s), rng, skill=0.3) for s in ("test", "val")}
        add_final(run, "vit", store, splits, search=search)
    by_image = seen(run.close())
    assert by_image.suspects is not None
    assert by_image.suspects.missing is not None
    assert "more than three of four labels" in by_image.suspects.sentence
    assert by_image.suspects.suspects == ()
    assert by_image.cleaning is None
    with pytest.raises(UserError, match="right more often"):
        write_suspects(by_image.suspects, tmp_path / "s.csv")
