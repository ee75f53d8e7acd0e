"""The first record of a run, as values: what was asked, forecast and found before any trial.

Ledgers of other versions are read: keys they lack are missing here, keys they have besides are
left out. The facts of a forecast are those of :mod:`orchestrator.launch.forecast`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from orchestrator.spec.run import RunSpec
from trainables.config import Spec

Geometry = Mapping[str, Any]  # a backbone's, as `describe` gives it


@dataclass(frozen=True, kw_only=True)
class DatasetFacts(Spec):
    """What a family's image store holds; see :class:`trainables.data.DatasetInfo`."""

    name: str | None = None
    class_names: tuple[str, ...] = ()
    height: int
    width: int
    channels: int = 3
    counts: Mapping[str, int] = field(default_factory=dict)  # images by split
    content_hash: str | None = None
    mirror_safe: bool = True
    skipped: int = 0


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
class FamilyForecast(Spec):
    """What a family was expected to cost on one slot. ``memory`` is bytes of each worker by
    purpose, ``slot_seconds`` by ``expected``, ``worst`` and ``finals``."""

    basis: str
    epoch_seconds: float
    setup_seconds: float = 0.0
    first_setup_seconds: float = 0.0  # of a slot's first trial, which imports what it needs
    checkpoint_bytes: int
    params_m: float
    gflops_per_image: float
    memory: Mapping[str, int] = field(default_factory=dict)
    slot_seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Forecast(Spec):
    """What the plan foretold: hours of ``device`` and of wall time, dollars, and by family. An
    amount is ``None`` where it was not known; ``checkpoint_bytes`` is by ``kept`` and ``at_most``.
    """

    device: str | None = None
    slots: int | None = None
    basis: str | None = None
    device_hours: Cases | None = None
    wall_hours: Cases | None = None
    usd: Cases | None = None
    checkpoint_bytes: Mapping[str, int] | None = None
    families: Mapping[str, FamilyForecast | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunHeader(Spec):
    """``datasets`` and ``geometry`` are by family; a geometry is what
    :func:`trainables.backbones.describe` says, as a mapping."""

    schema: int = 1
    run: str | None = None
    spec: RunSpec = field(default_factory=lambda: RunSpec(name=""))
    spec_hash: str | None = None
    environment: Environment = field(default_factory=Environment)
    code_version: str | None = None
    datasets: Mapping[str, DatasetFacts] = field(default_factory=dict)
    geometry: Mapping[str, Geometry] = field(default_factory=dict)
    forecast: Forecast | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`as_dict`; of a run without a name, the spec has it or none does."""
        spec = values.get("spec") or {}
        name = values.get("run") or spec.get("name")
        return super().from_dict({**values, "run": name, "spec": {"name": name or "", **spec}})
