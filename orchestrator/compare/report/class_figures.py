"""Figures of the classes: what each candidate confuses, and whether all are as sure as they are
right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from orchestrator.compare.classes import CandidateClasses, ClassReport
from orchestrator.compare.report import figures
from orchestrator.compare.report.figures import Figure, Places
from orchestrator.compare.runs import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMED_CLASSES = 20  # up to so many, the matrix has their names
NUMBERED_CLASSES = 12  # and up to so many, the numbers
DARKEST = 0.55  # a number on it is still read
NAME_LETTERS = 12


def class_figures(report: ClassReport, places: Places) -> tuple[list[Figure], list[Figure]]:
    """The confusion matrix of each candidate that has one, and one figure of reliability."""
    matrices = [
        _confusion(one, np.array(one.matrix), report.classes, places[one.candidate])
        for one in report.candidates
        if one.matrix is not None
    ]
    return matrices, [_reliability(report, places)]


def _confusion(one: CandidateClasses, counts: Array, names: tuple[str, ...], place: int) -> Figure:
    """Shares of each label's images by predicted class, (classes, classes)."""
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    with figures.new_plot(size=(4.1, 3.9), grid=None) as axes:
        _cells(axes, shares, place)
        if len(names) <= NAMED_CLASSES:
            short = list(map(_short, names))
            axes.set_xticks(range(len(names)), short, rotation=90)
            axes.set_yticks(range(len(names)), short)
        axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5), aspect="equal")
        axes.set(xlabel="predicted", ylabel="label")
        label = f"Confusion matrix of {one.candidate}: share of each label by predicted class"
        return figures.figure_of(
            axes, f"confusion-{place}", one.candidate, label, one, candidate=place
        )


def _short(name: str) -> str:
    """Long names differ at their end as often as at their beginning."""
    if len(name) <= NAME_LETTERS:
        return name
    return f"{name[: NAME_LETTERS // 2 - 1]}…{name[-NAME_LETTERS // 2 :]}"


def _cells(axes: Axes, shares: Array, place: int) -> None:
    """A square a cell, darker the larger its share; in percent where there is room."""
    from matplotlib.patches import Rectangle

    for label, predicted in np.argwhere(shares > 0):
        share = float(shares[label, predicted])
        corner = float(predicted) - 0.5, float(label) - 0.5
        ink = figures.color(place)
        axes.add_patch(Rectangle(corner, 1, 1, color=ink, alpha=DARKEST * share, linewidth=0))
        if len(shares) <= NUMBERED_CLASSES and share >= 0.005:
            axes.text(predicted, label, f"{100 * share:.0f}", ha="center", va="center", fontsize=9)


def _reliability(report: ClassReport, places: Places) -> Figure:
    """Accuracy against confidence on all test images; on the diagonal a model is as sure as it is
    right."""
    with figures.new_plot() as axes:
        axes.plot([0, 100], [0, 100], color=figures.MUTED, linewidth=0.9, linestyle=(0, (1, 3)))
        for one in report.candidates:
            x = [100 * entry.confidence for entry in one.reliability]
            y = [100 * entry.accuracy for entry in one.reliability]
            figures.mean_line(axes, places[one.candidate], x, y)
        axes.set(xlim=(0, 101), ylim=(0, 101), xlabel="confidence, %", ylabel="accuracy, %")
        names = ", ".join(one.candidate for one in report.candidates)
        label = f"Accuracy against confidence on the test images: {names}"
        return figures.figure_of(axes, "reliability", "Reliability", label, report.candidates)
