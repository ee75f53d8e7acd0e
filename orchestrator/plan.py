"""What a run will do before it does it: trials, rungs, epochs, slots, storage, backbones.

Pure arithmetic on a ``RunSpec``, the cluster's totals and each backbone's geometry: no ray, no
torch. Hours and money need a measured step and are not forecast here.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

from orchestrator.spec import ResourceSpec, RunSpec, SchedulerSpec, SweepSpec

# Millions of parameters, for the storage estimate alone; other models are told once built.
PARAMS_M = {
    "test_vit": 0.3,
    "test_resnet": 0.4,
    "test_convnext": 0.2,
    "vit_small_patch16_224": 21.7,
    "vit_base_patch16_224": 85.8,
    "resnet26t": 14.0,
    "resnet50": 23.5,
    "vit_small_r26_s32_224": 36.1,
    "vit_base_r50_s16_224": 97.9,
    "convnext_nano": 15.0,
    "convnext_tiny": 27.8,
    "convnext_base": 87.6,
}
# Tensors kept per parameter beside the weights: Adam's two moments, one momentum buffer.
OPTIMIZER_COPIES = {"adamw": 2, "sgd": 1, "lion": 1}


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


def slot_asks(resources: ResourceSpec) -> dict[str, float]:
    """What one slot holds while it lives."""
    workers = resources.num_workers
    return {
        "CPU": workers * resources.cpus_per_worker,
        "GPU": workers * resources.gpus_per_worker,
    }


def feasible(resources: ResourceSpec, total: Mapping[str, float]) -> list[str]:
    """Why a slot can never be placed, one line per resource: what is asked, what there is."""
    found = []
    for kind, asked in slot_asks(resources).items():
        there = total.get(kind, 0.0)
        if asked > there:
            option = f"--{kind.lower()}s-per-worker"
            found.append(
                f"a slot must fit the cluster: {resources.num_workers} workers ask for "
                f"{asked:g} {kind}, there is {there:g}. Fix: lower --workers or {option}"
            )
    return found


def capacity(resources: ResourceSpec, total: Mapping[str, float]) -> int:
    """Slots that the cluster can ever hold at once, and no more than ``max_slots``."""
    held = [
        math.floor(total.get(kind, 0.0) / asked + 1e-9)
        for kind, asked in slot_asks(resources).items()
        if asked > 0
    ]
    return min([*held, resources.max_slots] if resources.max_slots else held)


def expected_epochs(scheduler: SchedulerSpec, trials: int) -> float:
    """Epochs that ASHA is expected to train when trials arrive at each rung in random order.

    The trial that finds m results at a rung goes on when it is at or above their (1 - 1/eta)
    quantile; for uniform values that has the probability (m - q) / (m + 1), q = (1 - 1/eta)
    (m - 1), and 1 for m = 0. (Li et al., MLSys 2020, section 3; the quantile as Tune takes it.)
    Of those pruned, the audited share is finished anyway. PASHA trains at most as much as ASHA.
    """
    keep = 1 - 1 / scheduler.reduction_factor
    arrive, before, epochs = float(trials), 0, 0.0
    for rung in scheduler.rungs():
        epochs += arrive * (rung - before)
        before = rung
        whole = int(arrive)
        odds = [1.0, *((m - keep * (m - 1)) / (m + 1) for m in range(1, whole + 1))]
        kept = sum(odds[:whole]) + (arrive - whole) * odds[whole]
        epochs += scheduler.audit * (arrive - kept) * (scheduler.max_epochs - rung)
        arrive = kept
    return epochs + arrive * (scheduler.max_epochs - before)


def checkpoint_bytes(sweep: SweepSpec, model: str) -> int | None:
    """Bytes of one fp32 checkpoint: weights, optimizer state, and the EMA where there is one."""
    params_m = PARAMS_M.get(model)
    if params_m is None:
        return None
    copies = 1 + OPTIMIZER_COPIES[sweep.recipe.optimizer] + (sweep.recipe.ema_decay is not None)
    return int(params_m * 1e6 * 4 * copies)


def plan(
    spec: RunSpec, *, total: Mapping[str, float] | None, geometry: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The plan as JSON. ``total`` is ``None`` where only the cluster can tell what it holds;
    ``geometry`` is each family's ``Geometry`` as a dict."""
    families = [_family_plan(sweep, geometry[sweep.family]) for sweep in spec.sweeps]
    trials, resources = sum(sweep.trials for sweep in spec.sweeps), spec.sweeps[0].resources
    return {
        "schema": 1,
        "name": spec.name,
        "folder": str(spec.folder),
        "spec_hash": spec.hash(),
        "cluster": None if total is None else dict(total),
        "slot": slot_asks(resources),
        "slots": None if total is None else min(trials, capacity(resources, total)),
        "trials": trials,
        "expected_epochs": round(sum(family["expected_epochs"] for family in families), 1),
        "worst_epochs": sum(family["worst_epochs"] for family in families),
        "final_seeds": spec.final_seeds,
        "final_epochs": sum(spec.final_seeds * sweep.scheduler.max_epochs for sweep in spec.sweeps),
        "families": families,
    }


