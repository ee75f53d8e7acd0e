"""Random numbers without state: a function of seed, epoch, image and stream.

The same image gets the same draws whatever the batch, the worker or the moment of a resume.
SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators"), on numpy's
uint64 and on torch's int64, which wraps on every device. Imports torch where it is called for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))  # of the finaliser: shift, factor
MASK = (1 << 64) - 1
STREAMS = 64  # upper bound of draws per image


def mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Pseudo-random bits for each of ``values``; any shape (...)."""
    for bits, factor in ROUNDS:
        values = (values ^ (values >> np.uint64(bits))) * np.uint64(factor)
    return values ^ (values >> np.uint64(31))


def key_of(*parts: int) -> int:
    """Fold whole numbers (seed, epoch, step, rank ...) into one 64-bit key."""
    key = 0
    for part in parts:
        key = int(mix(np.array([(key ^ (part & MASK)) + GOLDEN & MASK], np.uint64))[0])
    return key


def uniforms(key: int, index: Tensor, streams: int) -> Tensor:
    """Draws in [0, 1), (B, streams) float32, for images ``index`` (B,) int64.

    ``streams`` is at most 64. 24 bits each: every value is exact in float32.
    """
    import torch

    stream = torch.arange(streams, dtype=torch.int64, device=index.device)
    z = (index[:, None] * STREAMS + stream) * _signed(GOLDEN) + _signed(key)  # (B, streams)
    for bits, factor in ROUNDS:  # the last shift is nothing to the upper half of the bits
        z = (z ^ _shift(z, bits)) * _signed(factor)
    return _shift(z, 40).to(torch.float32) * 2.0**-24


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift: int64's own shift copies the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
