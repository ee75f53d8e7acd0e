"""Accuracy when parts of the picture are hidden.

Naseer et al. 2021 ("Intriguing properties of vision transformers", section 3.1) drop random cells
of a grid. The grid here is 8 x 8 cells for every family, 4 x 4 pixels each at 32, and hidden cells
get the mean colour, as in the engine's random erasing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainables.stateless import key_of, uniforms

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
