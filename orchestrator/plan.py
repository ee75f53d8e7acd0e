"""What a run will do before it does it: trials, rungs, epochs, slots, backbones, and its forecast.

Pure arithmetic on a ``RunSpec``, the cluster's totals and each backbone's geometry and cost: no
ray, no torch.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

from orchestrator.epochs import expected_epochs
from orchestrator.forecast import Cost, forecast
from orchestrator.room import room_of
from orchestrator.spec import ResourceSpec, RunSpec, SweepSpec


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
    there is. ``total`` is a :class:`Room`, or what one machine holds."""
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
    """How the model meets the images: size, patch, tokens, stem and the road taken."""
    parts = [str(geometry["model"]), f"{geometry['image_size']} px"]
    if geometry.get("patch"):
        parts.append(f"patch {geometry['patch']}")
    if geometry.get("tokens"):
        parts.append(f"{geometry['tokens']} tokens")
    if geometry.get("stem"):
        parts.append(f"stem {geometry['stem']}")
    return ", ".join([*parts, str(geometry["road"])])
