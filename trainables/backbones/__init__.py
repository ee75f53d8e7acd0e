"""Backbones: timm models by family and scale, adapted to small images. Read ``families/`` first.

All that is known of a family is in its file there; ``model.py`` builds one with its weights. May
import ``config`` and ``errors``. Importing this loads neither torch nor timm; :func:`build` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainables.backbones.adaptation import Geometry
from trainables.backbones.families import (
    FAMILIES,
    SCALES,
    check_backbone,
    describe,
    size_of,
)
from trainables.backbones.weights import check_weights
from trainables.config import BackboneSpec

if TYPE_CHECKING:
    from trainables.backbones.model import Backbone

__all__ = [
    "FAMILIES",
    "SCALES",
    "Geometry",
    "build",
    "check_backbone",
    "check_weights",
    "describe",
    "size_of",
]


def build(
    spec: BackboneSpec, *, num_classes: int, height: int, width: int, drop_path: float = 0.0
) -> Backbone:
    """Build the model with its weights: see :func:`trainables.backbones.model.build`."""
    from trainables.backbones import model

    return model.build(
        spec, num_classes=num_classes, height=height, width=width, drop_path=drop_path
    )
