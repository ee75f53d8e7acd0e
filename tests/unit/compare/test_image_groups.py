"""Intervals and tests where the test images are of groups: other groups are what would differ."""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from orchestrator.compare.shortlist import shortlist, shortlist_text
from orchestrator.compare.statistics import accuracy_interval, difference, images_part
from orchestrator.spec.screening import ScreenSpec
from tests.unit.compare.compare_runs import RunFolder, compared, shown
from trainables.config import BackboneSpec, Screened

# Shares of the variance: group, group and model, image, seed.
ALIKE = (0.35, 0.25, 0.25, 0.15)
LOOSE = (0.08, 0.02, 0.6, 0.3)


def groups_of(draw: Any, count: int) -> Any:
    """The group of each image: ``count`` groups of unequal size."""
    return np.repeat(np.arange(count), draw.integers(5, 40, count))


def correctness(
    draw: Any, groups: Any, seeds: int, threshold: float, models: int = 1, shares: Any = ALIKE
) -> Any:
    """Of ``models`` models with ``seeds`` finals each, whose images of one group are alike hard:
    bool (models, seeds, N)."""
    of_group, of_both, of_image, of_seed = np.sqrt(shares)
    shared = of_group * draw.standard_normal(groups.max() + 1)
    images = of_image * draw.standard_normal(len(groups))
    hard = [
        (shared + of_both * draw.standard_normal(len(shared)))[groups]
        + images
        + of_seed * draw.standard_normal((seeds, len(groups)))
        for _ in range(models)
    ]
    return np.array(hard) < threshold


def test_the_variance_is_statsmodels_clustered_one() -> None:
    linear_model = pytest.importorskip("statsmodels.api")
    draw = np.random.default_rng(0)
    groups = groups_of(draw, 12)
    values = correctness(draw, groups, 3, 0.8)[0].mean(axis=0)
    ones = np.ones((len(values), 1))
    fitted = linear_model.OLS(values, ones).fit(cov_type="cluster", cov_kwds={"groups": groups})
    variance, freedom = images_part(values, pseudo=(), clusters=groups)
    assert variance == pytest.approx(float(fitted.cov_params()[0, 0]))
    assert freedom == 11


def test_groups_of_one_image_are_images() -> None:
    values = correctness(np.random.default_rng(1), np.arange(200), 3, 0.5)[0].mean(axis=0)
    own, _ = images_part(values, pseudo=(0, 0, 1, 1))
    grouped, freedom = images_part(values, pseudo=(0, 0, 1, 1), clusters=np.arange(200))
    assert grouped == pytest.approx(own)
    assert freedom == 199


@pytest.mark.parametrize("shares", [ALIKE, LOOSE])
@pytest.mark.parametrize("threshold", [0.5, 1.6, 2.2])  # accuracies of 69, 95 and 99 %
@pytest.mark.parametrize("count", [10, 40])
def test_an_accuracy_is_covered_for_new_groups(count: int, threshold: float, shares: Any) -> None:
    top1, repeats = NormalDist().cdf(threshold), 600
    covered = of_images = 0
    for repeat in range(repeats):
        draw = np.random.default_rng([7, repeat, count])
        groups = groups_of(draw, count)
        (right,) = correctness(draw, groups, 3, threshold, shares=shares)
        values = [right.mean(axis=1).tolist()], right.mean(axis=0)
        made = accuracy_interval(*values, clusters=groups)
        assert made.low is not None
        assert made.high is not None
        covered += made.low <= top1 <= made.high
        plain = accuracy_interval(*values)
        of_images += plain.low <= top1 <= plain.high  # type: ignore[operator]
    assert covered / repeats >= 0.93
    if shares is ALIKE:
        assert of_images / repeats < 0.85  # why groups are needed


@pytest.mark.parametrize("count", [8, 30])
def test_equal_candidates_are_seldom_told_apart(count: int) -> None:
    repeats, wrong = 600, 0
    for repeat in range(repeats):
        draw = np.random.default_rng([repeat, count])
        groups = groups_of(draw, count)
        a, b = correctness(draw, groups, 3, 0.8, models=2)
        estimate = difference(
            [a.mean(axis=1).tolist()], [b.mean(axis=1).tolist()],
            a.mean(axis=0) - b.mean(axis=0), groups,
        )  # fmt: skip
        assert estimate is not None
        wrong += estimate.p_value < 0.05
    assert wrong / repeats <= 0.06


def run_of(folder: Path, seeds: int, groups: Any) -> Path:
    draw = np.random.default_rng(0)
    number = 100 if groups is None else len(groups)
    codes = np.arange(number) if groups is None else groups
    right = correctness(draw, codes, seeds, 0.8, models=2)
    run = RunFolder(folder)
    for family, finals in zip(("resnet", "vit"), right, strict=True):
        run.trial(family, [0.5, 0.8])
        for seed, correct in enumerate(finals):
            run.final(family, correct, seed=seed, groups=groups)
    return run.close()


