"""What the images of a run are, what an epoch of each family costs, whether it is affordable.

A real training step of each backbone on this machine, in a process with a bound.

Its own process, because torch and timm take seconds to import and this one may still have none.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import trainables
from orchestrator.engine.budget_guard import MARGIN
from orchestrator.launch.forecast import Cost, estimated, images_per_epoch, measured
from orchestrator.launch.validation import describe_all
from orchestrator.ledger.session import state_of
from orchestrator.spec import limits, spaces
from orchestrator.spec.limits import MEASURED
from orchestrator.spec.paths import absolute_data
from orchestrator.spec.run import RunSpec, SweepSpec, with_axes
from trainables.backbones import describe
from trainables.config import DataSpec, stable_hash
from trainables.data.sources import KNOWN_DATASETS
from trainables.errors import UserError

log = logging.getLogger(__name__)

TIMEOUT_S = 60.0
SECONDS_PER_BACKBONE = 1.0
MOST_VARIANTS = 3  # of a searched geometry, the most common ones

Row = dict[str, Any]


def measure_steps(
    spec: RunSpec, images: Mapping[str, Mapping[str, Any]], *, timeout_s: float = TIMEOUT_S
) -> dict[str, list[Row]]:
    """By family, a row of :mod:`trainables.train.measure` for every trial whose backbone was
    measured; families that did not fit into ``timeout_s`` have none.

    ``images`` has each family's ``height``, ``width`` (pixels) and ``classes``.
    """
    resources = spec.sweeps[0].resources
    variants = {sweep.family: _variants(sweep) for sweep in spec.sweeps}
    asked = {
        label: _asked(one, images[family])
        for family, found in variants.items()
        for label, (one, _) in found.items()
    }
    request = {
        "device": "cuda" if resources.gpus_per_worker else "cpu",
        "threads": max(1, int(resources.cpus_per_worker)),
        "seconds": SECONDS_PER_BACKBONE,
        "backbones": asked,
    }
    rows = {row.pop("label"): row for row in _run(request, timeout_s)}
    return {
        family: [
            rows[label]
            for label, (_, count) in found.items()
            if label in rows
            for _ in range(count)
        ]
        for family, found in variants.items()
    }


def _asked(sweep: SweepSpec, images: Mapping[str, Any]) -> dict[str, Any]:
    """The sweep's backbone as it would be built, without fetching its weights."""
    side = {name: images[name] for name in ("height", "width")}
    stem = describe(sweep.backbone, **side).stem or sweep.backbone.stem
    fresh = replace(sweep.backbone, weights="none", stem=stem)
    assignment = replace(sweep, backbone=fresh).assignment(0)
    return {**side, "classes": images["classes"], "assignment": assignment.as_dict()}


def _variants(sweep: SweepSpec) -> dict[str, tuple[SweepSpec, int]]:
    """Label -> the sweep with a backbone that its trials draw, and how many of them do."""
    geometry = {path: one for path, one in sweep.space.items() if path.startswith("backbone.")}
    found: dict[str, tuple[SweepSpec, int]] = {}
    for index in range(sweep.trials):
        drawn = spaces.sample(geometry, seed=sweep.seed, index=index, family=sweep.family)
        one = replace(with_axes(sweep, drawn), space={})
        label = f"{sweep.family}-{stable_hash(asdict(one.backbone))}"
        found[label] = (one, found[label][1] + 1 if label in found else 1)
    common = sorted(found.items(), key=lambda item: -item[1][1])
    return dict(common[:MOST_VARIANTS])


