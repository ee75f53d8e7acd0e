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
from dataclasses import dataclass
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
    cluster = room_of(totals)
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
    full, rest = divmod(room_of(totals).workers(worker_asks(resources)), resources.num_workers)
    slots = full + (rest >= resources.least_workers)
    return min(slots, resources.max_slots) if resources.max_slots else slots


def slots_of(spec: RunSpec, trials: int, totals: Mapping[str, float]) -> int:
    """Slots that a run of so many search trials will have."""
    most = max(trials, spec.final_seeds * len(spec.sweeps))
    return min(most, capacity(spec.sweeps[0].resources, totals))


@dataclass(frozen=True, kw_only=True)
class FamilyPlan:
    """One family's part of a run; epochs are over all of its trials."""

    sweep: SweepSpec
    geometry: Geometry

    @property
    def expected_epochs(self) -> float:
        """Epochs that the scheduler is expected to train."""
        return round(expected_epochs(self.sweep.scheduler, self.sweep.trials), 1)

    @property
    def worst_epochs(self) -> int:
        """Epochs when no trial is pruned."""
        return self.sweep.trials * self.sweep.scheduler.max_epochs

    def as_dict(self) -> dict[str, Any]:
        """JSON of schema 1."""
        sweep, scheduler = self.sweep, self.sweep.scheduler
        return {
            "family": sweep.family,
            "dataset": sweep.data.source,
            "scale": sweep.backbone.scale,
            "weights": sweep.backbone.weights,
            "geometry": self.geometry.as_dict(),
            "warnings": list(self.geometry.warnings),
            "trials": sweep.trials,
            "scheduler": scheduler.kind,
            "rungs": list(scheduler.rungs()),
            "max_epochs": scheduler.max_epochs,
            "expected_epochs": self.expected_epochs,
            "worst_epochs": self.worst_epochs,
            "space": {
                path: {"range": str(domain), "why": domain.why}
                for path, domain in sweep.space.items()
            },
        }

    def lines(self, cost: Mapping[str, Any] | None) -> list[str]:
        """For a terminal; ``cost`` is the family's forecast."""
        sweep, scheduler = self.sweep, self.sweep.scheduler
        rungs = ", ".join(map(str, scheduler.rungs())) or "none: every trial trains to the end"
        lines = [
            f"{sweep.family:<9} {geometry_line(self.geometry)}",
            f"  weights   {weights_line(sweep.backbone.weights)}",
            f"  trials    {sweep.trials} of at most {scheduler.max_epochs} epochs; rungs {rungs}",
        ]
        if cost is None:
            lines.append("  cost      unknown until the model is built")
        else:
            memory = cost["memory"]
            uses = ", ".join(f"{size(count)} {name}" for name, count in memory.items() if count)
            lines += [
                f"  cost      {duration(cost['epoch_seconds'])} an epoch, {cost['basis']}; "
                f"{cost['params_m']:.3g} M parameters, "
                f"{cost['gflops_per_image']:.3g} GFLOPs an image",
                f"  memory    about {size(sum(memory.values()))} a worker: {uses}",
                f"  storage   {size(cost['checkpoint_bytes'])} a checkpoint",
            ]
        lines += [f"  warning   {warning}" for warning in self.geometry.warnings]
        return lines + [
            f"  search    {path} {domain}" + (f": {domain.why}" if domain.why else "")
            for path, domain in sweep.space.items()
        ]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will do. ``totals`` and ``slots`` are ``None`` where only the cluster can tell;
    ``tflops`` is what estimates took a device to sustain (1e12 a second; ``None``: the default)."""

    spec: RunSpec
    totals: Mapping[str, float] | None
    slots: int | None
    tflops: float | None
    forecast: Forecast
    families: tuple[FamilyPlan, ...]

    @property
    def trials(self) -> int:
        """Search trials of all families."""
        return sum(sweep.trials for sweep in self.spec.sweeps)

    @property
    def expected_epochs(self) -> float:
        """Epochs that the schedulers are expected to train, without the finals."""
        return round(sum(family.expected_epochs for family in self.families), 1)

    @property
    def worst_epochs(self) -> int:
        """Epochs when no trial is pruned, without the finals."""
        return sum(family.worst_epochs for family in self.families)

    @property
    def final_epochs(self) -> int:
        """Epochs of the finals."""
        seeds = self.spec.final_seeds
        return sum(seeds * sweep.scheduler.max_epochs for sweep in self.spec.sweeps)

    def as_dict(self) -> dict[str, Any]:
        """JSON of schema 1."""
        spec, resources = self.spec, self.spec.sweeps[0].resources
        return {
            "schema": 1,
            "name": spec.name,
            "folder": str(spec.folder),
            "spec_hash": spec.hash(),
            "cluster": None if self.totals is None else dict(self.totals),
            "slot": slot_asks(resources),
            "workers": {"least": resources.least_workers, "most": resources.num_workers},
            "slots": self.slots,
            "trials": self.trials,
            "expected_epochs": self.expected_epochs,
            "worst_epochs": self.worst_epochs,
            "final_seeds": spec.final_seeds,
            "final_epochs": self.final_epochs,
            "budget": spec.budget,
            "prices": spec.prices,
            "tflops": self.tflops,
            "forecast": self.forecast,
            "families": [family.as_dict() for family in self.families],
        }

    def text(self) -> str:
        """For a terminal."""
        spec, resources = self.spec, self.spec.sweeps[0].resources
        least, most = resources.least_workers, resources.num_workers
        workers = f"{most} workers, " if most > 1 else ""
        if least < most:
            workers = f"{least}..{most} workers at the global batch of {most}, at most "
        asks = " + ".join(
            f"{count:g} {kind}" for kind, count in slot_asks(resources).items() if count
        )
        slots = "as many as the cluster holds"
        if self.totals is not None:
            total = ", ".join(f"{self.totals.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
            slots = f"{self.slots} at once, of {total}"
        lines = [
            f"run       {spec.name} in {spec.folder}, spec {spec.hash()}",
            f"slots     {slots}; each {workers}{asks}",
            f"epochs    {self.expected_epochs:g} expected, {self.worst_epochs} at worst, "
            f"over {self.trials} trials",
        ]
        if spec.final_seeds:
            lines.append(
                f"finals    {self.final_epochs} epochs more: each winner over {spec.final_seeds} "
                "seeds, then the test split is opened"
            )
        lines += self._forecast_lines()
        for family in self.families:
            lines += ["", *family.lines(self.forecast["families"][family.sweep.family])]
        return "\n".join(lines)

    def _forecast_lines(self) -> list[str]:
        forecast, families = self.forecast, len(self.families)
        unit, hours, wall = forecast["device"], forecast["device_hours"], forecast["wall_hours"]
        if hours is None:
            unknown = ", ".join(f for f, cost in forecast["families"].items() if cost is None)
            return [f"cost      unknown: {unknown} neither measured here nor of known size"]
        finals = ", finals included" if self.spec.final_seeds else ""
        cost = f"cost      {_cases(hours)} {unit}-hours{finals} ({forecast['basis']})"
        if ESTIMATED in forecast["basis"]:
            cost += f"; by {self.tflops or TFLOPS[unit]:g} TFLOP/s a {unit}, maybe off by 3 times"
        lines = [cost]
        if wall is not None:
            times = span(*(duration(wall[case] * HOUR_S) for case in CASES))
            lines.append(f"time      {times} with {COLD_START_S:g} s of cold start")
        usd, disk = forecast["usd"], forecast["checkpoint_bytes"]
        no_price = f"missing: --price {unit.lower()}_hour=DOLLARS"
        lines.append(f"money     {no_price if usd is None else f'{_cases(usd)} USD'}")
        each = f", {1 / families:.0%} of it for each family" if families > 1 else ""
        lines += [
            f"budget    {amount:g} {name}{each}: the run stops before it is passed"
            for name, amount in (self.spec.budget or {}).items()
        ]
        kept, at_most = size(disk["kept"]), size(disk["at_most"])
        return [*lines, f"disk      checkpoints: {at_most} at most, {kept} at the end"]


def _cases(values: Mapping[str, float]) -> str:
    return span(*(f"{values[case]:.3g}" for case in CASES))


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
    trials = sum(sweep.trials for sweep in spec.sweeps)
    slots = None if totals is None else slots_of(spec, trials, totals)
    return Plan(
        spec=spec,
        totals=totals,
        slots=slots,
        tflops=tflops,
        forecast=forecast(spec, costs, slots=slots),
        families=tuple(
            FamilyPlan(sweep=sweep, geometry=geometry[sweep.family]) for sweep in spec.sweeps
        ),
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
    return ", ".join([*parts, geometry.adaptation])


def weights_line(weights: str) -> str:
    """Where the first weights come from."""
    if weights == "none":
        return "none: random, trained from scratch (--weights hub|PATH to fine-tune)"
    if weights == "hub":
        return "hub: timm's own, fetched once (--weights none|PATH to go without)"
    return f"from {weights}"
