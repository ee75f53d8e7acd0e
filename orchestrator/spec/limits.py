"""The scheduler's and the resources' part of a sweep, with their rules. No ray.

What a run may cost: ``--budget`` and ``--price``, and the seconds they come to. No ray.

Underneath is the worker-second: a second of one worker of a slot. A worker holds
``gpus_per_worker`` GPUs or, where it has none, ``cpus_per_worker`` CPUs; so many device-hours
pass with each of its hours.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trainables.errors import raise_if_any

SCHEDULERS = ("asha", "pasha", "none")
SAMPLERS = ("random", "sobol", "tpe")


def at_least(path: str, value: Any, low: float, *, whole: bool = True) -> list[str]:
    """The mistake of a value that is no number or is below ``low``; empty when it is fine."""
    number = isinstance(value, int) if whole else isinstance(value, int | float)
    if number and not isinstance(value, bool) and value >= low:
        return []
    noun = "a whole number" if whole else "a number"
    return [f"{path} must be {noun} of at least {low:g}; got {value!r}. Fix: --set {path}={low:g}"]


@dataclass(frozen=True, kw_only=True)
class SchedulerSpec:
    """When trials are compared. ``asha`` prunes at rungs, ``pasha`` also stops lengthening trials
    once their ranking is stable, ``none`` trains all to the end. ``audit`` is the share of the
    trials ASHA would prune that is finished anyway, to measure what pruning got wrong. ``sampler``
    draws the searched values: see :mod:`orchestrator.spec.spaces`."""

    kind: str = "asha"
    max_epochs: int = 9
    grace_epochs: int = 1
    reduction_factor: int = 3
    audit: float = 0.0
    sampler: str = "random"

    def rungs(self) -> tuple[int, ...]:
        """Epochs at which ASHA compares trials: grace x factor^k below the full length."""
        if self.kind == "none":
            return ()
        epochs, rung = [], self.grace_epochs
        while rung < self.max_epochs:
            epochs.append(rung)
            rung *= self.reduction_factor
        return tuple(epochs)

    def mistakes(self) -> list[str]:
        """Every rule broken, one line each."""
        found = []
        if self.kind not in SCHEDULERS:
            found.append(
                f"scheduler.kind must be one of {', '.join(SCHEDULERS)}; got {self.kind!r}. "
                "Fix: --set scheduler.kind=asha"
            )
        if self.sampler not in SAMPLERS:
            found.append(
                f"scheduler.sampler must be one of {', '.join(SAMPLERS)}; got {self.sampler!r}. "
                "Fix: --set scheduler.sampler=random"
            )
        if self.sampler == "tpe" and importlib.util.find_spec("optuna") is None:
            found.append(
                "scheduler.sampler=tpe needs optuna; it is not installed. Fix: pip install optuna, "
                "or --set scheduler.sampler=sobol"
            )
        found += at_least("scheduler.max_epochs", self.max_epochs, 1)
        found += at_least("scheduler.grace_epochs", self.grace_epochs, 1)
        found += at_least("scheduler.reduction_factor", self.reduction_factor, 2)
        found += at_least("scheduler.audit", self.audit, 0, whole=False)
        if not found and self.audit > (1 if self.kind == "asha" else 0):
            found.append(
                f"scheduler.audit must be a share of the trials that asha prunes; got {self.audit} "
                f"with scheduler.kind={self.kind}. Fix: --audit 0.1 with asha, else --audit 0"
            )
        if not found and self.grace_epochs > self.max_epochs:
            found.append(
                "scheduler.grace_epochs must not exceed scheduler.max_epochs; got "
                f"{self.grace_epochs} and {self.max_epochs}. Fix: --max-epochs {self.grace_epochs}"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class ResourceSpec:
    """What a slot takes, how many there may be, and how long anything may take.

    A slot has ``num_workers`` workers. With ``min_workers`` it is elastic: it goes on with fewer
    where nodes are gone, and the global batch stays that of ``num_workers``."""

    num_workers: int = 1
    min_workers: int | None = None
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    max_slots: int | None = None
    epoch_timeout_s: float = 3600.0
    slot_start_timeout_s: float = 600.0
    max_failures_per_trial: int = 2

    @property
    def least_workers(self) -> int:
        """Workers without which a slot does not train."""
        return self.num_workers if self.min_workers is None else self.min_workers

    @property
    def elastic(self) -> bool:
        """Whether slots may have fewer workers than ``num_workers``."""
        return self.least_workers < self.num_workers

    def mistakes(self) -> list[str]:
        """Every rule broken, one line each."""
        found = at_least("resources.num_workers", self.num_workers, 1)
        if self.min_workers is not None:
            found += at_least("resources.min_workers", self.min_workers, 1)
            if not found and self.min_workers > self.num_workers:
                found.append(
                    "resources.min_workers must not exceed resources.num_workers; got "
                    f"{self.min_workers} and {self.num_workers}. "
                    f"Fix: --workers {self.num_workers}..{self.min_workers}"
                )
        found += at_least("resources.cpus_per_worker", self.cpus_per_worker, 0.1, whole=False)
        found += at_least("resources.gpus_per_worker", self.gpus_per_worker, 0, whole=False)
        if self.max_slots is not None:
            found += at_least("resources.max_slots", self.max_slots, 1)
        found += at_least("resources.epoch_timeout_s", self.epoch_timeout_s, 1, whole=False)
        found += at_least(
            "resources.slot_start_timeout_s", self.slot_start_timeout_s, 1, whole=False
        )
        found += at_least("resources.max_failures_per_trial", self.max_failures_per_trial, 0)
        return found


BUDGETS = ("gpu_hours", "cpu_hours", "usd")
PRICES = ("gpu_hour", "cpu_hour")
HOUR_S = 3600.0
# Where a cost comes from: of one that was measured, budgets are sure.
MEASURED, ESTIMATED = "measured here", "estimated from FLOPs"
# How much more an epoch may take than the costliest one that was measured or seen.
EPOCH_MARGIN = 1.2

Amounts = Mapping[str, float]


def parse(
    budget: str | None, prices: Iterable[str]
) -> tuple[dict[str, float] | None, dict[str, float] | None]:
    """``usd=20`` and ``gpu_hour=2.50`` as ``{"usd": 20.0}`` and ``{"gpu_hour": 2.5}``; what was
    not given is ``None``. Raises ``UserError`` with all that is wrong."""
    wrong: list[str] = []
    caps = _amounts("--budget", [budget] if budget else [], BUDGETS, wrong)
    known = _amounts("--price", prices, PRICES, wrong)
    raise_if_any(wrong)
    return caps or None, known or None


def _amounts(
    option: str, texts: Iterable[str], names: tuple[str, ...], wrong: list[str]
) -> dict[str, float]:
    found = {}
    for text in texts:
        name, _, number = text.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if name.strip() in names and 0 < value < math.inf:
            found[name.strip()] = value
        else:
            wrong.append(
                f"{option} must be UNIT=AMOUNT, UNIT one of {', '.join(names)}, AMOUNT above 0; "
                f"got {text!r}. Fix: {option} {names[0]}=4"
            )
    return found


def device(resources: ResourceSpec) -> str:
    """``GPU`` or ``CPU``: what is counted."""
    return "GPU" if resources.gpus_per_worker else "CPU"


def device_hours(worker_seconds: float, resources: ResourceSpec) -> float:
    """Hours of GPUs, or of CPUs without any, that the workers held."""
    held = resources.gpus_per_worker or resources.cpus_per_worker
    return worker_seconds / HOUR_S * held


def usd(worker_seconds: float, resources: ResourceSpec, prices: Amounts | None) -> float | None:
    """What it costs: the device's hours, and a GPU worker's CPUs where they have a price too.

    ``None`` without a price for the device.
    """
    known = prices or {}
    if f"{device(resources).lower()}_hour" not in known:
        return None
    hourly = resources.gpus_per_worker * known.get("gpu_hour", 0.0)
    hourly += resources.cpus_per_worker * known.get("cpu_hour", 0.0)
    return worker_seconds / HOUR_S * hourly


def spent_in(
    unit: str, worker_seconds: float, resources: ResourceSpec, prices: Amounts | None
) -> float | None:
    """``worker_seconds`` in a budget's unit."""
    if unit == "usd":
        return usd(worker_seconds, resources, prices)
    return device_hours(worker_seconds, resources)


def cap_worker_seconds(
    budget: Amounts | None, resources: ResourceSpec, prices: Amounts | None
) -> float | None:
    """Worker-seconds that the budget affords; ``None`` without a budget."""
    for unit, amount in (budget or {}).items():
        one = spent_in(unit, 1.0, resources, prices)
        return None if one is None else amount / one
    return None


def mistakes(budget: Amounts | None, prices: Amounts | None, resources: ResourceSpec) -> list[str]:
    """A budget in a unit that this run does not spend, or in dollars without their price."""
    counted = f"{device(resources).lower()}_hours"
    for unit, amount in (budget or {}).items():
        if unit == "usd" and usd(1.0, resources, prices) is None:
            price = counted.removesuffix("s")
            return [
                f"--budget usd needs the price of a {device(resources)} hour; got "
                f"{dict(prices) if prices else 'none'}. Fix: --price {price}=DOLLARS"
            ]
        if unit not in ("usd", counted):
            held = f"--gpus-per-worker {resources.gpus_per_worker:g}"
            return [
                f"--budget counts what is used: {counted} with {held}; got {unit}. "
                f"Fix: --budget {counted}={amount:g}"
            ]
    return []
