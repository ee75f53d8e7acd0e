"""Backbones: timm models by family and scale, adapted to small images. Read ``families/`` first.

All that is known of a family is in its file there; ``model.py`` builds one with its weights, and
``weights.py`` reads those of a user. May import ``storage``, ``config`` and ``errors``. Importing
this loads neither torch nor timm; :func:`build` does.
"""

from __future__ import annotations

from trainables.backbones.adaptation import Geometry
from trainables.backbones.families import (
    FAMILIES,
    SCALES,
    WeightsSides,
    check_backbone,
    describe,
    size_of,
    weights_sides,
)
from trainables.backbones.hub import current_pin, fetch
from trainables.backbones.model import Backbone, build, check_weights

__all__ = [
    "FAMILIES",
    "SCALES",
    "Backbone",
    "Geometry",
    "WeightsSides",
    "build",
    "check_backbone",
    "check_weights",
    "current_pin",
    "describe",
    "fetch",
    "size_of",
    "weights_sides",
]
