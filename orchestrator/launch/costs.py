"""What an epoch of each family costs, and whether the budget affords it.

A real training step of each backbone is measured on this machine, in a process of its own with a
bound: torch and timm take seconds to import, and this process may still have neither.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import trainables
from orchestrator.launch.forecast import Cost, estimated, images_per_epoch, measured
from orchestrator.launch.validation import ImageFacts, geometry_of, known_images
from orchestrator.ledger.session import state_of
from orchestrator.spec import limits, spaces
from orchestrator.spec.limits import MEASURED
from orchestrator.spec.paths import absolute_data
from orchestrator.spec.run import RunSpec, SweepSpec, with_axes
from trainables.backbones import Geometry, describe
from trainables.config import DataSpec, stable_hash
from trainables.data.build import prepare
from trainables.data.store import DatasetInfo, PixelStore
from trainables.errors import UserError

log = logging.getLogger(__name__)

TIMEOUT_S = 60.0
SECONDS_PER_BACKBONE = 1.0
MOST_VARIANTS = 3  # of a searched geometry, the most common ones
# A few steps are measured; of a backbone whose step is expected to take longer, none.
SLOWEST_STEP_S = 5.0

Row = Mapping[str, Any]  # what trainables.train.measure prints of one backbone
Costs = Mapping[str, Cost | None]  # by family
Images = Mapping[str, ImageFacts]  # by family
Geometries = Mapping[str, Geometry]  # by family


def read_images(spec: RunSpec) -> tuple[dict[str, DatasetInfo], Geometries]:
    """``(datasets, geometry)`` by family; builds each pixel store that is not there yet."""
    stores: dict[DataSpec, PixelStore] = {}
    datasets, geometry = {}, {}
    for sweep in spec.sweeps:
        data = absolute_data(sweep.data)
        if data not in stores:
            stores[data] = prepare(data)
        info = datasets[sweep.family] = stores[data].info
        geometry[sweep.family] = geometry_of(sweep, height=info.height, width=info.width)
    return datasets, geometry


def images_of(spec: RunSpec) -> tuple[Images, Geometries]:
    """``(images, geometry)`` by family; images of unknown size are read into the pixel store."""
    known = {sweep.family: known_images(sweep.data) for sweep in spec.sweeps}
    images = {family: facts for family, facts in known.items() if facts is not None}
    if len(images) < len(known):
        datasets, geometry = read_images(spec)
        return {family: image_facts(info) for family, info in datasets.items()}, geometry
    return images, {
        sweep.family: geometry_of(
            sweep, height=images[sweep.family].height, width=images[sweep.family].width
        )
        for sweep in spec.sweeps
    }


def image_facts(info: DatasetInfo) -> ImageFacts:
    """The part of a prepared dataset's description that costs depend on."""
    return ImageFacts(
        height=info.height, width=info.width, classes=len(info.class_names), counts=info.counts
    )


def costs_of(
    spec: RunSpec, images: Images, geometry: Geometries, *, measure: bool, tflops: float | None
) -> Costs:
    """What an epoch of each family costs: measured on this machine where asked, else estimated."""
    costs = {
        sweep.family: estimated(sweep, images[sweep.family].counts, geometry[sweep.family], tflops)
        for sweep in spec.sweeps
    }
    quick = [
        sweep
        for sweep in spec.sweeps
        if measure and _is_quick(sweep, images[sweep.family], costs[sweep.family])
    ]
    if not quick:
        return costs
    names = ", ".join(sweep.family for sweep in quick)
    log.info(f"measuring training steps of {names} on this machine; --no-measure leaves it out")
    rows = measure_steps(replace(spec, sweeps=tuple(quick)), images)
    for sweep in quick:
        cost = measured(sweep, images[sweep.family].counts, rows[sweep.family])
        costs[sweep.family] = cost or costs[sweep.family]
        if cost is None:
            why = next((row["error"] for row in rows[sweep.family]), "it took too long")
            log.warning(f"warning: {sweep.family} could not be measured: {why}")
    return costs


def measured_costs(spec: RunSpec, tflops: float | None) -> Costs | None:
    """What an epoch of each family costs, measured; ``None`` where the run has no new trial to
    forecast. Raises ``UserError`` where the budget of a run that has not begun affords none."""
    trials = state_of(spec.folder).trials
    if all(sweep.trial_name(sweep.trials - 1) in trials for sweep in spec.sweeps):
        return None
    costs = costs_of(spec, *images_of(spec), measure=True, tflops=tflops)
    if not trials:
        refuse_unaffordable(spec, costs)
    return costs


