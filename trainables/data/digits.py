"""scikit-learn's handwritten digits: 1,797 images of 8x8, the only dataset that is embedded."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from trainables.data.reading import Chunk, Reading, Say, Source


def locate() -> Source:
    """The embedded dataset; always there."""
    return Source(name="digits", identity=lambda: "load_digits", read=_read)


def _read(say: Say) -> Reading:
    from sklearn.datasets import load_digits  # a second of imports, needed once

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (N, 8, 8), values were 0..16
    images = np.repeat(grey[..., None], 3, axis=-1)  # (N, 8, 8, 3)
    labels = digits.target.astype(np.int64)

    def chunks() -> Iterator[Chunk]:
        yield Chunk(split="train", images=images, labels=labels)

    return Reading(
        class_names=tuple(str(digit) for digit in digits.target_names),
        height=8,
        width=8,
        count=len(images),
        chunks=chunks(),
        mirror_safe=False,
    )
