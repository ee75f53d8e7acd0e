"""What is said of pairs: of families over searches, of recipes over seeds; and of failed finals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from orchestrator.compare.statistics import (
    ONE_MODEL,
    accuracy_interval,
    binomial_part,
    difference,
    images_part,
)
from tests.unit.compare.compare_runs import RunFolder, compared, shown

IMAGES = 2000


def correct(accuracy: float, seed: int, n: int = IMAGES) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < accuracy


def searched(
    folder: Path, accuracies: dict[str, list[float]], *, seeds: int = 2, failed: str = ""
) -> dict[str, Any]:
    """The compare JSON of a run with a winner of such an accuracy in each search of each family."""
    run = RunFolder(folder, tuple(accuracies))
    run.ledger.append("test_opened")
    for place, (family, values) in enumerate(accuracies.items()):
        for search, accuracy in enumerate(values, start=1):
            for seed in range(seeds):
                images = correct(accuracy, 1000 * place + 10 * search + seed)
                run.final(family, images, seed=seed, search=search)
        if family == failed:
            run.trial(family, [0.2], stage="final", end="failed", seed=99)
    return compared(run.close())


def test_families_are_told_apart_over_searches(tmp_path: Path) -> None:
    made = searched(tmp_path / "r", {"vit": [0.90, 0.91, 0.92], "resnet": [0.70, 0.72, 0.71]})
    (pair,) = made["pairs"]
    assert (pair["level"], pair["verdict"]) == ("searches", "a better")
    assert (pair["n"]["searches_a"], pair["n"]["seeds_a"]) == (3, 6)
    assert made["inference"]["level"] == "searches"
    assert "vit better than resnet" in made["answer"]
    assert "recipe" not in made["answer"]
    top1 = next(e["final"]["test_top1"] for e in made["families"] if e["family"] == "vit")
    assert (top1["searches"], top1["n"], top1["images"]) == (3, 6, IMAGES)
    assert "3 searches, 6 finals" in shown(tmp_path / "r")


def test_what_recipes_happened_to_be_drawn_is_in_the_error(tmp_path: Path) -> None:
    """Each search's finals agree; the searches do not: the same numbers as one search's seeds
    would be a difference."""
    apart = {"vit": [0.93, 0.85, 0.91], "resnet": [0.88, 0.80, 0.86]}
    (pair,) = searched(tmp_path / "r", apart)["pairs"]
    assert pair["verdict"] == "not told apart"
    assert pair["smallest_detectable"] > abs(pair["difference"]["mean"])
    one = {family: values[:1] for family, values in apart.items()}
    (pair,) = searched(tmp_path / "one", one)["pairs"]
    assert (pair["level"], pair["verdict"]) == ("recipes", "a better")


def test_no_difference_is_larger_than_all_of_them(tmp_path: Path) -> None:
    """Three searches that have little in common: an interval ends where accuracies do."""
    wild = {"vit": [0.1, 0.95, 0.55], "resnet": [0.1, 0.1, 0.11]}
    made = searched(tmp_path / "r", wild)
    (pair,) = made["pairs"]
    assert (pair["verdict"], pair["difference"]["high"]) == ("not told apart", 1.0)
    assert -1 < pair["difference"]["low"] < 0
    assert "(any difference would mostly have been missed)" in made["answer"]
    text = " ".join(shown(tmp_path / "r").split())
    assert "to 100.0; p (Holm)" in text


def test_equivalence_is_shown_not_assumed(tmp_path: Path) -> None:
    alike = {"vit": [0.9001] * 3, "resnet": [0.9] * 3}
    run = RunFolder(tmp_path / "r", tuple(alike))
    for family in alike:
        for search in (1, 2, 3):
            for seed in (0, 1):  # all models get the same images right but for a few of their own
                images = correct(0.9, 5, 20_000)
                own = np.random.default_rng(100 * search + 10 * seed + len(family))
                flipped = own.choice(20_000, 20)
                images[flipped] = ~images[flipped]
                run.final(family, images, seed=seed, search=search)
    made = compared(run.close())
    (pair,) = made["pairs"]
    assert (pair["verdict"], pair["margin"]) == ("equivalent", 0.01)
    assert pair["p_value_equivalent"] < 0.05
    assert "equivalent to resnet within 1.0 points" in made["answer"]


def test_a_family_with_a_failed_final_is_never_better(tmp_path: Path) -> None:
    apart = {"vit": [0.90, 0.91, 0.92], "resnet": [0.70, 0.72, 0.71]}
    made = searched(tmp_path / "best", apart, failed="vit")
    (pair,) = made["pairs"]
    assert pair["verdict"] == "not tested"
    assert "vit: 1 of 7 finals failed (diverged)" in made["inference"]["caveats"]
    assert " vit: 1 of 7 finals failed" in made["answer"], "a label stays as it is written"
    # The other one's failure does not stand against the better one.
    (pair,) = searched(tmp_path / "worst", apart, failed="resnet")["pairs"]
    assert pair["verdict"] == "a better"


def test_two_searches_against_three_are_not_tested(tmp_path: Path) -> None:
    made = searched(tmp_path / "r", {"vit": [0.9] * 3, "resnet": [0.7] * 2})
    (pair,) = made["pairs"]
    assert (pair["level"], pair["verdict"], pair["p_value"]) == (None, "not tested", None)
    assert "3 and 2 searches" in pair["method"]


def test_an_interval_is_never_of_zero_width(tmp_path: Path) -> None:
    """Every image right in every final: the next one need not be."""
    run = RunFolder(tmp_path / "r", ("vit",))
    for seed in (0, 1):
        run.final("vit", np.ones(360, dtype=bool), seed=seed)
    (entry,) = compared(run.close())["families"]
    top1 = entry["final"]["test_top1"]
    assert (top1["mean"], top1["high"]) == (1.0, 1.0)
    exact = stats.binomtest(360, 360).proportion_ci().low
    assert exact - 0.02 < top1["low"] <= exact
    assert "100.0 % (95 % interval 98.4–100.0" in shown(tmp_path / "r")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), min_size=2, max_size=50), st.integers(1, 4))
def test_equal_seeds_are_covered_for_new_images(right: list[bool], seeds: int) -> None:
    """With no spread over seeds the interval is that of the images, known one by one or counted."""
    images = np.array(right, dtype=float)
    top1 = float(images.mean())
    for known in (images, len(right)):
        made = accuracy_interval([[top1] * seeds], known)
        assert made.low is not None
        assert made.high is not None
        assert 0 <= made.low <= top1 <= made.high <= 1
        assert made.high - made.low > 0
        assert (made.n, made.searches, made.images) == (seeds, 1, len(right))
    one_by_one, counted = images_part(images, pseudo=ONE_MODEL), binomial_part(top1, len(right))
    assert one_by_one[0] == pytest.approx(counted[0] * (len(right) + 4) / (len(right) + 3))


def test_over_searches_it_is_welchs_test_of_their_means() -> None:
    a, b = [[0.91, 0.93], [0.9, 0.88], [0.95, 0.94]], [[0.8, 0.84], [0.85, 0.86], [0.7, 0.9]]
    made = difference(a, b, None)
    means = [[float(np.mean(group)) for group in side] for side in (a, b)]
    assert made is not None
    assert made.p_value == pytest.approx(stats.ttest_ind(*means, equal_var=False).pvalue)
    one_sided = [
        stats.ttest_ind_from_stats(
            np.mean(means[0]) - shift, np.std(means[0], ddof=1), 3,
            np.mean(means[1]), np.std(means[1], ddof=1), 3,
            equal_var=False, alternative=side,
        ).pvalue
        for shift, side in ((-0.2, "greater"), (0.2, "less"))
    ]  # fmt: skip
    assert made.p_equivalent(0.2) == pytest.approx(max(one_sided))


def test_candidates_that_see_different_sides_say_so_beside_the_verdict(tmp_path: Path) -> None:
    def run(name: str, sides: dict[str, int], *, finals: bool) -> dict[str, Any]:
        folder = RunFolder(tmp_path / name, tuple(sides))
        for family, side in sides.items():
            folder.trial(family, [0.7] * 9, detail={"image_size": side})
            for seed in range(2 if finals else 0):
                folder.final(family, correct(0.8, seed), seed=seed, detail={"image_size": side})
        return compared(folder.close())

    told = "candidates see images of different sides: resnet 288 px, vit 224 px"
    different = {"resnet": 288, "vit": 224}
    made = run("finals", different, finals=True)
    assert told in made["answer"]
    assert any(told in caveat for caveat in made["inference"]["caveats"])
    (row,) = (fact for fact in made["differences"] if fact["what"] == "image_size")
    assert row == {"what": "image_size", "values": different, "same": False}
    assert told in run("search", different, finals=False)["answer"]
    same = run("same", dict.fromkeys(different, 224), finals=True)
    assert "different sides" not in same["answer"]
