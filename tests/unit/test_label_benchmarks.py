"""What is said of classes and of suspected labels is measured by the product's own functions, and
the figures that people read are those of the committed results."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import by_class, label_noise
from benchmarks.common import RESULTS, ROOT
from orchestrator.compare.confident_learning import label_errors
from orchestrator.compare.predicted import mean_over_finals
from orchestrator.compare.suspects import LEAST_RIGHT
from orchestrator.compare.verdicts import Level

TEMPLATE = ROOT / "orchestrator" / "compare" / "report" / "templates" / "mistakes.html"


def result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("level", list(by_class.LEVELS))
def test_the_truth_is_what_many_images_show(level: Level) -> None:
    """Of this search or this model; over searches, in the mean of many of them."""
    rng, gaps = np.random.default_rng(0), []
    for _ in range(40 if level is Level.SEARCHES else 8):
        made = by_class.simulated(level, 400, rng, (by_class.RECALLS, by_class.RECALLS))
        for one, truth in zip(made.predictions.candidates, made.recalls, strict=True):
            right = [[classes == made.predictions.labels for classes in g] for g in one.classes]
            seen = mean_over_finals(right).reshape(by_class.CLASSES, -1).mean(1)
            gaps.append(seen - truth)
    assert np.mean(gaps) == pytest.approx(0, abs=0.02)


def test_precision_follows_from_the_recalls() -> None:
    rng, images = np.random.default_rng(0), 20_000
    recalls = np.linspace(0.5, 0.95, by_class.CLASSES)
    labels = np.repeat(np.arange(by_class.CLASSES), images)
    other = (labels + rng.integers(1, by_class.CLASSES, labels.size)) % by_class.CLASSES
    predicted = np.where(rng.random(labels.size) < recalls[labels], labels, other)
    seen = [(labels[predicted == c] == c).mean() for c in range(by_class.CLASSES)]
    assert by_class.precisions_of(recalls) == pytest.approx(seen, abs=0.01)


def test_so_many_labels_are_flipped_and_none_to_itself() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(10, size=1000)
    noisy, flips = label_noise.flipped(labels, (labels + 3) % 10, rng)
    assert flips.sum() == 50
    assert ((noisy != labels) == flips).all()


def test_by_noise_rate_lists_as_many_as_the_joint_says() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(10, size=2000)
    probabilities = rng.dirichlet(np.ones(10), size=2000).astype(np.float32)
    errors = label_errors(labels, probabilities)
    listed = label_noise.by_noise_rate(labels, probabilities, errors)
    numbers = np.round(errors.joint * 2000)
    np.fill_diagonal(numbers, 0)
    for given in range(10):  # an image may be wanted for two classes, and is listed once
        wanted = numbers[given]
        assert wanted.max() <= listed[labels == given].sum() <= wanted.sum()


def test_a_quick_one_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["by_class", "--quick", "--out", str(tmp_path / "r.json")])
    monkeypatch.setattr(by_class, "QUICK_REPETITIONS", 2)
    by_class.main()
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["schema"] == 1
    assert json.loads((tmp_path / "r.json").read_text())["environment"]["cpus"]


def test_suspects_of_a_perfect_probe_are_the_flips(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(10, size=1000)
    sure = np.full((1000, 10), 0.01, np.float32)
    sure[np.arange(1000), labels] = 0.91
    monkeypatch.setattr(label_noise, "out_of_fold", lambda *_: sure)
    one = label_noise.one_seed(np.zeros((1000, 2), np.float32), labels, (labels + 1) % 10, 0)
    assert one["rules"]["confident_joint"] == {"precision": 1.0, "recall": 1.0, "listed": 50.0}
    assert one["rules"]["not_predicted"] == one["rules"]["confident_joint"]
    assert one["first_100"] == one["suggested"] == one["accuracy_on_clean_labels"] == 1.0


def test_the_figures_of_suspected_labels_are_the_measured_ones() -> None:
    cifar, digits = result("label-noise.json"), result("label-noise-digits.json")
    assert (cifar["images"], digits["images"], cifar["seeds"]) == (5000, 1797, 5)

    def percents(one: dict[str, Any]) -> tuple[str, str, str]:
        shares = one["results"]["uniform"]["rules"]["confident_joint"]
        values = shares["precision"], shares["recall"]
        first = one["accuracy_of_the_probe_without_noise"]
        return (
            f"{100 * values[0]['mean']:.0f} %",
            f"{100 * values[1]['mean']:.0f} %",
            f"{100 * first:.0f} %",
        )

    first_100 = f"{100 * cifar['results']['uniform']['first_100']['mean']:.0f} %"
    page = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())
    for text in (page, TEMPLATE.read_text(encoding="utf-8")):
        precision, recall, right = percents(cifar)
        assert f"{precision} of those listed were flips and {recall} of the flips" in text
        assert f"right in {right} of 5,000 CIFAR-10 images" in text
        assert first_100 in text
        precision, recall, right = percents(digits)
        assert f"{precision} and {recall} w" in text
        assert f"right in {right} of 1,797 digits" in text


def test_the_bar_below_which_nothing_is_suspected_is_the_measured_one() -> None:
    page = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())
    rows = {
        name: result(f"{name}.json")["weaker"] for name in ("label-noise", "label-noise-digits")
    }
    for row in (row for of in rows.values() for row in of):
        if row["accuracy_on_clean_labels"]["mean"] < LEAST_RIGHT:
            assert row["rules"]["confident_joint"]["precision"]["mean"] < 0.25

    def figures(row: dict[str, Any]) -> list[str]:
        means = row["first_100"]["mean"], row["accuracy_on_clean_labels"]["mean"]
        return [f"{100 * mean:.0f} %" for mean in means]

    below, above = rows["label-noise"][-2:]
    (first, right), (next_first, next_right) = figures(below), figures(above)
    assert f"{first} were flips where they are right in {right} of the CIFAR-10 images" in page
    assert f"and {next_first} where in {next_right}" in page
    first, right = figures(rows["label-noise-digits"][-2])
    assert f"of digits {first} where they are right in {right}" in page


def test_the_figures_of_classes_are_the_measured_ones() -> None:
    measured = result("by-class.json")
    page = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())
    lowest = min(measured["lowest_recall_coverage"], measured["lowest_precision_coverage"])
    assert lowest >= 0.95
    assert f"hold the truth in {100 * lowest:.1f} % of cases or more" in page
    searches = measured["results"]["searches, 100 images a class"]
    false = searches["false_better"]
    ends = f"({100 * false['low']:.1f} to {100 * false['high']:.1f})"
    assert f"differ in {100 * false['mean']:.1f} % {ends} of tournaments" in page
    assert measured["highest_false_better"] == false["mean"] <= 0.06
    assert measured["results"]["searches, 10 images a class"]["false_better"]["mean"] == 0
    assert f"is seen then in {100 * searches['power']['mean']:.0f} %" in page
    assert f"n = {measured['repetitions']:,}" in page
