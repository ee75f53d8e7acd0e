"""What differed between the families of a comparison besides the architecture, and what the plan
had forecast that the comparison would cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.compare.runs import (
    Curve,
    RunData,
    Values,
    best_trial,
    family_labels,
    search_trials,
)
from orchestrator.ledger.state import Forecast
from orchestrator.wording import span

FACTS = (
    "model", "weights", "scale", "params_m", "gflops_per_image", "image_size", "patch", "stem",
    "tokens", "adaptation", "mean", "std", "train_limit", "fraction", "train_images", "optimizer",
    "batch_size_per_worker", "global_batch", "freeze", "augment", "flip", "precision", "compile",
    "channels_last", "epochs", "num_workers", "device",
)  # fmt: skip

OLD_NAMES = {"road": "adaptation"}  # of facts, in ledgers of before 2026-11-28


@dataclass(frozen=True, kw_only=True)
class Confound:
    """One fact by family; ``None`` where a family does not state it."""

    what: str
    values: Values
    same: bool


def confounds(families: Mapping[str, Sequence[Curve]], runs: Sequence[RunData]) -> list[Confound]:
    """One row a fact that any family states.

    The facts are those of the family's best finished trial, else of its first one: what its
    worker reported, then its recipe, the header's geometry and the sweep's spec.
    """
    headers = _header_facts(runs)
    facts = {label: _facts(curves, headers[label]) for label, curves in families.items()}
    rows = []
    for what in FACTS:
        values = {label: stated.get(what) for label, stated in facts.items()}
        first = next((value for value in values.values() if value is not None), None)
        if first is not None:
            same = all(value == first for value in values.values())
            rows.append(Confound(what=what, values=values, same=same))
    return rows


def _header_facts(runs: Sequence[RunData]) -> dict[str, Values]:
    by_label: dict[str, Values] = {}
    for (index, family), label in family_labels(runs).items():
        facts: dict[str, Any] = {}
        for sweep in runs[index].sweeps:
            if sweep.family == family:
                facts |= {**sweep.data.as_dict(), **sweep.backbone.as_dict()}
                facts["epochs"] = sweep.scheduler.max_epochs
        by_label[label] = {**facts, **runs[index].header.geometry.get(family, {})}
    return by_label


def _facts(curves: Sequence[Curve], header: Values) -> Values:
    search = search_trials(curves)
    chosen = best_trial(search) or next(iter(search), None)
    layers = [header]
    if chosen is not None:
        axes = {path.rpartition(".")[2]: value for path, value in chosen.axes.items()}
        layers += [chosen.recipe, axes, chosen.detail]
    stated = [(k, v) for layer in layers for k, v in layer.items() if v is not None]
    return {OLD_NAMES.get(key, key): value for key, value in stated}


@dataclass(frozen=True, kw_only=True)
class ForecastScore:
    """Hours of ``device`` of all runs together, by the plan made before the first trial.

    ``expected`` if trials are pruned as expected, ``worst`` if none is, and ``actual``; ``ratio``:
    actual over expected, once every run is complete. ``basis`` says what the plan rested on.
    """

    device: str
    basis: str
    expected: float
    worst: float
    actual: float
    ratio: float | None

    @property
    def sentence(self) -> str:
        """Forecast and outcome."""
        so_far = " so far" if self.ratio is None else f", {self.ratio:.2f} times the expected"
        hours = f"{span(f'{self.expected:.3g}', f'{self.worst:.3g}')} {self.device}-hours"
        return f"Forecast: {hours} ({self.basis}); {self.actual:.3g} were spent{so_far}."


def score_forecast(runs: Sequence[RunData]) -> ForecastScore | None:
    """``None`` where a run has no forecast, or they count different devices."""
    forecasts = [run.header.forecast or Forecast() for run in runs]
    hours = [forecast.device_hours for forecast in forecasts if forecast.device_hours]
    devices = {forecast.device for forecast in forecasts}
    if len(hours) < len(runs) or len(devices) != 1:
        return None
    expected, worst = (sum(getattr(part, case) for part in hours) for case in ("expected", "worst"))
    actual = sum(run.device_hours for run in runs)
    complete = all(run.status.is_complete for run in runs)
    return ForecastScore(
        device=str(devices.pop()), expected=expected, worst=worst, actual=actual,
        basis=" and ".join(sorted({str(forecast.basis) for forecast in forecasts})),
        ratio=actual / expected if complete and expected else None,
    )  # fmt: skip
