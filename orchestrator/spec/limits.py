"""When trials end, what a slot takes, and what a run may cost (``--budget`` and ``--price``).

Underneath a budget is the worker-second: a second of one worker of a slot. A worker holds
``gpus_per_worker`` GPUs or, where it has none, ``cpus_per_worker`` CPUs; so many device-hours
pass with each of its hours.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trainables.errors import raise_if_any
from trainables.spec import Spec, ruled


@dataclass(frozen=True, kw_only=True)
class SchedulerSpec(Spec, section="scheduler"):
    """When trials are compared. ``asha`` prunes at rungs, ``pasha`` also stops lengthening trials
    once their ranking is stable, ``top_k`` compares all once, after ``grace_epochs``, and trains
    the best to the end, ``none`` trains all to the end. ``audit`` is the share of the trials ASHA
    would prune that is finished anyway, to measure what pruning got wrong. ``sampler``
    draws the searched values: see :mod:`orchestrator.spec.spaces`.

    ``least_steps``, where it is given, is what ``max_epochs`` is chosen for as the run begins: so
    many optimizer steps of a full trial (:mod:`orchestrator.launch.length`). ``noise_rule`` says
    whom a rung does not prune: a trial within one binomial standard error of the ``cutoff``, of
    ``chance``, of either (``both``), or nobody (``off``)."""

    kind: str = ruled("asha", choices=("asha", "pasha", "top_k", "none"))
    max_epochs: int = ruled(9, 1)
    least_steps: int | None = ruled(None, 1, operational=True, before=None)
    grace_epochs: int = ruled(1, 1)
    reduction_factor: int = ruled(3, 2)
    noise_rule: str = ruled("off", choices=("off", "cutoff", "chance", "both"), before="off")
    audit: float = ruled(0.0, 0)
    sampler: str = ruled("random", choices=("random", "sobol", "tpe"))

    @property
    def pauses(self) -> bool:
        """Whether trials wait at rungs for others, and not in a slot."""
        return self.kind in ("pasha", "top_k")

    def rungs(self) -> tuple[int, ...]:
        """Epochs at which trials are compared: grace x factor^k below the full length, or the first
        of these. A trial is compared at the end of an epoch, never within one."""
        powers = {"none": range(0), "top_k": range(1)}.get(self.kind, itertools.count())
        rungs = (self.grace_epochs * self.reduction_factor**power for power in powers)
        return tuple(itertools.takewhile(lambda rung: rung < self.max_epochs, rungs))

    def mistakes(self) -> list[str]:
        """Every rule broken, one line each."""
        mistakes = super().mistakes()
        if self.sampler == "tpe" and importlib.util.find_spec("optuna") is None:
            mistakes.append(
                "scheduler.sampler=tpe needs optuna; it is not installed. Fix: pip install optuna, "
                "or --set scheduler.sampler=sobol"
            )
        if not mistakes and self.audit > (1 if self.kind == "asha" else 0):
            mistakes.append(
                f"scheduler.audit must be a share of the trials that asha prunes; got {self.audit} "
                f"with scheduler.kind={self.kind}. Fix: --audit 0.1 with asha, else --audit 0"
            )
        if not mistakes and self.grace_epochs > self.max_epochs:
            mistakes.append(
                "scheduler.grace_epochs must not exceed scheduler.max_epochs; got "
                f"{self.grace_epochs} and {self.max_epochs}. Fix: --max-epochs {self.grace_epochs}"
            )
        return mistakes


@dataclass(frozen=True, kw_only=True)
class ResourceSpec(Spec, section="resources"):
    """What a slot takes, how many there may be, and how long anything may take.

    A slot has ``num_workers`` workers. With ``min_workers`` it is elastic: it goes on with fewer
    where nodes are gone, and the global batch stays that of ``num_workers``."""

    num_workers: int = ruled(1, 1)
    min_workers: int | None = ruled(None, 1, operational=True)
    cpus_per_worker: float = ruled(1.0, 0.1, operational=True)
    gpus_per_worker: float = ruled(0.0, 0)
    max_slots: int | None = ruled(None, 1, operational=True)
    epoch_timeout_s: float = ruled(3600.0, 1, operational=True)
    slot_start_timeout_s: float = ruled(600.0, 1, operational=True)
    max_failures_per_trial: int = ruled(2, 0, operational=True)

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
        mistakes = super().mistakes()
        if mistakes or self.least_workers <= self.num_workers:
            return mistakes
        return [
            "resources.min_workers must not exceed resources.num_workers; got "
            f"{self.min_workers} and {self.num_workers}. "
            f"Fix: --workers {self.num_workers}..{self.min_workers}"
        ]


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
    mistakes: list[str] = []
    caps: dict[str, float] = {}
    hourly_prices: dict[str, float] = {}
    for option, texts, units, amounts in (
        ("--budget", [budget] if budget else [], ("gpu_hours", "cpu_hours", "usd"), caps),
        ("--price", prices, ("gpu_hour", "cpu_hour"), hourly_prices),
    ):
        for text in texts:
            unit, _, number = text.partition("=")
            try:
                amount = float(number)
            except ValueError:
                amount = math.nan
            if unit.strip() in units and 0 < amount < math.inf:
                amounts[unit.strip()] = amount
            else:
                mistakes.append(
                    f"{option} must be UNIT=AMOUNT, UNIT one of {', '.join(units)}, AMOUNT above "
                    f"0; got {text!r}. Fix: {option} {units[0]}=4"
                )
    raise_if_any(mistakes)
    return caps or None, hourly_prices or None


def device(resources: ResourceSpec) -> str:
    """``GPU`` or ``CPU``: what is counted."""
    return "GPU" if resources.gpus_per_worker else "CPU"


def device_hours(worker_seconds: float, resources: ResourceSpec) -> float:
    """Hours of GPUs, or of CPUs without any, for as long as the workers were at work."""
    devices_per_worker = resources.gpus_per_worker or resources.cpus_per_worker
    return worker_seconds / HOUR_S * devices_per_worker


def usd(worker_seconds: float, resources: ResourceSpec, prices: Amounts | None) -> float | None:
    """What it costs: the device's hours, and a GPU worker's CPUs where they have a price too;
    ``None`` without a price for the device."""
    hourly_prices = prices or {}
    if f"{device(resources).lower()}_hour" not in hourly_prices:
        return None
    hourly = resources.gpus_per_worker * hourly_prices.get("gpu_hour", 0.0)
    hourly += resources.cpus_per_worker * hourly_prices.get("cpu_hour", 0.0)
    return worker_seconds / HOUR_S * hourly


def spent_in(
    unit: str, worker_seconds: float, resources: ResourceSpec, prices: Amounts | None
) -> float | None:
    """``worker_seconds`` in a budget's unit."""
    if unit == "usd":
        return usd(worker_seconds, resources, prices)
    return device_hours(worker_seconds, resources)


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
            option = f"--gpus-per-worker {resources.gpus_per_worker:g}"
            return [
                f"--budget counts what is used: {counted} with {option}; got {unit}. "
                f"Fix: --budget {counted}={amount:g}"
            ]
    return []