def _family_plan(sweep: SweepSpec, geometry: Mapping[str, Any]) -> dict[str, Any]:
    one = checkpoint_bytes(sweep, str(geometry["model"]))
    worst = sweep.trials * sweep.scheduler.max_epochs
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
        "worst_epochs": worst,
        "checkpoint_bytes": one,
        "checkpoints_bytes_at_most": None if one is None else one * worst,
        "space": {
            path: {"range": str(domain), "why": domain.why} for path, domain in sweep.space.items()
        },
    }


def plan_text(made: Mapping[str, Any]) -> str:
    """The plan for a terminal."""
    asks = " + ".join(f"{count:g} {kind}" for kind, count in made["slot"].items() if count)
    if made["cluster"] is None:
        held = "as many as the cluster holds"
    else:
        there = ", ".join(f"{made['cluster'].get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
        held = f"{made['slots']} at once, of {there}"
    lines = [
        f"run       {made['name']} in {made['folder']}, spec {made['spec_hash']}",
        f"slots     {held}; each {asks}",
        f"epochs    {made['expected_epochs']:g} expected, {made['worst_epochs']} at worst, "
        f"over {made['trials']} trials",
    ]
    if made["final_seeds"]:
        lines.append(
            f"finals    {made['final_epochs']} epochs more: each winner over {made['final_seeds']} "
            "seeds, then the test split is opened"
        )
    for family in made["families"]:
        lines += ["", *_family_lines(family)]
    return "\n".join(lines)


def _family_lines(family: Mapping[str, Any]) -> list[str]:
    rungs = ", ".join(map(str, family["rungs"])) or "none: every trial trains to the end"
    stored = family["checkpoints_bytes_at_most"]
    storage = (
        "unknown until the model is built"
        if stored is None
        else f"{stored / 1e6:.0f} MB at most, {family['checkpoint_bytes'] / 1e6:.1f} MB each"
    )
    return [
        f"{family['family']:<9} {geometry_line(family['geometry'])}",
        f"  weights   {weights_line(family['weights'])}",
        f"  trials    {family['trials']} of at most {family['max_epochs']} epochs; rungs {rungs}",
        f"  storage   {storage}",
        *(f"  warning   {warning}" for warning in family["warnings"]),
        *(
            f"  search    {path} {axis['range']}" + (f": {axis['why']}" if axis["why"] else "")
            for path, axis in family["space"].items()
        ),
    ]


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


def weights_line(weights: str) -> str:
    """Where the first weights come from."""
    if weights == "none":
        return "none: random, trained from scratch (--weights hub|PATH to fine-tune)"
    if weights == "hub":
        return "hub: timm's own, fetched once (--weights none|PATH to go without)"
    return f"from {weights}"
