"""The plan's forecast, made before the first trial, scored against what the run cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.compare.runs import RunData
from orchestrator.wording import MISSING, size, span

Scored = Mapping[str, Any]


def scored(runs: Sequence[RunData]) -> dict[str, Any] | None:
    """Device-hours of all runs together: ``expected`` if trials are pruned as expected, ``worst``
    if none is, and ``actual``; ``ratio`` is actual over expected, once every run is complete.

    ``None`` where a run has no forecast, or they count different devices.
    """
    told = [run.header.get("forecast") or {} for run in runs]
    hours = [one["device_hours"] for one in told if one.get("device_hours")]
    devices = {one.get("device") for one in told}
    if len(hours) < len(runs) or len(devices) != 1:
        return None
    expected, worst = (sum(one[case] for one in hours) for case in ("expected", "worst"))
    actual = sum(run.device_hours or 0.0 for run in runs)
    complete = all(run.status == "complete" for run in runs)
    return {
        "device": devices.pop(),
        "basis": " and ".join(sorted({one["basis"] for one in told})),
        "expected": expected,
        "worst": worst,
        "actual": actual,
        "ratio": actual / expected if complete and expected else None,
    }


def line(forecast: Scored | None, runs: Sequence[Mapping[str, Any]]) -> str:
    """Forecast, outcome and what the checkpoints take, in a line."""
    held = [run["checkpoint_bytes"] for run in runs]
    disk = f"Checkpoints on disk: {MISSING if None in held else size(sum(held))}."
    if forecast is None:
        return disk
    told = span(f"{forecast['expected']:.3g}", f"{forecast['worst']:.3g}")
    so_far = f"{forecast['actual']:.3g} were spent{_ratio(forecast)}"
    return f"Forecast: {told} {forecast['device']}-hours ({forecast['basis']}); {so_far}. {disk}"


def _ratio(forecast: Scored) -> str:
    if forecast["ratio"] is None:
        return " so far"
    return f", {forecast['ratio']:.2f} times the expected"
