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
from typing import Any

from orchestrator.launch.forecast import (
    CASES,
    COLD_START_S,
    TFLOPS,
    Cost,
    expected_epochs,
    forecast,
)
from orchestrator.ray_cluster.capacity import room_of
from orchestrator.spec.limits import ESTIMATED, HOUR_S, ResourceSpec
from orchestrator.spec.run import RunSpec, SweepSpec
from orchestrator.wording import duration, size, span


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


def plan(
    spec: RunSpec,
    *,
    total: Mapping[str, float] | None,
    geometry: Mapping[str, Mapping[str, Any]],
    costs: Mapping[str, Cost | None],
    tflops: float | None = None,
) -> dict[str, Any]:
    """The plan as JSON. ``total`` is ``None`` where only the cluster can tell what it holds;
    ``geometry`` is each family's ``Geometry`` as a dict, ``costs`` what its epochs
    cost and ``tflops`` what estimates among them took a device to sustain (``None``: the default).
    """
    families = [_family_plan(sweep, geometry[sweep.family]) for sweep in spec.sweeps]
    trials, resources = sum(sweep.trials for sweep in spec.sweeps), spec.sweeps[0].resources
    slots = None if total is None else slots_of(spec, trials, total)
    return {
        "schema": 1,
        "name": spec.name,
        "folder": str(spec.folder),
        "spec_hash": spec.hash(),
        "cluster": None if total is None else dict(total),
        "slot": slot_asks(resources),
        "workers": {"least": resources.least_workers, "most": resources.num_workers},
        "slots": slots,
        "trials": trials,
        "expected_epochs": round(sum(family["expected_epochs"] for family in families), 1),
        "worst_epochs": sum(family["worst_epochs"] for family in families),
        "final_seeds": spec.final_seeds,
        "final_epochs": sum(spec.final_seeds * sweep.scheduler.max_epochs for sweep in spec.sweeps),
        "budget": spec.budget,
        "prices": spec.prices,
        "tflops": tflops,
        "forecast": forecast(spec, costs, slots=slots),
        "families": families,
    }


def _family_plan(sweep: SweepSpec, geometry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "family": sweep.family,
        "dataset": sweep.data.source,
        "scale": sweep.backbone.scale,
        "weights": sweep.backbone.weights,
        "geometry": dict(geometry),
        "warnings": list(geometry["warnings"]),
        "trials": sweep.trials,
        "scheduler": sweep.scheduler.kind,
        "rungs": list(sweep.scheduler.rungs()),
        "max_epochs": sweep.scheduler.max_epochs,
        "expected_epochs": round(expected_epochs(sweep.scheduler, sweep.trials), 1),
        "worst_epochs": sweep.trials * sweep.scheduler.max_epochs,
        "space": {
            path: {"range": str(domain), "why": domain.why} for path, domain in sweep.space.items()
        },
    }


def geometry_line(geometry: Mapping[str, Any]) -> str:
    """How the model meets the images: size, patch, tokens, stem and adaptation."""
    parts = [str(geometry["model"]), f"{geometry['image_size']} px"]
    if geometry.get("patch"):
        parts.append(f"patch {geometry['patch']}")
    if geometry.get("tokens"):
        parts.append(f"{geometry['tokens']} tokens")
    if geometry.get("stem"):
        parts.append(f"stem {geometry['stem']}")
    return ", ".join([*parts, str(geometry["adaptation"])])


Plan = Mapping[str, Any]


