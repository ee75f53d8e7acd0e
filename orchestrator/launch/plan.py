"""What a run will do before it does it: trials, rungs, epochs, slots, backbones, and its forecast.

Pure arithmetic on a ``RunSpec``, the cluster's totals and each backbone's geometry and cost: no
ray, no torch.

The plan for a terminal.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.launch.forecast import (
    CASES,
    COLD_START_S,
    TFLOPS,
    Cost,
    Forecast,
    expected_epochs,
    forecast,
)
from orchestrator.ray_cluster.capacity import room_of
from orchestrator.spec.limits import ESTIMATED, HOUR_S, ResourceSpec
from orchestrator.spec.run import RunSpec, SweepSpec
from orchestrator.wording import duration, size, span
from trainables.backbones import Geometry


def local_totals() -> dict[str, float]:
    """CPUs and GPUs of this machine, as a Ray started here would count them."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"CPU": float(cpus or 1), "GPU": float(_local_gpus())}


def _local_gpus() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    if shutil.which("nvidia-smi") is None:
        return 0
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def worker_asks(resources: ResourceSpec) -> dict[str, float]:
    """What one worker holds, on one node."""
    return {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}


def slot_asks(resources: ResourceSpec) -> dict[str, float]:
    """What one slot of its full size holds while it lives."""
    return {kind: resources.num_workers * one for kind, one in worker_asks(resources).items()}


def feasible(resources: ResourceSpec, total: Mapping[str, float]) -> list[str]:
    """Why the smallest slot can never be placed, one line per resource: what is asked, what
    there is. ``total`` is a :class:`ClusterCapacity`, or what one machine holds."""
    least = resources.least_workers
    found = []
    for kind, one in worker_asks(resources).items():
        asked, there = least * one, total.get(kind, 0.0)
        if asked > there:
            option = f"--{kind.lower()}s-per-worker"
            found.append(
                f"a slot must fit the cluster: {least} workers ask for "
                f"{asked:g} {kind}, there is {there:g}. Fix: lower --workers or {option}"
            )
    room = room_of(total)
    fitting = room.workers(worker_asks(resources))
    if not found and fitting < least:
        wanted = " + ".join(f"{n:g} {kind}" for kind, n in worker_asks(resources).items() if n)
        found.append(
            f"a worker must fit a node, {least} of them the cluster: a worker asks for {wanted}; "
            f"there is room for {fitting} ({', '.join(map(str, room.kinds))}). "
            "Fix: lower --workers, --gpus-per-worker or --cpus-per-worker"
        )
    return found


def capacity(resources: ResourceSpec, total: Mapping[str, float]) -> int:
    """Slots that the cluster can ever hold at once, and no more than ``max_slots``: of full size,
    and one more of what is left where that is enough for a smaller one."""
    full, rest = divmod(room_of(total).workers(worker_asks(resources)), resources.num_workers)
    held = full + (rest >= resources.least_workers)
    return min(held, resources.max_slots) if resources.max_slots else held


def slots_of(spec: RunSpec, trials: int, total: Mapping[str, float]) -> int:
    """Slots that a run of so many search trials will have."""
    most = max(trials, spec.final_seeds * len(spec.sweeps))
    return min(most, capacity(spec.sweeps[0].resources, total))


@dataclass(frozen=True, kw_only=True)
class SearchedAxis:
    """The values that trials draw from, and why these."""

    range: str
    why: str