def refuse_unaffordable(spec: RunSpec, costs: Costs) -> None:
    """Raise ``UserError``, exit code 3, where a measured first epoch exceeds a family's share."""
    share_s = spec.family_share_s()
    if share_s is None:
        return
    mistakes = []
    workers = spec.sweeps[0].resources.num_workers
    for family, cost in costs.items():
        if cost is None or cost.basis != MEASURED:
            continue
        first_s = (cost.epoch_seconds + cost.first_setup_seconds) * limits.EPOCH_MARGIN
        if first_s > share_s:
            ((unit, amount),) = (spec.budget or {}).items()
            mistakes.append(
                f"a budget must afford an epoch of each family; --budget {unit}={amount:g} gives "
                f"{family} {share_s * workers:.3g} s of a worker, its first epoch takes "
                f"{first_s * workers:.3g} s ({MEASURED}, with a margin). "
                f"Fix: --budget {unit}={amount * first_s / share_s:.2g} or more"
            )
    if mistakes:
        raise UserError(*mistakes, exit_code=3)


def _is_quick(sweep: SweepSpec, images: ImageFacts, cost: Cost | None) -> bool:
    if cost is None:
        return True
    train, _ = images_per_epoch(sweep, images.counts)
    step_s = cost.epoch_seconds * sweep.recipe.batch_size_per_worker / train
    return step_s < SLOWEST_STEP_S


@dataclass(frozen=True)
class _Variant:
    """The sweep with a backbone that ``trials`` of its trials draw."""

    sweep: SweepSpec
    trials: int


def measure_steps(
    spec: RunSpec, images: Images, *, timeout_s: float = TIMEOUT_S
) -> dict[str, list[Row]]:
    """By family, a row of :mod:`trainables.train.measure` for every trial whose backbone was
    measured; families that did not fit into ``timeout_s`` have none."""
    resources = spec.sweeps[0].resources
    variants = {sweep.family: _variants(sweep) for sweep in spec.sweeps}
    request = {
        "device": "cuda" if resources.gpus_per_worker else "cpu",
        "threads": max(1, int(resources.cpus_per_worker)),
        "seconds": SECONDS_PER_BACKBONE,
        "backbones": {
            label: _measurement(variant.sweep, images[family])
            for family, by_label in variants.items()
            for label, variant in by_label.items()
        },
    }
    rows = {row["label"]: row for row in _run(request, timeout_s)}
    return {
        family: [
            rows[label]
            for label, variant in by_label.items()
            if label in rows
            for _ in range(variant.trials)
        ]
        for family, by_label in variants.items()
    }


def _measurement(sweep: SweepSpec, images: ImageFacts) -> Mapping[str, object]:
    """The sweep's backbone as it would be built, without fetching its weights."""
    side = {"height": images.height, "width": images.width}
    stem = describe(sweep.backbone, **side).stem or sweep.backbone.stem
    fresh = replace(sweep.backbone, weights="none", stem=stem)
    assignment = replace(sweep, backbone=fresh).assignment(0)
    return {**side, "classes": images.classes, "assignment": assignment.as_dict()}


def _variants(sweep: SweepSpec) -> dict[str, _Variant]:
    """The backbones that the sweep's trials draw, the most common ones, by label."""
    geometry = {path: axis for path, axis in sweep.space.items() if path.startswith("backbone.")}
    variants: dict[str, _Variant] = {}
    for index in range(sweep.trials):
        drawn = spaces.sample(geometry, seed=sweep.seed, index=index, family=sweep.family)
        plain = replace(with_axes(sweep, drawn), space={})
        label = f"{sweep.family}-{stable_hash(asdict(plain.backbone))}"
        trials = variants[label].trials + 1 if label in variants else 1
        variants[label] = _Variant(plain, trials)
    common = sorted(variants.items(), key=lambda item: -item[1].trials)
    return dict(common[:MOST_VARIANTS])


def _run(request: Mapping[str, object], timeout_s: float) -> list[Row]:
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
    complete = out[: out.rfind("\n") + 1]
    return [json.loads(line) for line in complete.splitlines()]
