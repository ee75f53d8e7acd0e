"""Does a shift of the picture change the answer? Top-1 consistency and accuracy by pixel offset.

Zhang 2019 ("Making convolutional networks shift-invariant again") calls classification consistency
how often two shifted versions of an image get the same class; Chaman & Dokmanic 2021 ("Truly
shift-invariant convolutional neural networks") compare the image with its shifted copy, as here.

Borders are reflected. A circular shift, which the latter use on CIFAR, puts a seam into the picture
that no model has seen, and crops out of a larger picture lose a margin that 32 pixels cannot spare;
reflection is what the engine's own augmentation does, so that what is measured is the shift.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

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
    directions: Mapping[str, tuple[tuple[int, int], ...]] = DIRECTIONS,
) -> dict[str, Tensor]:
    """Predicted classes of (B, C, H, W) ``images`` under shifts, by name in ``directions``.

    ``classify`` maps images to logits (B, classes). Each value is (offsets, ways, B) int64, where
    ways are the direction's steps. Offset 0 is predicted once.
    """
    unmoved = classify(images).argmax(1)  # (B,)

    def predicted(offset: int, down: int, right: int) -> Tensor:
        if offset == 0:
            return unmoved
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
