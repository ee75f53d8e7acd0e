"""What other test images would change, against scikit-learn's figures of resampled images."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn import metrics as sk

from orchestrator.compare import other_images
from orchestrator.compare.comparison import compare
from orchestrator.compare.finals import summarise_finals
from orchestrator.compare.other_images import (
    NO_IMAGES,
    NOT_EXACT,
    NOT_STORED,
    OTHER_IMAGES,
    ImageChance,
    of_one,
    of_two,
    resampled,
)
from orchestrator.compare.report.methods import methods_of
from orchestrator.compare.runs import CandidateTrials, Curve, collect, load
from orchestrator.compare.statistics import images_part
from orchestrator.compare.verdicts import PairResult, PairVerdict, compare_pairs
from tests.unit.compare.compare_runs import DATASET, RunFolder, compared, shown
from trainables.evaluate.predictions import Predictions, write_predictions
from trainables.metrics import PLAIN, Metric, figure_of, metric_of
from trainables.storage.trial_files import predictions_file

NAMES = ("a", "b", "c", "d", "e", "f")
RESAMPLED = ("macro_f1", "balanced_accuracy", "auroc", "precision:b@0.6")
ALL = (*RESAMPLED, "top5", "loss", "recall:b")
IMAGES = 240


def drawn(
    seed: int, *, skill: float = 1.5, images: int = IMAGES, ties: bool = False
) -> Predictions:
    """Of six classes, the last one rare; the images and half of the noise are the same for all."""
    shared, own = np.random.default_rng(7), np.random.default_rng(seed)
    labels = shared.choice(6, images, p=[0.25, 0.25, 0.2, 0.15, 0.1, 0.05])
    labels[:6] = np.arange(6)
    scores = 1.3 * shared.normal(size=(images, 6)) + 0.7 * own.normal(size=(images, 6))
    scores += skill * np.eye(6)[labels]
    scores = np.round(scores) if ties else scores
    powers = np.exp(scores)
    share = (powers / powers.sum(1, keepdims=True)).astype(np.float32)
    return Predictions(split="test", labels=labels.astype(np.int64), probabilities=share)


def figure(metric: Metric, made: Predictions) -> float:
    own = made.probabilities[np.arange(len(made.labels)), made.labels].astype(float)
    if metric.name == "top1":
        return float(np.mean(made.predicted == made.labels))
    if metric.name == "loss":
        return float(-np.log(own).mean())
    if metric.name == "top5":
        return float(sk.top_k_accuracy_score(made.labels, made.probabilities, k=5))
    value = figure_of(metric, made.labels, made.predicted, made.probabilities, NAMES)
    assert value is not None
    return value


def final_run(
    folder: Path, metric: str, *, skills: dict[str, float], searches: int = 3, stored: bool = True
) -> Path:
    dataset = {**DATASET, "class_names": list(NAMES), "counts": {"val": 100, "test": IMAGES}}
    run = RunFolder(folder, tuple(skills), metric=metric, dataset=dataset)
    for family in skills:
        run.trial(family, [0.5, 0.4])
    for place, (family, skill) in enumerate(skills.items()):
        for search in range(1, searches + 1):
            made = drawn(100 * place + search, skill=skill)
            correct = made.predicted == made.labels
            test = {"top1": float(correct.mean()), metric: figure(metric_of(metric), made)}
            trial = run.trial(
                family, [0.5, 0.4], stage="final", seed=search, search=search,
                test={**test, "n": IMAGES},
            )  # fmt: skip
            if stored:
                write_predictions(predictions_file(folder / "finals" / trial, "test"), made)
    return run.close()


def finals_of(folder: Path) -> tuple[CandidateTrials, list[Curve]]:
    (candidate, *_) = collect([load(folder)])
    return candidate, finals_in(candidate)


def finals_in(candidate: CandidateTrials) -> list[Curve]:
    return [curve for curve in candidate.curves if curve.state.stage == "final"]


def repeated(made: Predictions, draw: np.ndarray) -> Predictions:
    rows = np.repeat(np.arange(len(draw)), draw.astype(int))
    return replace(made, labels=made.labels[rows], probabilities=made.probabilities[rows])


@pytest.mark.parametrize("name", RESAMPLED)
@pytest.mark.parametrize("ties", [False, True])
def test_a_resample_has_the_figure_of_its_images(name: str, ties: bool, tmp_path: Path) -> None:
    metric, made = metric_of(name), drawn(1, ties=ties)
    path = tmp_path / "test_predictions.arrow"
    write_predictions(path, made)
    index = NAMES.index(metric.class_name) if metric.class_name else None
    measured = other_images._of_file(path, path.stat().st_mtime_ns, metric, index)
    assert not isinstance(measured, str)
    draws = np.concatenate(resampled(IMAGES, IMAGES))
    assert (draws.sum(axis=1) == IMAGES).all()
    for place in (0, 1, 17, len(draws) - 1):
        one = repeated(made, draws[place])
        assert measured.values[place] == pytest.approx(figure(metric, one), abs=1e-6)
    whole = other_images.REPEATED[name.partition(":")[0]](
        made, metric, index, np.ones((1, IMAGES), np.float32)
    )
    assert whole == pytest.approx(figure(metric, made), abs=1e-6)


@pytest.mark.parametrize("name", ["top5", "loss", "recall:b"])
def test_a_mean_varies_as_its_images_do(name: str, tmp_path: Path) -> None:
    metric = metric_of(name)
    candidate, finals = finals_of(final_run(tmp_path / "r", name, skills={"vit": 1.5}, searches=1))
    chance = of_one(finals, metric, NAMES)
    assert isinstance(chance, ImageChance)
    made = drawn(1)
    own = made.probabilities[np.arange(IMAGES), made.labels].astype(float)
    values = {
        "top5": (made.probabilities > own[:, None]).sum(1) < 5,
        "loss": -np.log(own),
        "recall:b": made.predicted[made.labels == 1] == 1,
    }[name].astype(float)
    pseudo = () if name == "loss" else (0, 0, 1, 1)
    assert chance.part == pytest.approx(images_part(values, pseudo=pseudo))
    assert candidate.class_names == NAMES


@pytest.mark.parametrize("name", ALL)
def test_what_is_hard_for_all_cancels_out_of_a_difference(name: str, tmp_path: Path) -> None:
    """Most of the noise is the images' own: the variance of a difference is less than the sum."""
    folder = final_run(tmp_path / "r", name, skills={"vit": 1.5, "resnet": 1.5}, searches=1)
    a, b = map(finals_in, collect([load(folder)]))
    one, other, both = of_one(a, *of(name)), of_one(b, *of(name)), of_two(a, b, *of(name))
    assert isinstance(one, ImageChance)
    assert isinstance(other, ImageChance)
    assert isinstance(both, ImageChance)
    assert 0 < both.part[0] < one.part[0] + other.part[0]
    assert both.part[1] >= 1
    swapped = of_two(b, a, *of(name))
    assert isinstance(swapped, ImageChance)
    assert swapped.part == pytest.approx(both.part)


