"""Does a shift of the picture change the answer? Top-1 consistency and accuracy by pixel offset.

Zhang 2019 ("Making convolutional networks shift-invariant again") calls classification consistency
how often two shifted versions of an image get the same class; Chaman & Dokmanic 2021 ("Truly
shift-invariant convolutional neural networks") compare the image with its shifted copy, as here.

Borders are reflected. A circular shift, which the latter use on CIFAR, puts a seam into the picture
that no model has seen, and crops out of a larger picture lose a margin that 32 pixels cannot spare;
reflection is what the engine's own augmentation does, so that what is measured is the shift.

Is the model as sure as it is right? Expected calibration error.

Guo et al. 2017 ("On calibration of modern neural networks", section 2), equal-width bins as in
Naeini et al. 2015.

Accuracy when parts of the picture are hidden.

Naseer et al. 2021 ("Intriguing properties of vision transformers", section 3.1) drop random cells
of a grid. The grid here is 8 x 8 cells for every family, 4 x 4 pixels each at 32, and hidden cells
get the mean colour, as in the engine's random erasing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

import torch
from torch import Tensor

from trainables.data.rng import key_of, uniforms

BINS = 15


class Calibration(TypedDict):
    """``ece`` in [0, 1] and the rows of its reliability table."""

    ece: float
    bins: list[dict[str, float]]


def calibration(probabilities: Tensor, labels: Tensor, *, bins: int = BINS) -> Calibration:
    """``ece`` and its reliability table, from (N, classes) probabilities and labels (N,).

    ``ece`` is the mean over images of |accuracy - confidence| of their bin, in [0, 1]; bin m of M
    holds confidences in ((m - 1) / M, m / M]. The table ``bins`` lists those that hold any:
    ``low``, ``high``, ``count``, ``accuracy``, ``confidence``. Raises ``ValueError`` on 0 images.
    """
    if not len(labels):
        raise ValueError("calibration needs an image at least; got 0")
    confidence, predicted = probabilities.double().max(1)  # (N,), (N,)
    right = (predicted == labels).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)
    index = torch.bucketize(confidence, edges[1:-1])  # (N,): intervals closed on the right
    counts = torch.bincount(index, minlength=bins).tolist()
    table = []
    for m, count in enumerate(counts):
        if count:
            inside = index == m
            table.append(
                {
                    "low": edges[m].item(),
                    "high": edges[m + 1].item(),
                    "count": count,
                    "accuracy": right[inside].mean().item(),
                    "confidence": confidence[inside].mean().item(),
                }
            )
    gaps = [row["count"] * abs(row["accuracy"] - row["confidence"]) for row in table]
    return {"ece": sum(gaps) / len(labels), "bins": table}


GRID = 8  # cells a side; its square is the number of draws that an image has
SHARES = (0.25, 0.5, 0.75)


def occlude(images: Tensor, rows: Tensor, share: float, *, seed: int = 0) -> Tensor:
    """Hide ``share`` of the cells of (B, C, H, W) normalised ``images`` behind zeros; a copy.

    ``rows`` (B,) int64 are the images' numbers: which cells are hidden depends on seed and number
    alone, and cells hidden at one share are hidden at every larger one.
    """
    draws = uniforms(key_of(seed), rows, GRID * GRID)  # (B, cells)
    rank = draws.argsort(dim=1, stable=True).argsort(1)
    hidden = (rank < round(share * GRID * GRID)).view(-1, GRID, GRID)
    down, right = (_cells(side, images.device) for side in images.shape[2:])
    return images.masked_fill(hidden[:, down][:, :, right][:, None], 0.0)


def _cells(side: int, device: torch.device) -> Tensor:
    """The cell of each of ``side`` pixels, (side,): equal parts where the grid divides the side."""
    return torch.arange(side, device=device) * GRID // side


# unit steps down and right; an axis offset is the mean over both axes
DIRECTIONS: Mapping[str, tuple[tuple[int, int], ...]] = {
    "axis": ((0, 1), (1, 0)),
    "diagonal": ((1, 1),),
}


def shift(images: Tensor, down: int, right: int) -> Tensor:
    """Move the content of (B, C, H, W) by whole pixels, borders reflected; offsets below the side.

    Negative offsets move up and left. The border pixel itself is not repeated.
    """
    height, width = images.shape[2:]
    rows = _source(height, down, images.device)
    columns = _source(width, right, images.device)
    return images[:, :, rows][:, :, :, columns]


def _source(side: int, offset: int, device: torch.device) -> Tensor:
    """Which position each of ``side`` pixels is read from after a move by ``offset``; (side,)."""
    if abs(offset) >= side:
        raise ValueError(f"a shift must be smaller than the side of {side} pixels; got {offset}")
    index = (torch.arange(side, device=device) - offset).abs()
    return torch.where(index >= side, 2 * (side - 1) - index, index)


def shifted_predictions(
    classify: Callable[[Tensor], Tensor],
    images: Tensor,
    offsets: Sequence[int],
    unmoved: Tensor | None = None,
    *,
    directions: Mapping[str, tuple[tuple[int, int], ...]] = DIRECTIONS,
) -> dict[str, Tensor]:
    """Predicted classes of (B, C, H, W) ``images`` under shifts, by name in ``directions``.

    ``classify`` maps images to logits (B, classes). Each value is (offsets, ways, B) int64, where
    ways are the direction's steps. Offset 0 is ``unmoved`` (B,), predicted once where not given.
    """
    still = classify(images).argmax(1) if unmoved is None else unmoved  # (B,)

    def predicted(offset: int, down: int, right: int) -> Tensor:
        if offset == 0:
            return still
        return classify(shift(images, offset * down, offset * right)).argmax(1)

    return {
        name: torch.stack(
            [torch.stack([predicted(offset, *way) for way in ways]) for offset in offsets]
        )
        for name, ways in directions.items()
    }


def agreement(predictions: Tensor, wanted: Tensor) -> list[float]:
    """Share of (offsets, ways, N) ``predictions`` that equal ``wanted`` (N,), by offset.

    Against the predictions at offset 0 this is the shift consistency, against the labels the
    accuracy on shifted images. Both lie in [0, 1].
    """
    shares: list[float] = (predictions == wanted).double().mean((1, 2)).tolist()
    return shares
