"""Pixels that are not 8 bits wide -> uint8, by the range of the file's own kind.

What white is, a file of 16 bits or of floating-point numbers does not always say: 12 bits of a
camera in a 16-bit file would be trained on as nearly black pictures, numbers up to 255 in floating
point as white ones. Such a source is refused in words, and ``data.white`` says what white is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainables.errors import UserError

WHITE_16 = 65535
FULL_RANGE_FROM = 1 << 12  # a brightest value below it: 12 bits or fewer in a 16-bit file
DARK_BELOW = 1 << 14
FIX = "Fix: --set data.white=VALUE, the value that is white"


class OutOfRange(ValueError):
    """A picture that is whole, but whose values do not say what white is. It is never left out as a
    corrupt one is: the others of its source would be scaled in another way."""


@dataclass(frozen=True)
class Brightest:
    """The brightest value of a picture of ``bits`` a channel, 16 or 32: how it was scaled depends
    on it, or was right only if others of its class are brighter."""

    bits: int
    value: int


def to_8_bits(
    values: npt.NDArray[np.generic], *, bits: int, white: float | None
) -> tuple[npt.NDArray[np.uint8], Brightest | None]:
    """``values`` (H, W) of integers of 12, 16 or 32 ``bits``, or of floating-point numbers; what
    they are of 255, and the brightest one where its meaning is open.

    With ``white`` that is what is scaled to 255, and all above it is white too. Without: 12 and 16
    bits have their own, floating-point numbers must be in [0, 1], and 32 bits are what their
    brightest value fits in, 8 or 16. Raises ``OutOfRange`` for all others.
    """
    if values.dtype.kind == "f":
        return _of_floats(values.astype(np.float64), white), None
    wide = values.astype(np.int64)
    low, high = int(wide.min(initial=0)), int(wide.max(initial=0))
    if white is not None:
        return _scaled(wide.astype(np.float64), white), None
    if bits == 12:
        return _scaled(wide.astype(np.float64), (1 << 12) - 1), None
    if low < 0 or high > WHITE_16:
        raise OutOfRange(f"its values are from {low} to {high}, and nothing says what white is")
    if bits == 32 and high <= 255:
        return wide.astype(np.uint8), Brightest(32, high)
    return (wide >> 8).astype(np.uint8), Brightest(bits, high)


def _of_floats(values: npt.NDArray[np.float64], white: float | None) -> npt.NDArray[np.uint8]:
    if not np.isfinite(values).all():
        raise OutOfRange("it has values that are not finite")
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if white is None and (low < 0 or high > 1):
        raise OutOfRange(
            f"its values are from {low:g} to {high:g}, and those of a picture in floating point "
            "must be in [0, 1]"
        )
    return _scaled(values, 1.0 if white is None else white)


def _scaled(values: npt.NDArray[np.float64], white: float) -> npt.NDArray[np.uint8]:
    return np.rint(values * (255 / white)).clip(0, 255).astype(np.uint8)


class RangeCheck:
    """What the pictures of a source say together about their values: asked once all were seen."""

    def __init__(self) -> None:
        self._by_class: dict[int, list[Brightest]] = {}

    def add(self, labels: Iterable[int], brightest: Iterable[Brightest | None]) -> None:
        """Of pictures of these classes, the brightest values, ``None`` of most."""
        for label, one in zip(labels, brightest, strict=True):
            if one is not None and one.value:
                self._by_class.setdefault(label, []).append(one)

    def warning(self) -> str | None:
        """What to say of pictures of 14 bits or fewer in 16; ``None`` where there are none."""
        values = [one.value for seen in self._by_class.values() for one in seen if one.bits == 16]
        if not values or max(values) >= DARK_BELOW:
            return None
        return (
            f"the 16-bit pictures hold values up to {max(values)} of {WHITE_16}: they are dark. "
            f"{FIX}"
        )

    def raise_if_open(self, source: str, class_names: tuple[str, ...]) -> None:
        """Raise ``UserError`` where the 16-bit pictures of a class use 12 bits at most, or where
        some pictures of 32 bits were taken for 8 bits and others for 16."""
        for label, seen in self._by_class.items():
            values = [one.value for one in seen if one.bits == 16 or one.value > 255]
            if values and max(values) < FULL_RANGE_FROM:
                raise UserError(
                    f"pictures must use the range of their kind; the 16-bit ones of class "
                    f"{class_names[label]!r} in {source} hold values up to {max(values)} of "
                    f"{WHITE_16}, and would be nearly black. {FIX} (4095 for 12 bits; {WHITE_16} "
                    "takes them as they are)"
                )
        values = [one.value for seen in self._by_class.values() for one in seen if one.bits == 32]
        if values and min(values) <= 255 < max(values):
            raise UserError(
                f"pictures of 32 bits must share a range; in {source} the brightest value of some "
                f"is {min(values)}, of others {max(values)}. {FIX}"
            )
