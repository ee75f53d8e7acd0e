"""What a run will do before it does it: slots, trials, rungs, epochs, backbones and its forecast.

Pure arithmetic on a ``RunSpec``, the cluster's totals and each backbone's geometry and cost, as
JSON and as text for a terminal. No ray, no torch.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from orchestrator.launch.forecast import COLD_START_S, TFLOPS, Costs, expected_epochs, forecast
from orchestrator.ledger.state import FamilyForecast, Forecast
from orchestrator.ray_cluster.capacity import as_capacity
from orchestrator.spec.limits import ESTIMATED, HOUR_S, ResourceSpec
from orchestrator.spec.run import RunSpec, SweepSpec
from orchestrator.wording import duration, size, span
from trainables.backbones import Geometry
from trainables.config import Spec


def local_totals() -> dict[str, float]:
    """CPUs and GPUs of this machine, as a Ray started here would count them."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus, visible = 0, os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        gpus = sum(device.strip() not in ("", "-1") for device in visible.split(","))
    else:
        with suppress(OSError, subprocess.SubprocessError):
            listed = subprocess.run(
                ["nvidia-smi", "-L"], capture_output=True, timeout=5, check=False
            )
            gpus = sum(line.startswith(b"GPU ") for line in listed.stdout.splitlines())
    return {"CPU": float(cpus or 1), "GPU": float(gpus)}


def worker_asks(resources: ResourceSpec) -> dict[str, float]:
    """What one worker takes, on one node."""
    return {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}


def slot_asks(resources: ResourceSpec) -> dict[str, float]:
    """What one slot of its full size takes while it lives."""
    return {kind: resources.num_workers * n for kind, n in worker_asks(resources).items()}


def capacity_mistakes(resources: ResourceSpec, totals: Mapping[str, float]) -> list[str]:
    """Why the smallest slot can never be placed, a line for each resource that is short.

    ``totals`` is a :class:`ClusterCapacity`, or what one machine has.
    """
    least, per_worker = resources.least_workers, worker_asks(resources)
    mistakes = [
        f"a slot must fit the cluster: {least} workers ask for {least * n:g} {kind}, there is "
        f"{totals.get(kind, 0.0):g}. Fix: lower --workers or --{kind.lower()}s-per-worker"
        for kind, n in per_worker.items()
        if least * n > totals.get(kind, 0.0)
    ]
    cluster = as_capacity(totals)
    workers = cluster.workers(per_worker)
    if not mistakes and workers < least:
        asks = " + ".join(f"{n:g} {kind}" for kind, n in per_worker.items() if n)
        mistakes.append(
            f"a worker must fit a node, {least} of them the cluster: a worker asks for {asks}; "
            f"there is room for {workers} ({', '.join(map(str, cluster.kinds))}). "
            "Fix: lower --workers, --gpus-per-worker or --cpus-per-worker"
        )
    return mistakes


def capacity(resources: ResourceSpec, totals: Mapping[str, float]) -> int:
    """Slots that the cluster can ever have at once, and no more than ``max_slots``: of full size,
    and one more of what is left where that is enough for a smaller one."""
    full, rest = divmod(as_capacity(totals).workers(worker_asks(resources)), resources.num_workers)
    slots = full + (rest >= resources.least_workers)
    return min(slots, resources.max_slots) if resources.max_slots else slots


def slots_of(spec: RunSpec, trials: int, totals: Mapping[str, float]) -> int:
    """Slots that a run of so many search trials will have."""
    most = max(trials, spec.final_seeds * len(spec.sweeps))
    return min(most, capacity(spec.sweeps[0].resources, totals))


@dataclass(frozen=True, kw_only=True)
class SearchedAxis(Spec):
    """The values that trials draw from, and why these."""

    range: str
    why: str


@dataclass(frozen=True, kw_only=True)
class FamilyPlan(Spec):
    """One family's part of a run; epochs are over all of its trials, without the finals."""

    family: str
    dataset: str
    scale: str
    weights: str
    geometry: Geometry
    warnings: tuple[str, ...]
    trials: int
    scheduler: str
    rungs: tuple[int, ...]
    max_epochs: int
    expected_epochs: float
    worst_epochs: int
    space: Mapping[str, SearchedAxis]