def of(name: str) -> tuple[Metric, tuple[str, ...]]:
    return metric_of(name), NAMES


@pytest.mark.parametrize("name", ALL)
def test_finals_are_judged_by_it(name: str, tmp_path: Path) -> None:
    folder = final_run(tmp_path / "r", name, skills={"vit": 0.2, "resnet": 3.5}, searches=3)
    document = compared(folder)
    (pair,) = document["pairs"]
    if name != "top5":  # where all but a few of the five classes of six are right
        winner = "a better" if pair["a"] == "resnet" else "b better"
        assert pair["verdict"] == winner
    assert (pair["metric"], pair["level"]) == (name, "searches")
    assert pair["n"]["images"] == IMAGES
    assert "and images" in pair["method"]
    for entry in document["families"]:
        test = entry["final"]["test"]
        assert test["low"] < test["mean"] <= test["high"]
        assert test["images"] == IMAGES
        assert entry["final"]["test_means"][name] == pytest.approx(test["mean"])
        assert entry["final"]["test_top1"]["mean"] == entry["final"]["test_means"]["top1"]
    places = [place["family"] for place in document["inference"]["places"]]
    assert places[0] == "resnet" or name == "top5"
    assert metric_of(name).noun in document["answer"]
    assert f"test {metric_of(name).noun}" in shown(folder)


