"""A metric that is no mean over images, where the test images are of groups: its intervals cover
the figure of all groups that there could be."""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from orchestrator.compare.finals import test_figure as figure_of_finals
from orchestrator.compare.runs import Curve, collect, load
from orchestrator.compare.statistics import independent_units
from tests.unit.compare.compare_runs import DATASET, RunFolder
from trainables.evaluate.predictions import Predictions, write_predictions
from trainables.metrics import metric_of
from trainables.storage.trial_files import predictions_file, write_correct

NAMES = ("a", "b", "c")
SHARES = np.sqrt((0.5, 0.3, 0.2))  # of the variance: group, image, seed
THRESHOLD = NormalDist().inv_cdf(0.8)


def images(draw: Any, count: int, seeds: int) -> tuple[Any, Any, Any]:
    """Labels and groups (N,) of images of ``count`` groups of 10 to 30, and what ``seeds`` models
    predict of them, (seeds, N): of a group they are alike hard."""
    groups = np.repeat(np.arange(count), draw.integers(10, 31, count))
    labels = draw.choice(3, len(groups), p=[0.5, 0.35, 0.15])
    hard = SHARES[0] * draw.standard_normal(count)[groups]
    hard = hard + SHARES[1] * draw.standard_normal(len(groups))
    wrong = hard + SHARES[2] * draw.standard_normal((seeds, len(groups))) > THRESHOLD
    other = (labels + 1 + (draw.random((seeds, len(groups))) < 0.5)) % 3
    return labels.astype(np.int64), groups.astype(np.int64), np.where(wrong, other, labels)


def finals_in(folder: Path, labels: Any, groups: Any | None, predicted: Any) -> list[Curve]:
    dataset = {**DATASET, "class_names": list(NAMES), "counts": {"test": len(labels)}}
    run = RunFolder(folder, ("vit",), metric="macro_f1", dataset=dataset)
    for seed, classes in enumerate(predicted):
        right = classes == labels
        f1 = float(f1_score(labels, classes, average="macro"))
        test = {"top1": float(right.mean()), "macro_f1": f1, "n": len(labels)}
        trial = run.trial("vit", [0.5], stage="final", seed=seed, search=1, test=test)
        answers = folder / "finals" / trial
        probabilities = np.full((len(labels), 3), 0.1, np.float32)
        probabilities[np.arange(len(labels)), classes] = 0.8
        made = Predictions(split="test", labels=labels, probabilities=probabilities)
        write_predictions(predictions_file(answers, "test"), made)
        write_correct(answers / "test_correct.arrow", right, groups)
    (candidate,) = collect([load(run.close())])
    return list(candidate.curves)


def test_macro_f1_is_covered_for_new_groups(tmp_path: Path) -> None:
    metric, repeats, covered, of_images = metric_of("macro_f1"), 150, 0, 0
    labels, _, (predicted,) = images(np.random.default_rng(99), 20_000, 1)
    truth = float(f1_score(labels, predicted, average="macro"))
    for repeat in range(repeats):
        labels, groups, predicted = images(np.random.default_rng([5, repeat]), 25, 3)
        for known in (groups, None):
            folder = tmp_path / f"{repeat}-{known is None}"
            finals = finals_in(folder, labels, known, predicted)
            made = figure_of_finals(finals, metric, NAMES)
            assert made is not None
            assert made.low is not None
            assert made.high is not None
            assert made.groups == (None if known is None else 25)
            hit = made.low <= truth <= made.high
            covered += hit and known is not None
            of_images += hit and known is None
    assert covered / repeats >= 0.93
    assert of_images / repeats < 0.85  # why groups are needed


@pytest.mark.parametrize(("alike", "least", "most"), [(0.0, 600, 1000), (1.0, 49, 60)])
def test_images_of_a_group_count_as_many_as_they_tell(
    alike: float, least: float, most: float
) -> None:
    draw = np.random.default_rng(0)
    groups = np.repeat(np.arange(50), 20)
    values = alike * draw.standard_normal(50)[groups] + (1 - alike) * draw.standard_normal(1000)
    assert least <= independent_units(values, groups) <= most
    assert independent_units(np.ones(1000), groups) == 50
