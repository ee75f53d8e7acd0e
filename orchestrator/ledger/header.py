"""The first record of a ledger: what was asked for, on which machine, of which images, and what it
was expected to cost (:mod:`orchestrator.launch.forecast`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from orchestrator.spec.run import RunSpec
from orchestrator.spec.screening import ScreenSpec
from trainables.config import DatasetFacts
from trainables.spec import Spec

Geometry = Mapping[str, Any]  # a backbone's, as `describe` gives it


@dataclass(frozen=True, kw_only=True)
class Environment(Spec):
    """Versions and hardware of the machine that began the run."""

    python: str | None = None
    platform: str | None = None
    processor: str | None = None
    cpus: int | None = None
    memory_gb: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Cases(Spec):
    """A forecast amount, if trials are pruned as expected and if none is."""

    expected: float
    worst: float


@dataclass(frozen=True, kw_only=True)
class CandidateForecast(Spec):
    """What a candidate was expected to cost on one slot. ``memory`` is bytes of each worker by
    purpose, ``slot_seconds`` by ``expected``, ``worst`` and ``finals``. ``compile_seconds`` is what
    compiling the model took, and ``compile_saves_seconds`` by how much less a full trial's steps
    take then; both ``None`` where that was not tried."""

    basis: str
    epoch_seconds: float
    setup_seconds: float = 0.0
    first_setup_seconds: float = 0.0  # of a slot's first trial, which imports what it needs
    checkpoint_bytes: int
    params_m: float
    gflops_per_image: float
    memory: Mapping[str, int] = field(default_factory=dict)
    slot_seconds: Mapping[str, float] = field(default_factory=dict)
    compile_seconds: float | None = None
    compile_saves_seconds: float | None = None

    @property
    def compile_pays(self) -> bool | None:
        """Whether it saves more in a full trial than it takes; ``None`` where that is not known."""
        if self.compile_seconds is None or self.compile_saves_seconds is None:
            return None
        return self.compile_saves_seconds > self.compile_seconds


@dataclass(frozen=True, kw_only=True)
class Forecast(Spec):
    """What the plan foretold: hours of ``device`` and of wall time, dollars, and by candidate as
    ``families``. An amount is ``None`` where it was not known; ``checkpoint_bytes`` is by ``kept``
    and ``at_most``.
    """

    device: str | None = None
    slots: int | None = None
    basis: str | None = None
    device_hours: Cases | None = None
    wall_hours: Cases | None = None
    usd: Cases | None = None
    checkpoint_bytes: Mapping[str, int] | None = None
    families: Mapping[str, CandidateForecast | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunHeader(Spec):
    """``datasets`` and ``geometry`` are by candidate; a geometry is what
    :func:`trainables.backbones.describe` says, as a mapping. ``screen`` is what a screen was asked
    for, which has no trials."""

    schema: int = 1
    run: str | None = None
    spec: RunSpec = field(default_factory=lambda: RunSpec(name=""))
    spec_hash: str | None = None
    environment: Environment = field(default_factory=Environment)
    code_version: str | None = None
    datasets: Mapping[str, DatasetFacts] = field(default_factory=dict)
    geometry: Mapping[str, Geometry] = field(default_factory=dict)
    forecast: Forecast | None = None
    screen: ScreenSpec | None = field(default=None, metadata={"before": None})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`as_dict`; of a run without a name, the spec has it or none does."""
        spec = values.get("spec") or {}
        name = values.get("run") or spec.get("name")
        return super().from_dict({**values, "run": name, "spec": {"name": name or "", **spec}})