@pytest.mark.parametrize(("name", "is_bootstrap"), [("macro_f1", True), ("loss", False)])
def test_the_paragraph_of_methods_says_how(name: str, is_bootstrap: bool, tmp_path: Path) -> None:
    folder = final_run(tmp_path / "r", name, skills={"vit": 0.2, "resnet": 3.5})
    made = methods_of(compare([load(folder)]))
    assert made is not None
    assert ("paired bootstrap" in made.text) == is_bootstrap
    assert any(metric_of(name).source in reference for reference in made.references)


def pair_of(folder: Path) -> PairResult:
    (pair,) = compare([load(folder)]).pairs
    return pair


@pytest.mark.parametrize("name", ["macro_f1", "loss"])
def test_without_stored_predictions_nothing_is_tested_and_why_is_said(
    name: str, tmp_path: Path
) -> None:
    skills = {"vit": 0.2, "resnet": 3.5}
    folder = final_run(tmp_path / "r", name, skills=skills, stored=False)
    pair = pair_of(folder)
    assert (pair.verdict, pair.method) == (PairVerdict.NOT_TESTED, NOT_STORED)
    assert pair.p_value is None
    assert NOT_STORED in " ".join(shown(folder).split())
    assert compared(folder)["families"][0]["final"]["test"]["images"] is None


def test_a_class_that_is_never_wrong_has_an_interval_all_the_same(tmp_path: Path) -> None:
    folder = final_run(tmp_path / "r", "balanced_accuracy", skills={"vit": 40.0}, searches=1)
    candidate, finals = finals_of(folder)
    summary = summarise_finals(candidate)
    assert summary is not None
    assert summary.test is not None
    assert summary.test.mean == 1.0
    assert summary.test.low is not None
    assert summary.test.low < 0.999
    chance = of_one(finals, *of("balanced_accuracy"))
    assert isinstance(chance, ImageChance)
    assert chance.part[0] > 0


def test_one_final_each_is_a_statement_about_two_models(tmp_path: Path) -> None:
    folder = final_run(tmp_path / "r", "macro_f1", skills={"vit": 0.2, "resnet": 3.5}, searches=1)
    pair = pair_of(folder)
    assert pair.level == "models"
    assert "bootstrap" in pair.method
    assert pair.verdict in (PairVerdict.A_BETTER, PairVerdict.B_BETTER)


def test_what_cannot_be_known_says_why(tmp_path: Path) -> None:
    made = drawn(1)
    folders = {name: tmp_path / name for name in ("one", "other", "lacking", "top")}
    other = replace(made, labels=np.roll(made.labels, 1))
    lacking = replace(made, labels=np.zeros_like(made.labels))
    files = {"one": made, "other": other, "lacking": lacking}
    for name, written in files.items():
        write_predictions(predictions_file(folders[name], "test"), written)
    _, (final, *_) = finals_of(final_run(tmp_path / "r", "macro_f1", skills={"vit": 1.0}))

    def at(name: str) -> list[Curve]:
        return [replace(final, answers=folders[name])]

    assert of_two(at("one"), at("other"), *of("macro_f1")) == OTHER_IMAGES
    assert of_one(at("lacking"), *of("recall:b")) == NO_IMAGES
    assert of_one(at("lacking"), *of("auroc")) == NO_IMAGES
    assert of_one(at("top"), *of("auroc")) == NOT_STORED
    assert of_one([replace(final, answers=None)], *of("auroc")) == NOT_STORED