@dataclass(frozen=True, kw_only=True)
class Plan(Spec):
    """What a run will do; :meth:`as_dict` is JSON of this ``schema``.

    ``cluster`` and ``slots`` are ``None`` where only the cluster can tell; ``slot`` is what one
    takes, ``tflops`` what estimates took a device to sustain (1e12 a second; ``None``: the
    default).
    """

    schema: int = 1
    name: str
    folder: str
    spec_hash: str
    cluster: Mapping[str, float] | None
    slot: Mapping[str, float]
    workers: Mapping[str, int]
    slots: int | None
    trials: int
    expected_epochs: float
    worst_epochs: int
    final_seeds: int
    final_epochs: int
    budget: Mapping[str, float] | None
    prices: Mapping[str, float] | None
    tflops: float | None
    forecast: Forecast
    families: tuple[FamilyPlan, ...]


def plan(
    spec: RunSpec,
    *,
    totals: Mapping[str, float] | None,
    geometry: Mapping[str, Geometry],
    costs: Costs,
    tflops: float | None = None,
) -> Plan:
    """``geometry`` and ``costs`` are by family; ``totals`` is ``None`` where only the cluster can
    tell what it holds."""
    families = tuple(_family_plan(sweep, geometry[sweep.family]) for sweep in spec.sweeps)
    trials, resources = sum(family.trials for family in families), spec.sweeps[0].resources
    slots = None if totals is None else slots_of(spec, trials, totals)
    return Plan(
        name=spec.name,
        folder=str(spec.folder),
        spec_hash=spec.hash(),
        cluster=totals,
        slot=slot_asks(resources),
        workers={"least": resources.least_workers, "most": resources.num_workers},
        slots=slots,
        trials=trials,
        expected_epochs=round(sum(family.expected_epochs for family in families), 1),
        worst_epochs=sum(family.worst_epochs for family in families),
        final_seeds=spec.final_seeds,
        final_epochs=sum(spec.final_seeds * family.max_epochs for family in families),
        budget=spec.budget,
        prices=spec.prices,
        tflops=tflops,
        forecast=forecast(spec, costs, slots=slots),
        families=families,
    )


def _family_plan(sweep: SweepSpec, geometry: Geometry) -> FamilyPlan:
    scheduler = sweep.scheduler
    return FamilyPlan(
        family=sweep.family,
        dataset=sweep.data.source,
        scale=sweep.backbone.scale,
        weights=sweep.backbone.weights,
        geometry=geometry,
        warnings=geometry.warnings,
        trials=sweep.trials,
        scheduler=scheduler.kind,
        rungs=scheduler.rungs(),
        max_epochs=scheduler.max_epochs,
        expected_epochs=round(expected_epochs(scheduler, sweep.trials), 1),
        worst_epochs=sweep.trials * scheduler.max_epochs,
        space={path: SearchedAxis(range=str(x), why=x.why) for path, x in sweep.space.items()},
    )


def geometry_line(geometry: Geometry) -> str:
    """How the model meets the images: size, patch, tokens, stem and adaptation."""
    parts = (
        geometry.model,
        f"{geometry.image_size} px",
        f"patch {geometry.patch}" if geometry.patch else "",
        f"{geometry.tokens} tokens" if geometry.tokens else "",
        f"stem {geometry.stem}" if geometry.stem else "",
        geometry.adaptation,
    )
    return ", ".join(filter(None, parts))


