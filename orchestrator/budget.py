"""What a run may cost: ``--budget`` and ``--price``, and the seconds they come to. No ray.

Underneath is the worker-second: a second of one worker of a slot. A worker holds
``gpus_per_worker`` GPUs or, where it has none, ``cpus_per_worker`` CPUs; so many device-hours
pass with each of its hours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from orchestrator.limits import ResourceSpec
from trainables.errors import raise_if_any

BUDGETS = ("gpu_hours", "cpu_hours", "usd")
PRICES = ("gpu_hour", "cpu_hour")
HOUR_S = 3600.0
# Where a cost comes from: of one that was measured, budgets are sure.
MEASURED, ESTIMATED = "measured here", "estimated from FLOPs"

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