@dataclass(frozen=True, kw_only=True)
class FamilyPlan:
    """One family's part of a run; epochs are over all of its trials."""

    family: str
    dataset: str
    scale: str
    weights: str
    geometry: Geometry
    trials: int
    scheduler: str
    rungs: tuple[int, ...]
    max_epochs: int
    expected_epochs: float
    worst_epochs: int
    space: Mapping[str, SearchedAxis]

    @classmethod
    def of(cls, sweep: SweepSpec, geometry: Geometry) -> FamilyPlan:
        """What ``sweep`` will do with a backbone of this geometry."""
        scheduler = sweep.scheduler
        return cls(
            family=sweep.family,
            dataset=sweep.data.source,
            scale=sweep.backbone.scale,
            weights=sweep.backbone.weights,
            geometry=geometry,
            trials=sweep.trials,
            scheduler=scheduler.kind,
            rungs=scheduler.rungs(),
            max_epochs=scheduler.max_epochs,
            expected_epochs=round(expected_epochs(scheduler, sweep.trials), 1),
            worst_epochs=sweep.trials * scheduler.max_epochs,
            space={
                path: SearchedAxis(range=str(domain), why=domain.why)
                for path, domain in sweep.space.items()
            },
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will do. ``cluster`` and ``slots`` are ``None`` where only the cluster can tell;
    ``slot`` is what one slot asks for, ``tflops`` what estimates took a device to sustain (1e12 a
    second; ``None``: the default)."""

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

    def as_dict(self) -> dict[str, Any]:
        """JSON of schema 1."""
        families = [
            {**asdict(family), "geometry": family.geometry.as_dict(), "rungs": list(family.rungs)}
            | {"warnings": list(family.geometry.warnings)}
            for family in self.families
        ]
        plain = {**vars(self), "cluster": self.cluster and dict(self.cluster)}
        return {"schema": 1, **plain, "families": families}


def plan(
    spec: RunSpec,
    *,
    totals: Mapping[str, float] | None,
    geometry: Mapping[str, Geometry],
    costs: Mapping[str, Cost | None],
    tflops: float | None = None,
) -> Plan:
    """``geometry`` and ``costs`` are by family; ``totals`` is ``None`` where only the cluster can
    tell what it holds."""
    families = tuple(FamilyPlan.of(sweep, geometry[sweep.family]) for sweep in spec.sweeps)
    trials, resources = sum(sweep.trials for sweep in spec.sweeps), spec.sweeps[0].resources
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


def geometry_line(geometry: Geometry) -> str:
    """How the model meets the images: size, patch, tokens, stem and adaptation."""
    parts = [geometry.model, f"{geometry.image_size} px"]
    if geometry.patch:
        parts.append(f"patch {geometry.patch}")
    if geometry.tokens:
        parts.append(f"{geometry.tokens} tokens")
    if geometry.stem:
        parts.append(f"stem {geometry.stem}")
    return ", ".join([*parts, geometry.road])


def plan_text(planned: Plan) -> str:
    """The plan for a terminal, line by line."""
    asks = " + ".join(f"{count:g} {kind}" for kind, count in planned.slot.items() if count)
    if planned.cluster is None:
        slots = "as many as the cluster holds"
    else:
        total = ", ".join(f"{planned.cluster.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
        slots = f"{planned.slots} at once, of {total}"
    lines = [
        f"run       {planned.name} in {planned.folder}, spec {planned.spec_hash}",
        f"slots     {slots}; each {_workers(planned.workers)}{asks}",
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
        lines += ["", *_family_lines(family, planned.forecast)]
    return "\n".join(lines)


def _workers(workers: Mapping[str, int]) -> str:
    least, most = workers["least"], workers["most"]
    if least < most:
        return f"{least}..{most} workers at the global batch of {most}, at most "
    return f"{most} workers, " if most > 1 else ""


def _forecast_lines(planned: Plan) -> list[str]:
    forecast = planned.forecast
    unit, hours, wall = forecast["device"], forecast["device_hours"], forecast["wall_hours"]
    if hours is None:
        unknown = [family for family, cost in forecast["families"].items() if cost is None]
        return [f"cost      unknown: {', '.join(unknown)} neither measured here nor of known size"]
    finals = ", finals included" if planned.final_seeds else ""
    cost = f"cost      {_cases(hours)} {unit}-hours{finals} ({forecast['basis']})"
    if ESTIMATED in forecast["basis"]:
        cost += f"; by {planned.tflops or TFLOPS[unit]:g} TFLOP/s a {unit}, maybe off by 3 times"
    lines = [cost]
    if wall is not None:
        times = span(*(duration(wall[case] * HOUR_S) for case in CASES))
        lines.append(f"time      {times} with {COLD_START_S:g} s of cold start")
    usd, disk = forecast["usd"], forecast["checkpoint_bytes"]
    price = f"missing: --price {unit.lower()}_hour=DOLLARS"
    return [
        *lines,
        f"money     {price if usd is None else f'{_cases(usd)} USD'}",
        *_budget_lines(planned),
        f"disk      checkpoints: {size(disk['at_most'])} at most, {size(disk['kept'])} at the end",
    ]


def _cases(values: Mapping[str, float]) -> str:
    return span(*(f"{values[case]:.3g}" for case in CASES))


def _budget_lines(planned: Plan) -> list[str]:
    families = len(planned.families)
    each = f", {1 / families:.0%} of it for each family" if families > 1 else ""
    return [
        f"budget    {amount:g} {unit}{each}: the run stops before it is passed"
        for unit, amount in (planned.budget or {}).items()
    ]


def _family_lines(family: FamilyPlan, forecast: Forecast) -> list[str]:
    rungs = ", ".join(map(str, family.rungs)) or "none: every trial trains to the end"
    return [
        f"{family.family:<9} {geometry_line(family.geometry)}",
        f"  weights   {weights_line(family.weights)}",
        f"  trials    {family.trials} of at most {family.max_epochs} epochs; rungs {rungs}",
        *_cost_lines(forecast["families"][family.family]),
        *(f"  warning   {warning}" for warning in family.geometry.warnings),
        *(
            f"  search    {path} {axis.range}" + (f": {axis.why}" if axis.why else "")
            for path, axis in family.space.items()
        ),
    ]


def _cost_lines(cost: Mapping[str, Any] | None) -> list[str]:
    if cost is None:
        return ["  cost      unknown until the model is built"]
    memory = cost["memory"]
    purposes = ", ".join(f"{size(count)} {name}" for name, count in memory.items() if count)
    return [
        f"  cost      {duration(cost['epoch_seconds'])} an epoch, {cost['basis']}; "
        f"{cost['params_m']:.3g} M parameters, {cost['gflops_per_image']:.3g} GFLOPs an image",
        f"  memory    about {size(sum(memory.values()))} a worker: {purposes}",
        f"  storage   {size(cost['checkpoint_bytes'])} a checkpoint",
    ]


def weights_line(weights: str) -> str:
    """Where the first weights come from."""
    if weights == "none":
        return "none: random, trained from scratch (--weights hub|PATH to fine-tune)"
    if weights == "hub":
        return "hub: timm's own, fetched once (--weights none|PATH to go without)"
    return f"from {weights}"