def plan_text(made: Plan) -> str:
    """What :func:`orchestrator.launch.plan.plan` made, line by line."""
    asks = " + ".join(f"{count:g} {kind}" for kind, count in made["slot"].items() if count)
    if made["cluster"] is None:
        held = "as many as the cluster holds"
    else:
        there = ", ".join(f"{made['cluster'].get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
        held = f"{made['slots']} at once, of {there}"
    lines = [
        f"run       {made['name']} in {made['folder']}, spec {made['spec_hash']}",
        f"slots     {held}; each {_workers(made['workers'])}{asks}",
        f"epochs    {made['expected_epochs']:g} expected, {made['worst_epochs']} at worst, "
        f"over {made['trials']} trials",
    ]
    if made["final_seeds"]:
        lines.append(
            f"finals    {made['final_epochs']} epochs more: each winner over {made['final_seeds']} "
            "seeds, then the test split is opened"
        )
    lines += _forecast_lines(made)
    for family in made["families"]:
        lines += ["", *_family_lines(family, made["forecast"])]
    return "\n".join(lines)


def _workers(workers: Mapping[str, int]) -> str:
    least, most = workers["least"], workers["most"]
    if least < most:
        return f"{least}..{most} workers at the global batch of {most}, at most "
    return f"{most} workers, " if most > 1 else ""


def _forecast_lines(made: Plan) -> list[str]:
    forecast = made["forecast"]
    unit, hours, wall = forecast["device"], forecast["device_hours"], forecast["wall_hours"]
    if hours is None:
        unknown = [family for family, cost in forecast["families"].items() if cost is None]
        return [f"cost      unknown: {', '.join(unknown)} neither measured here nor of known size"]
    finals = ", finals included" if made["final_seeds"] else ""
    told = span(*(f"{hours[case]:.3g}" for case in CASES))
    cost = f"cost      {told} {unit}-hours{finals} ({forecast['basis']})"
    if ESTIMATED in forecast["basis"]:
        cost += f"; by {made['tflops'] or TFLOPS[unit]:g} TFLOP/s a {unit}, maybe off by 3 times"
    lines = [cost]
    if wall is not None:
        told = span(*(duration(wall[case] * HOUR_S) for case in CASES))
        lines.append(f"time      {told} with {COLD_START_S:g} s of cold start")
    lines += [f"money     {_money(forecast)}", *_budget_lines(made)]
    disk = forecast["checkpoint_bytes"]
    return [
        *lines,
        f"disk      checkpoints: {size(disk['at_most'])} at most, {size(disk['kept'])} at the end",
    ]


def _money(forecast: Plan) -> str:
    if forecast["usd"] is None:
        return f"missing: --price {forecast['device'].lower()}_hour=DOLLARS"
    return span(*(f"{forecast['usd'][case]:.3g}" for case in CASES)) + " USD"


def _budget_lines(made: Plan) -> list[str]:
    families = len(made["families"])
    each = f", {1 / families:.0%} of it for each family" if families > 1 else ""
    return [
        f"budget    {amount:g} {unit}{each}: the run stops before it is passed"
        for unit, amount in (made["budget"] or {}).items()
    ]


def _family_lines(family: Plan, forecast: Plan) -> list[str]:
    rungs = ", ".join(map(str, family["rungs"])) or "none: every trial trains to the end"
    return [
        f"{family['family']:<9} {geometry_line(family['geometry'])}",
        f"  weights   {weights_line(family['weights'])}",
        f"  trials    {family['trials']} of at most {family['max_epochs']} epochs; rungs {rungs}",
        *_cost_lines(forecast["families"][family["family"]]),
        *(f"  warning   {warning}" for warning in family["warnings"]),
        *(
            f"  search    {path} {axis['range']}" + (f": {axis['why']}" if axis["why"] else "")
            for path, axis in family["space"].items()
        ),
    ]


def _cost_lines(cost: Plan | None) -> list[str]:
    if cost is None:
        return ["  cost      unknown until the model is built"]
    memory = cost["memory"]
    held = ", ".join(f"{size(count)} {name}" for name, count in memory.items() if count)
    return [
        f"  cost      {duration(cost['epoch_seconds'])} an epoch, {cost['basis']}; "
        f"{cost['params_m']:.3g} M parameters, {cost['gflops_per_image']:.3g} GFLOPs an image",
        f"  memory    about {size(sum(memory.values()))} a worker: {held}",
        f"  storage   {size(cost['checkpoint_bytes'])} a checkpoint",
    ]


def weights_line(weights: str) -> str:
    """Where the first weights come from."""
    if weights == "none":
        return "none: random, trained from scratch (--weights hub|PATH to fine-tune)"
    if weights == "hub":
        return "hub: timm's own, fetched once (--weights none|PATH to go without)"
    return f"from {weights}"
