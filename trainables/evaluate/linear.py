"""What frozen features tell of classes: a linear probe and the nearest neighbours.

The linear probe is multinomial logistic regression with an L2 penalty, the protocol of CLIP
(Radford et al. 2021, appendix A.3): its strength is chosen inside the training images, where a
stratified fifth judges what the rest has learned, and the fit is then repeated on all of them.
scikit-learn's ``LogisticRegression`` is the oracle of the tests; this one also runs on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.data.features import Matrix
from trainables.data.store import Labels, Rows

# Weight of the mean squared coefficients beside the mean loss, strong ones first: each fit begins
# where the one before ended. scikit-learn's C is 1 / (strength x images).
STRENGTHS: tuple[float, ...] = tuple(10.0 ** (exponent / 2) for exponent in range(2, -11, -1))
JUDGING_SHARE = 0.2  # of the training images, which choose the strength
GIVE_UP_AFTER = 5  # strengths in a row that are no better than the best so far
ITERATIONS, ITERATIONS_OF_CHOICE, TOLERANCE = 300, 60, 1e-6
NEIGHBOURS, TEMPERATURE = 20, 0.07  # Wu et al. 2018, as DINO (Caron et al. 2021) has them
QUERIES = 1024  # images whose neighbours are looked for at once

Predictions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Scale:
    """Mean and deviation of each feature over the training images, (D,) each."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Scale:
        """Of (N, D); a feature that never changes keeps its scale."""
        deviation, mean = torch.std_mean(features, dim=0, correction=0)
        # Rounding leaves a constant a deviation that is tiny beside its value.
        constant = deviation <= 1e-7 * mean.abs().clamp(min=1e-30)
        return cls(mean, torch.where(constant, 1.0, deviation))

    def __call__(self, features: Tensor) -> Tensor:
        """(N, D), standardised."""
        return (features - self.mean) / self.deviation


@dataclass(frozen=True)
class LinearProbe:
    """``weight`` (D, classes) and ``bias`` (classes,) of standardised features."""

    scale: Scale
    weight: Tensor
    bias: Tensor
    strength: float

    def logits(self, features: Tensor) -> Tensor:
        """(N, classes) of raw features (N, D)."""
        return self.scale(features) @ self.weight + self.bias


@dataclass(frozen=True)
class Rotated:
    """Points on their principal axes: ``coordinates`` (N, R) of ``variance`` (R,), and the ``axes``
    (D, R) that give them back. The optimum has no part outside these axes, for the penalty would
    only grow by it, and the penalty is the same in any rotation."""

    coordinates: Tensor
    variance: Tensor
    axes: Tensor

    @classmethod
    def of(cls, points: Tensor) -> Rotated:
        """Of standardised points (N, D): R is at most the smaller of both."""
        count, width = points.shape
        if width <= count:
            variance, axes = torch.linalg.eigh(points.T @ points / count)
            return cls(points @ axes, variance.clamp(min=0), axes)
        variance, left = torch.linalg.eigh(points @ points.T / count)
        kept = variance > 1e-12 * variance[-1]
        variance, left = variance[kept], left[:, kept]
        size = (count * variance).sqrt()
        return cls(left * size, variance, points.T @ left / size)


