"""How large the families' members are, for estimates before anything is built. No torch.

Counted once, each at its default geometry for 32-pixel images, with
``train.accounting.count_flops`` and ``train.measure.saved_for_backward``;
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


def _size(params_m: float, gflops: float, activation_mb: float) -> Size:
    return Size(params_m=params_m, gflops_per_image=gflops, activation_mb=activation_mb)


# (family, scale) -> positions of the feature map at 32 pixels, and the size there
COUNTED: dict[tuple[str, str], tuple[int, Size]] = {
    ("resnet", "tiny"): (1024, _size(0.374, 0.0860, 1.67)),
    ("resnet", "small"): (1024, _size(13.983, 1.5045, 16.7)),
    ("resnet", "base"): (1024, _size(23.521, 2.5957, 25.6)),
    ("vit", "tiny"): (64, _size(0.259, 0.0388, 1.45)),
    ("vit", "small"): (64, _size(21.342, 2.8406, 19.4)),
    ("vit", "base"): (64, _size(85.152, 11.2020, 38.8)),
    ("hybrid", "tiny"): (64, _size(0.269, 0.0438, 1.72)),
    ("hybrid", "small"): (16, _size(36.030, 2.2072, 37.6)),
    ("hybrid", "base"): (64, _size(97.789, 13.7929, 79.5)),
    ("convnext", "tiny"): (256, _size(0.207, 0.0095, 0.78)),
    ("convnext", "small"): (256, _size(14.956, 0.3977, 5.56)),
    ("convnext", "base"): (256, _size(87.572, 2.5044, 18.9)),
}


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