@pytest.mark.parametrize(
    ("seeds", "method"),
    [
        (3, "Welch's t over seeds and groups of images"),
        (1, "sign flips of groups of images on these two models"),
    ],
)
def test_finals_that_know_their_groups_are_judged_by_them(
    tmp_path: Path, seeds: int, method: str
) -> None:
    groups = groups_of(np.random.default_rng(0), 9)
    made = compared(run_of(tmp_path / "run", seeds, groups))
    plain = compared(run_of(tmp_path / "plain", seeds, None))
    (pair,) = made["pairs"]
    assert (pair["method"], pair["n"]["groups"]) == (method, 9)
    assert pair["n"]["images"] == len(groups)
    top1 = made["families"][0]["final"]["test_top1"]
    assert (top1["groups"], top1["images"]) == (9, len(groups))
    assert plain["families"][0]["final"]["test_top1"]["groups"] is None
    assert "9 groups of images" in shown(tmp_path / "run")


def test_one_group_tells_nothing_of_others(tmp_path: Path) -> None:
    made = compared(run_of(tmp_path / "run", 3, np.zeros(100, np.int64)))
    assert made["families"][0]["final"]["test_top1"]["images"] is None
    assert made["pairs"][0]["method"] == "Welch's t over seeds"


def probed(label: str, right: Any, groups: Any | None) -> Screened:
    """A candidate of a screen whose probe is ``right`` (N,), with ``groups`` (N,) or without."""
    counts = {}
    if groups is not None:
        counts = {
            "group_images": tuple(np.bincount(groups).tolist()),
            "group_right": tuple(np.bincount(groups, weights=right).astype(int).tolist()),
        }
    return Screened(
        label=label, linear_top1=float(right.mean()), val_images=len(right), train_images=10,
        correct=np.packbits(right).tobytes().hex(), **counts,
    )  # fmt: skip


@pytest.mark.parametrize("count", [10, 40])
def test_a_screen_tells_equal_candidates_apart_by_groups_as_seldom_as_it_says(count: int) -> None:
    asked = ScreenSpec(
        name="s",
        candidates={label: BackboneSpec(family="timm", model=label) for label in ("a", "b")},
        top=1,
    )
    repeats, threshold = 500, 0.8
    top1 = NormalDist().cdf(threshold)
    told_apart, covered = {True: 0, False: 0}, {True: 0, False: 0}
    for repeat in range(repeats):
        draw = np.random.default_rng([11, repeat, count])
        groups = groups_of(draw, count)
        models = correctness(draw, groups, 1, threshold, models=2)[:, 0]
        for by_group in (True, False):
            screened = {
                label: probed(label, right, groups if by_group else None)
                for label, right in zip("ab", models, strict=True)
            }
            result = shortlist(asked, screened, {})
            told_apart[by_group] += not result.not_told_apart
            (first,) = (row.top1 for row in result.ranked if row.label == "a")
            assert first.low is not None
            assert first.high is not None
            covered[by_group] += first.low <= top1 <= first.high
    assert told_apart[True] / repeats <= 0.07
    assert told_apart[False] / repeats > 0.15
    assert covered[True] / repeats >= 0.93
    assert covered[False] / repeats < 0.85


def test_what_a_screen_says_of_groups() -> None:
    groups = np.repeat(np.arange(4), 25)
    right = {"a": np.arange(100) % 10 > 0, "b": np.arange(100) % 10 > 1}
    asked = ScreenSpec(
        name="s",
        candidates={label: BackboneSpec(family="timm", model=label) for label in right},
        top=1,
    )
    grouped = {label: probed(label, bits, groups) for label, bits in right.items()}
    result = shortlist(asked, grouped, {})
    assert result.as_dict()["groups"] == 4
    assert "group_right" not in result.as_dict()["candidates"][0]["screened"]
    text = shortlist_text(result)
    assert "The interval covers new groups of images, of which these are 4, not other" in text
    assert "(sign flips of groups, Holm, 5 %): b" in text  # eight flips of four: p is 0.125 at best
    alone = {label: probed(label, bits, np.zeros(100, int)) for label, bits in right.items()}
    assert shortlist(asked, alone, {}).ranked[0].top1.low is None
    plain = shortlist(
        asked, {label: probed(label, bits, None) for label, bits in right.items()}, {}
    )
    assert plain.as_dict()["groups"] is None
    assert "The interval covers new images, not other" in shortlist_text(plain)