def _run(request: Mapping[str, Any], timeout_s: float) -> list[Row]:
    root = str(Path(trainables.__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", "trainables.train.measure"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    with process:
        try:
            out, _ = process.communicate(json.dumps(request), timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
        except BaseException:
            process.kill()
            raise
    whole = out[: out.rfind("\n") + 1]
    return [json.loads(line) for line in whole.splitlines()]


Images = Mapping[str, Mapping[str, Any]]  # by family: height, width, classes, counts by split
Costs = dict[str, Cost | None]

# A few steps are measured; of a backbone whose step is expected to take longer, none.
SLOWEST_STEP_S = 5.0


def prepare_all(spec: RunSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    """``(datasets, geometry)`` by family; builds each pixel store that is not there yet."""
    from trainables.data.build import prepare

    stores: dict[DataSpec, Any] = {}
    datasets, geometry = {}, {}
    for sweep in spec.sweeps:
        data = absolute_data(sweep.data)
        if data not in stores:
            stores[data] = prepare(data)
        info = stores[data].info
        datasets[sweep.family] = info.as_dict()
        geometry[sweep.family] = describe_all(sweep, height=info.height, width=info.width)
    return datasets, geometry


def images_of(spec: RunSpec) -> tuple[Images, dict[str, Any]]:
    """``(images, geometry)`` by family; images of unknown size are read into the pixel store."""
    known = {sweep.family: _known_images(sweep.data) for sweep in spec.sweeps}
    images = {family: one for family, one in known.items() if one is not None}
    if len(images) < len(known):
        datasets, geometry = prepare_all(spec)
        return images_in(datasets), geometry
    sides = {family: (one["height"], one["width"]) for family, one in images.items()}
    return images, {
        sweep.family: describe_all(
            sweep, height=sides[sweep.family][0], width=sides[sweep.family][1]
        )
        for sweep in spec.sweeps
    }


def images_in(datasets: Mapping[str, Mapping[str, Any]]) -> Images:
    """The same of datasets that are prepared, each a ``DatasetInfo`` as a dict."""
    return {
        family: {
            **{key: info[key] for key in ("height", "width", "counts")},
            "classes": len(info["class_names"]),
        }
        for family, info in datasets.items()
    }


def _known_images(data: DataSpec) -> dict[str, Any] | None:
    known = KNOWN_DATASETS.get(data.source)
    if known is None:
        return None
    side = known.stored_side_px(data)
    return {"height": side, "width": side, "classes": known.classes, "counts": known.counts(data)}


def costs_of(
    spec: RunSpec,
    images: Images,
    geometry: Mapping[str, Any],
    *,
    measure: bool,
    tflops: float | None,
) -> Costs:
    """What an epoch of each family costs: measured on this machine where asked, else estimated."""
    counts = {family: one["counts"] for family, one in images.items()}
    found: Costs = {
        sweep.family: estimated(sweep, counts[sweep.family], geometry[sweep.family], tflops)
        for sweep in spec.sweeps
    }
    quick = [s for s in spec.sweeps if measure and _is_quick(s, counts[s.family], found[s.family])]
    if not quick:
        return found
    names = ", ".join(sweep.family for sweep in quick)
    log.info(f"measuring training steps of {names} on this machine; --no-measure leaves it out")
    rows = measure_steps(replace(spec, sweeps=tuple(quick)), images)
    for sweep in quick:
        cost = measured(sweep, counts[sweep.family], rows[sweep.family])
        found[sweep.family] = cost or found[sweep.family]
        if cost is None:
            why = next((row["error"] for row in rows[sweep.family]), "it took too long")
            log.warning(f"warning: {sweep.family} could not be measured: {why}")
    return found


def affordable_costs(spec: RunSpec, tflops: float | None) -> Costs | None:
    """What an epoch of each family costs, measured; ``None`` where the run has no new trial to
    forecast. Raises ``UserError`` where the budget of a run that has not begun affords none."""
    known = state_of(spec.folder).trials
    if all(sweep.trial_name(sweep.trials - 1) in known for sweep in spec.sweeps):
        return None
    images, geometry = images_of(spec)
    costs = costs_of(spec, images, geometry, measure=True, tflops=tflops)
    if not known:
        refuse_unaffordable(spec, costs)
    return costs


def _is_quick(sweep: SweepSpec, counts: Mapping[str, int], cost: Cost | None) -> bool:
    if cost is None:
        return True
    train, _ = images_per_epoch(sweep, counts)
    step_s = cost.epoch_seconds * sweep.recipe.batch_size_per_worker / train
    return step_s < SLOWEST_STEP_S


def refuse_unaffordable(spec: RunSpec, costs: Costs) -> None:
    """Raise ``UserError``, exit code 3, where a measured first epoch exceeds a family's share."""
    resources, families = spec.sweeps[0].resources, len(spec.sweeps)
    cap_s = limits.cap_worker_seconds(spec.budget, resources, spec.prices)
    if cap_s is None:
        return
    found = []
    for family, cost in costs.items():
        if cost is None or cost.basis != MEASURED:
            continue
        first_s = (cost.epoch_seconds + cost.first_setup_seconds) * MARGIN * resources.num_workers
        if first_s > cap_s / families:
            ((unit, amount),) = (spec.budget or {}).items()
            least = amount * first_s / (cap_s / families)
            found.append(
                f"a budget must afford an epoch of each family; --budget {unit}={amount:g} gives "
                f"{family} {cap_s / families:.3g} s of a worker, its first epoch takes "
                f"{first_s:.3g} s ({MEASURED}, with a margin). Fix: --budget {unit}={least:.2g} "
                "or more"
            )
    if found:
        raise UserError(*found, exit_code=3)