def test_probabilities_that_were_not_all_kept_do_not_rank_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = predictions_file(tmp_path / "f", "test")
    write_predictions(path, drawn(1))
    made = replace(drawn(1), exact=False)
    monkeypatch.setattr(other_images, "read_predictions", lambda path: made)
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))  # read again
    _, (final, *_) = finals_of(final_run(tmp_path / "r", "auroc", skills={"vit": 1.0}))
    held = [replace(final, answers=tmp_path / "f")]
    assert of_one(held, *of("auroc")) == NOT_EXACT
    assert isinstance(of_one(held, *of("macro_f1")), ImageChance)


def test_a_long_split_is_resampled_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_images, "MOST_DRAWS", 40_000)
    blocks: Any = resampled.__wrapped__(200, 200)
    assert sum(map(len, blocks)) == 200
    assert sum(map(len, resampled.__wrapped__(100_000, 100_000))) == other_images.FEWEST_RESAMPLES
    first = other_images._first(blocks, 150)
    assert np.array_equal(np.concatenate(first), np.concatenate(blocks)[:150])
    assert sum(map(len, other_images._first(blocks, 3))) == other_images.FEWEST_RESAMPLES


@pytest.mark.parametrize("name", RESAMPLED)
def test_groups_of_the_same_image_tell_what_one_of_each_tells(name: str, tmp_path: Path) -> None:
    """Whole groups are drawn: four copies of each image are worth one."""
    metric, made = metric_of(name), drawn(1)
    index = NAMES.index(metric.class_name) if metric.class_name else None
    rows = np.repeat(np.arange(IMAGES), 4)
    four = replace(made, labels=made.labels[rows], probabilities=made.probabilities[rows])
    measured = []
    for place, (one, groups) in enumerate(((made, None), (four, rows), (four, None))):
        path = tmp_path / f"{place}.arrow"
        write_predictions(path, one)
        key = None if groups is None else groups.astype(np.int64).tobytes()
        measured.append(other_images._of_file(path, path.stat().st_mtime_ns, metric, index, key))
    single, grouped, copies = measured
    assert not isinstance(single, str)
    assert not isinstance(grouped, str)
    assert not isinstance(copies, str)
    assert grouped.values == pytest.approx(single.values, abs=1e-6)
    assert np.array_equal(grouped.counts, single.counts)
    assert (grouped.groups, single.groups) == (IMAGES, None)
    assert np.nanstd(copies.values) < 0.7 * np.nanstd(grouped.values)


@pytest.mark.parametrize("name", ALL)
def test_finals_on_groups_are_judged_by_groups(name: str, tmp_path: Path) -> None:
    folder = final_run(tmp_path / "r", name, skills={"vit": 0.2, "resnet": 3.5})
    plain = pair_of(folder)
    for trial in (folder / "finals").iterdir():
        correct = np.zeros(IMAGES, bool)
        table = pa.table({"correct": correct, "group": np.arange(IMAGES) // 8})
        with (
            pa.OSFile(str(trial / "test_correct.arrow"), "wb") as sink,
            pa.ipc.new_file(sink, table.schema) as writer,
        ):
            writer.write_table(table)
    pair = pair_of(folder)
    assert (plain.n["groups"], pair.n["groups"]) == (None, IMAGES // 8)
    assert "groups of images" in pair.method
    assert pair.difference.mean == plain.difference.mean
    (entry, _) = compared(folder)["families"]
    assert entry["final"]["test"]["groups"] == IMAGES // 8
    assert entry["final"]["test"]["images"] == IMAGES


def test_accuracy_is_tested_as_ever(tmp_path: Path) -> None:
    """By correctness, whether predictions are stored or not."""
    folder = final_run(tmp_path / "r", "top1", skills={"vit": 0.5, "resnet": 3.0})
    candidates = collect([load(folder)])
    (pair,) = compare_pairs(candidates, 0.01)
    assert pair.metric == PLAIN["top1"].name
    assert "images" not in pair.method
