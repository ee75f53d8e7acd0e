"""How large the families' members are, for estimates before anything is built. No torch.

Counted once, each at its default geometry for 32-pixel images, with
:func:`trainables.accounting.count_flops` and :func:`trainables.measure.saved_for_backward`;
a test counts again. Other geometries are scaled by their positions: exact for convolutions but
for their borders, too low for attention over many more tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Size:
    """``gflops_per_image`` is one forward pass, a multiply-add counting as two, and
    ``activation_mb`` what it keeps for the backward pass in fp32, 1e6 bytes an image."""

    params_m: float
    gflops_per_image: float
    activation_mb: float


# (family, scale) -> positions of the feature map at 32 pixels, and the size there
COUNTED: dict[tuple[str, str], tuple[int, Size]] = {}


def size_of(geometry: Mapping[str, Any]) -> Size | None:
    """The size of a geometry, :meth:`Geometry.as_dict`; ``None`` for ``timm:MODEL``, which is
    known only once it is built."""
    counted = COUNTED.get((geometry["family"], geometry["scale"]))
    if counted is None:
        return None
    positions, size = counted
    ratio = _positions(geometry) / positions
    return Size(
        params_m=size.params_m,
        gflops_per_image=size.gflops_per_image * ratio,
        activation_mb=size.activation_mb * ratio,
    )


def _positions(geometry: Mapping[str, Any]) -> float:
    """Positions of the feature map that the stem leaves, or tokens."""
    if geometry["tokens"]:
        return float(geometry["tokens"])
    cell = geometry["patch"] or (1 if geometry["stem"] == "small" else 4)
    return float((geometry["image_size"] / cell) ** 2)