def plan_text(planned: Plan) -> str:
    """The plan for a terminal, line by line."""
    least, most = planned.workers["least"], planned.workers["most"]
    workers = f"{most} workers, " if most > 1 else ""
    if least < most:
        workers = f"{least}..{most} workers at the global batch of {most}, at most "
    asks = " + ".join(f"{count:g} {kind}" for kind, count in planned.slot.items() if count)
    slots = "as many as the cluster holds"
    if planned.cluster is not None:
        totals = ", ".join(f"{planned.cluster.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
        slots = f"{planned.slots} at once, of {totals}"
    lines = [
        f"run       {planned.name} in {planned.folder}, spec {planned.spec_hash}",
        f"slots     {slots}; each {workers}{asks}",
        f"epochs    {planned.expected_epochs:g} expected, {planned.worst_epochs} at worst, "
        f"over {planned.trials} trials",
    ]
    if planned.final_seeds:
        lines.append(
            f"finals    {planned.final_epochs} epochs more: each winner over "
            f"{planned.final_seeds} seeds, then the test split is opened"
        )
    lines += _forecast_lines(planned)
    for family in planned.families:
        lines += ["", *_family_lines(family, planned.forecast.families[family.family])]
    return "\n".join(lines)


def _forecast_lines(planned: Plan) -> list[str]:
    forecast, families = planned.forecast, len(planned.families)
    unit, disk = forecast.device or "", forecast.checkpoint_bytes
    if forecast.device_hours is None or forecast.basis is None or disk is None:
        unknown = ", ".join(family for family, cost in forecast.families.items() if cost is None)
        return [f"cost      unknown: {unknown} neither measured here nor of known size"]
    hours, usd = (
        span(f"{cases.expected:.3g}", f"{cases.worst:.3g}") if cases else None
        for cases in (forecast.device_hours, forecast.usd)
    )
    finals = ", finals included" if planned.final_seeds else ""
    cost = f"cost      {hours} {unit}-hours{finals} ({forecast.basis})"
    if ESTIMATED in forecast.basis:
        cost += f"; by {planned.tflops or TFLOPS[unit]:g} TFLOP/s a {unit}, maybe off by 3 times"
    lines = [cost]
    if wall := forecast.wall_hours:
        times = span(duration(wall.expected * HOUR_S), duration(wall.worst * HOUR_S))
        lines.append(f"time      {times} with {COLD_START_S:g} s of cold start")
    no_price = f"missing: --price {unit.lower()}_hour=DOLLARS"
    lines.append(f"money     {f'{usd} USD' if usd else no_price}")
    each = f", {1 / families:.0%} of it for each family" if families > 1 else ""
    lines += [
        f"budget    {amount:g} {name}{each}: the run stops before it is passed"
        for name, amount in (planned.budget or {}).items()
    ]
    kept, at_most = size(disk["kept"]), size(disk["at_most"])
    return [*lines, f"disk      checkpoints: {at_most} at most, {kept} at the end"]


def _family_lines(family: FamilyPlan, cost: FamilyForecast | None) -> list[str]:
    rungs = ", ".join(map(str, family.rungs)) or "none: every trial trains to the end"
    weights = {
        "none": "none: random, trained from scratch (--weights hub|PATH to fine-tune)",
        "hub": "hub: timm's own, fetched once (--weights none|PATH to go without)",
    }.get(family.weights, f"from {family.weights}")
    lines = [
        f"{family.family:<9} {geometry_line(family.geometry)}",
        f"  weights   {weights}",
        f"  trials    {family.trials} of at most {family.max_epochs} epochs; rungs {rungs}",
    ]
    if cost is None:
        lines.append("  cost      unknown until the model is built")
    else:
        uses = ", ".join(f"{size(count)} {name}" for name, count in cost.memory.items() if count)
        lines += [
            f"  cost      {duration(cost.epoch_seconds)} an epoch, {cost.basis}; "
            f"{cost.params_m:.3g} M parameters, {cost.gflops_per_image:.3g} GFLOPs an image",
            f"  memory    about {size(sum(cost.memory.values()))} a worker: {uses}",
            f"  storage   {size(cost.checkpoint_bytes)} a checkpoint",
        ]
    lines += [f"  warning   {warning}" for warning in family.warnings]
    return lines + [
        f"  search    {path} {axis.range}" + (f": {axis.why}" if axis.why else "")
        for path, axis in family.space.items()
    ]
