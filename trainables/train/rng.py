"""Random numbers without state: a function of seed, epoch, image and stream.

The same image gets the same draws whatever the batch, the worker or the moment of a resume.
SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators"), as
64-bit integer tensor arithmetic, which wraps on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB
MASK = (1 << 64) - 1
STREAMS = 64  # upper bound of draws per image


def key_of(*parts: int) -> int:
    """Fold whole numbers (seed, epoch, step, rank ...) into one 64-bit key."""
    key = 0
    for part in parts:
        key = _mix((key ^ (part & MASK)) + GOLDEN & MASK)
    return key


def uniforms(key: int, index: Tensor, streams: int) -> Tensor:
    """Draws in [0, 1), (B, streams) float32, for images ``index`` (B,) int64.

    ``streams`` is at most 64. 24 bits each: every value is exact in float32.
    """
    stream = torch.arange(streams, dtype=torch.int64, device=index.device)
    z = (index[:, None] * STREAMS + stream) * _signed(GOLDEN) + _signed(key)  # (B, streams)
    z = (z ^ _shift(z, 30)) * _signed(MIX_1)
    z = (z ^ _shift(z, 27)) * _signed(MIX_2)
    return _shift(z, 40).to(torch.float32) * 2.0**-24


def _mix(z: int) -> int:
    z = (z ^ (z >> 30)) * MIX_1 & MASK
    z = (z ^ (z >> 27)) * MIX_2 & MASK
    return z ^ (z >> 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift: int64's own shift copies the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