def fit_logistic(
    rotated: Rotated,
    labels: Tensor,
    strength: float,
    *,
    classes: int,
    start: Tensor | None = None,
    iterations: int = ITERATIONS,
) -> Tensor:
    """(R + 1, classes), the bias last, that minimise the mean cross-entropy plus ``strength`` / 2
    times the squared weights; the bias is free. Begins at ``start``.

    L-BFGS takes its steps in coordinates of which each is divided by the root of its curvature's
    bound (a quarter of the variance, plus the penalty's): a tenth of the steps otherwise.
    """
    points = rotated.coordinates
    root = (rotated.variance / 4 + strength).sqrt()[:, None]  # (R, 1)
    if start is None:
        start = points.new_zeros(points.shape[1] + 1, classes)
    scaled = torch.cat([start[:-1] * root, start[-1:]]).requires_grad_()
    inputs = points / root.T
    optimizer = torch.optim.LBFGS(
        [scaled],
        max_iter=iterations,
        tolerance_grad=TOLERANCE,
        tolerance_change=1e-12,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def objective() -> float:
        optimizer.zero_grad()
        logits = inputs @ scaled[:-1] + scaled[-1]
        penalty = strength / 2 * (scaled[:-1] / root).square().sum()
        loss = F.cross_entropy(logits, labels) + penalty
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    optimizer.step(objective)  # type: ignore[no-untyped-call]
    solution = scaled.detach()
    return torch.cat([solution[:-1] / root, solution[-1:]])


def fit_linear_probe(
    features: Matrix, labels: Labels, *, classes: int, judging: Rows, device: str = "cpu"
) -> LinearProbe:
    """The probe of ``features`` (N, D) and ``labels`` (N,); those at the positions ``judging``
    choose its strength by accuracy, the stronger of a tie. Without any the strongest is taken."""
    target = torch.device(device)
    points = torch.from_numpy(features).to(target, torch.float64)
    classes_of = torch.from_numpy(labels).to(target)
    strength = STRENGTHS[0]
    if len(judging):
        held = torch.zeros(len(points), dtype=torch.bool, device=target)
        held[torch.from_numpy(judging).to(target)] = True
        strength = _choose_strength(points, classes_of, held, classes)
    scale = Scale.of(points)
    rotated = Rotated.of(scale(points))
    solution = fit_logistic(rotated, classes_of, strength, classes=classes)
    return LinearProbe(scale, rotated.axes @ solution[:-1], solution[-1], strength)


def _choose_strength(points: Tensor, labels: Tensor, held: Tensor, classes: int) -> float:
    scale = Scale.of(points[~held])
    rotated = Rotated.of(scale(points[~held]))
    judged = scale(points[held]) @ rotated.axes
    solution: Tensor | None = None
    best, chosen, worse = -1, STRENGTHS[0], 0
    for strength in STRENGTHS:
        solution = fit_logistic(
            rotated,
            labels[~held],
            strength,
            classes=classes,
            start=solution,
            iterations=ITERATIONS_OF_CHOICE,
        )
        predicted = (judged @ solution[:-1] + solution[-1]).argmax(1)
        right = int((predicted == labels[held]).sum())
        if right > best:
            best, chosen, worse = right, strength, 0
        else:
            worse += 1
            if worse == GIVE_UP_AFTER:
                break
    return chosen


def judging_rows(order: Rows) -> Rows:
    """Positions, in sorted ``order``, of the images that choose the strength: the last fifth of a
    stratified ``order`` (N,) of row numbers."""
    count = round(JUDGING_SHARE * len(order))
    return np.flatnonzero(np.isin(np.sort(order), order[len(order) - count :]))


def linear_predictions(probe: LinearProbe, features: Matrix) -> Predictions:
    """The class of each of (N, D), (N,)."""
    device = probe.weight.device
    chunks = torch.split(torch.from_numpy(features), 8 * QUERIES)
    parts = [probe.logits(chunk.to(device, torch.float64)).argmax(1).cpu() for chunk in chunks]
    return torch.cat(parts).numpy()


def neighbour_predictions(
    features: Matrix, labels: Labels, queries: Matrix, *, classes: int, device: str = "cpu"
) -> Predictions:
    """The class (M,) of each of ``queries`` (M, D) by its nearest of ``features`` (N, D): twenty of
    them by cosine, each with a vote of exp(cosine / 0.07)."""
    target = torch.device(device)
    points = F.normalize(torch.from_numpy(features).to(target), dim=1)
    classes_of = torch.from_numpy(labels).to(target)
    count = min(NEIGHBOURS, len(points))
    parts: Sequence[Tensor] = [
        _votes(points, classes_of, F.normalize(chunk.to(target), dim=1), count, classes)
        for chunk in torch.split(torch.from_numpy(queries), QUERIES)
    ]
    return torch.cat(list(parts)).argmax(1).cpu().numpy()


def _votes(points: Tensor, labels: Tensor, queries: Tensor, count: int, classes: int) -> Tensor:
    cosine, nearest = (queries @ points.T).topk(count, dim=1)  # (B, count)
    votes = torch.zeros(len(queries), classes, device=queries.device)
    # Beside the largest, or the exponential overflows nowhere but rounds for many classes.
    weights = ((cosine - cosine[:, :1]) / TEMPERATURE).exp()
    return votes.scatter_add_(1, labels[nearest], weights)
