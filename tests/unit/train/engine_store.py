"""A small image store in memory, of classes that can be told apart, for the engine's tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from trainables.config import Assignment, BackboneSpec, DatasetFacts, DataSpec, Recipe
from trainables.data.store import ImageStore, Split


@dataclass(frozen=True)
class MemoryStore:
    """What the engine uses of ``ImageStore``, over arrays instead of files."""

    info: DatasetFacts
    parts: dict[str, Split]

    def split(self, name: str) -> Split:
        return self.parts[name]

    def digests(self, name: str) -> npt.NDArray[np.uint64]:
        return np.arange(len(self.parts[name].labels), dtype=np.uint64) * np.uint64(2654435761)


def small_store(
    *, train: int = 96, val: int = 50, side: int = 16, classes: int = 6, mirror_safe: bool = True
) -> ImageStore:
    """Noise around one coarse random picture a class; learnable in an epoch or two."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(40, 216, (classes, 4, 4, 3))
    pictures = coarse.repeat(side // 4, 1).repeat(side // 4, 2)
    parts = {}
    for name, count in (("train", train), ("val", val), ("test", val)):
        labels = generator.integers(0, classes, count)
        noise = generator.normal(0, 25, (count, side, side, 3))
        images = (pictures[labels] + noise).clip(0, 255).astype(np.uint8)
        images.flags.writeable = False  # as a memory map is
        parts[name] = Split(images=images, labels=labels.astype(np.int64))
    info = DatasetFacts(
        name="pictures",
        class_names=tuple(f"class {i}" for i in range(classes)),
        height=side,
        width=side,
        channels=3,
        counts={name: len(part.labels) for name, part in parts.items()},
        content_hash="0" * 16,
        mirror_safe=mirror_safe,
        skipped=0,
    )
    return cast(ImageStore, MemoryStore(info, parts))


def assignment(
    family: str = "vit",
    *,
    epochs: int = 2,
    seed: int = 0,
    checkpoint: str | None = None,
    checkpoint_folder: Any = None,
    backbone: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    **recipe: Any,
) -> Assignment:
    """A small assignment: 16 pixels, 16 tokens, a batch of 16; else the recipe's defaults."""
    small: dict[str, Any] = {"image_size": 16, **({"patch": 4} if family == "vit" else {})}
    return Assignment(
        trial_id=f"{family}-0000",
        attempt=0,
        backbone=BackboneSpec(family=family, **{**small, **(backbone or {})}),
        recipe=Recipe(**{"batch_size_per_worker": 16, **recipe}),
        data=DataSpec(**(data or {})),
        seed=seed,
        epochs=epochs,
        checkpoint=checkpoint,
        checkpoint_folder=None if checkpoint_folder is None else str(checkpoint_folder),
    )
