"""Amounts as the terminal says them; one that is not known is ``missing``."""

from __future__ import annotations

MISSING = "missing"


def duration(seconds: float | None) -> str:
    """Seconds, minutes, hours or days, to three digits."""
    if seconds is None:
        return MISSING
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def size(num_bytes: float | None) -> str:
    """Bytes in powers of ten."""
    if num_bytes is None:
        return MISSING
    for power, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= power:
            return f"{num_bytes / power:.3g} {unit}"
    return f"{num_bytes:.0f} B"


def span(low: str, high: str) -> str:
    """``LOW to HIGH``, or one of them where they are the same."""
    return low if low == high else f"{low} to {high}"


def top1(value: float | None) -> str:
    """An accuracy to four digits."""
    return MISSING if value is None else f"{value:.4f}"
