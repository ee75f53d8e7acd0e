"""Words and numbers as people read them: terminal, report and MLflow; a missing number is
``missing``."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from trainables.metrics import TOP1, Metric

MISSING = "missing"
NONE = "–"  # nothing to state, where nothing was asked for


def duration(seconds: float | None) -> str:
    """Seconds, minutes, hours or days, to three digits."""
    if seconds is None:
        return MISSING
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def size(num_bytes: float) -> str:
    """Bytes in powers of ten."""
    for power, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= power:
            return f"{num_bytes / power:.3g} {unit}"
    return f"{num_bytes:.0f} B"


def span(low: str, high: str) -> str:
    """``LOW to HIGH``, or one of them where they are the same."""
    return low if low == high else f"{low} to {high}"


def four_digits(value: float | None) -> str:
    """What a metric measured, to four digits."""
    return MISSING if value is None else f"{value:.4f}"


def percent(value: float | None) -> str:
    """A fraction as a percentage."""
    return MISSING if value is None else f"{100 * value:.1f} %"


def figure(value: float | None, metric: Metric) -> str:
    """What ``metric`` measured: a share as a percentage, a loss in nats."""
    return percent(value) if metric.is_share or value is None else f"{value:.4f} nats"


def points(value: float | None, metric: Metric = TOP1) -> str:
    """A difference of shares in percentage points, or of losses in nats."""
    return MISSING if value is None else f"{signed(value, metric)} {unit_of(metric)}"


def signed(value: float, metric: Metric = TOP1) -> str:
    """A difference of shares in points, or of losses in nats; the minus sign a real one."""
    return (f"{100 * value:.1f}" if metric.is_share else f"{value:.4f}").replace("-", "−")


def unit_of(metric: Metric) -> str:
    """Of a difference between two figures."""
    return "points" if metric.is_share else "nats"


def axis_of(metric: Metric) -> str:
    """The figure with its unit, for an axis."""
    return f"{metric.noun}, {'%' if metric.is_share else 'nats'}"


def p_text(value: float | None) -> str:
    """A p-value to three digits, small ones as a bound."""
    if value is None:
        return MISSING
    return "< 0.0001" if value < 1e-4 else f"{value:.3g}"


def interval(
    mean: float, low: float | None, high: float | None, level: float, n: int,
    searches: int = 1, images: int | None = None, groups: int | None = None, metric: Metric = TOP1,
) -> str:  # fmt: skip
    """``mean (interval, n)`` of what ``metric`` measured; ``images`` stay unsaid, but not their
    ``groups``."""
    count = f"n = {n}" if searches == 1 else f"{searches} searches, {n} finals"
    count += f", {groups} groups of images" if groups is not None else ""
    if low is None or high is None:
        return f"{figure(mean, metric)} ({count}, no interval)"
    ends = percent_ends(low, high)
    if not metric.is_share:
        ends = f"{math.floor(10_000 * low) / 10_000:.4f}–{math.ceil(10_000 * high) / 10_000:.4f}"
    return f"{figure(mean, metric)} ({100 * level:.0f} % interval {ends}, {count})"


def percent_ends(low: float, high: float) -> str:
    """The ends of a share's interval in percent, rounded outwards: one that is narrower than a
    digit is still one."""
    return f"{math.floor(1000 * low) / 10:.1f}–{math.ceil(1000 * high) / 10:.1f}"


def day(time: float) -> str:
    """A unix time as a UTC date."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d")


def count(value: float | None) -> str:
    """A large count in engineering form: 1.2e12 as ``1.2 T``."""
    if value is None:
        return MISSING
    for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g} {unit}"
    return f"{value:.4g}"


def value_text(value: Any) -> str:
    """A recipe's value, short."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def axis_name(path: str) -> str:
    """``recipe.learning_rate`` as ``learning_rate``; other paths keep their prefix."""
    return path.removeprefix("recipe.")


def recipe_text(axes: Mapping[str, Any] | None) -> str:
    """Searched axes as ``name=value`` pairs."""
    if not axes:
        return MISSING if axes is None else "no axis searched"
    return ", ".join(f"{axis_name(path)}={value_text(value)}" for path, value in axes.items())


def moved_texts(moved: Mapping[str, Any], axes: Mapping[str, Any]) -> list[str]:
    """Each published value outside the searched range, and what was tried in its place."""
    return [
        f"{axis_name(path)} {value_text(value)} lies outside its range: {value_text(axes[path])}"
        for path, value in moved.items()
    ]


def nearest(name: str, valid: list[str]) -> list[str]:
    """Up to three of ``valid`` that look like ``name``; the first one when none does."""
    return difflib.get_close_matches(name, valid, n=3, cutoff=0.5) or valid[:1]
