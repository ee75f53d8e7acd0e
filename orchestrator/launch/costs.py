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
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import trainables
from orchestrator.launch.forecast import Costs, Row, estimated, images_per_epoch, measured
from orchestrator.launch.validation import ImageFacts, geometry_of, known_images
from orchestrator.ledger.header import FamilyForecast
from orchestrator.ledger.session import state_of
from orchestrator.spec import limits, spaces
from orchestrator.spec.limits import MEASURED
from orchestrator.spec.paths import absolute_data
from orchestrator.spec.run import RunSpec, SweepSpec, with_axes
from trainables.backbones import describe
from trainables.config import FREED_MEMORY_KEPT, BackboneSpec
from trainables.data.build import prepare
from trainables.data.store import DatasetInfo
from trainables.errors import UserError

log = logging.getLogger(__name__)

TIMEOUT_S = 60.0
SECONDS_PER_BACKBONE = 1.0
MOST_VARIANTS = 3  # of a searched geometry, the most common ones
# A few steps are measured; of a backbone whose step is expected to take longer, none.
SLOWEST_STEP_S = 5.0

Images = Mapping[str, ImageFacts]  # by family


def read_datasets(spec: RunSpec) -> dict[str, DatasetInfo]:
    """By family; builds each pixel store that is not there yet."""
    data = {sweep.family: absolute_data(sweep.data) for sweep in spec.sweeps}
    stores = {source: prepare(source) for source in dict.fromkeys(data.values())}
    return {family: stores[source].info for family, source in data.items()}


def images_of(spec: RunSpec) -> Images:
    """By family; images of unknown size are read into the pixel store."""
    known = {sweep.family: known_images(sweep.data) for sweep in spec.sweeps}
    images = {family: facts for family, facts in known.items() if facts is not None}
    if len(images) == len(known):
        return images
    return {family: ImageFacts.of(info) for family, info in read_datasets(spec).items()}


def costs_of(spec: RunSpec, images: Images, *, measure: bool, tflops: float | None) -> Costs:
    """What an epoch of each family costs: measured on this machine where asked, else estimated."""
    costs: dict[str, FamilyForecast | None] = {}
    quick = []
    for sweep in spec.sweeps:
        facts = images[sweep.family]
        cost = estimated(sweep, facts.counts, geometry_of(sweep, facts), tflops)
        costs[sweep.family] = cost
        if measure and (cost is None or _step_s(sweep, facts, cost) < SLOWEST_STEP_S):
            quick.append(sweep)
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


def _step_s(sweep: SweepSpec, images: ImageFacts, cost: FamilyForecast) -> float:
    train, _ = images_per_epoch(sweep, images.counts)
    return cost.epoch_seconds * sweep.recipe.batch_size_per_worker / train


def measured_costs(spec: RunSpec, tflops: float | None) -> Costs | None:
    """What an epoch of each family costs, measured; ``None`` where the run has no new trial to
    forecast. Raises ``UserError`` where the budget of a run that has not begun affords none."""
    trials = state_of(spec.folder).trials
    if all(sweep.trial_name(sweep.trials - 1) in trials for sweep in spec.sweeps):
        return None
    costs = costs_of(spec, images_of(spec), measure=True, tflops=tflops)
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


def measure_steps(
    spec: RunSpec, images: Images, *, timeout_s: float = TIMEOUT_S
) -> dict[str, list[Row]]:
    """By family, a row of :mod:`trainables.train.measure` for every trial whose backbone was
    measured; families that did not fit into ``timeout_s`` have none."""
    resources = spec.sweeps[0].resources
    backbones: dict[str, object] = {}
    trials: dict[str, tuple[str, int]] = {}
    for sweep in spec.sweeps:
        for backbone, count in _drawn_backbones(sweep).most_common(MOST_VARIANTS):
            label = f"{sweep.family}-{len(trials)}"
            backbones[label] = _measurement(sweep, backbone, images[sweep.family])
            trials[label] = (sweep.family, count)
    request = {
        "device": "cuda" if resources.gpus_per_worker else "cpu",
        "threads": max(1, int(resources.cpus_per_worker)),
        "seconds": SECONDS_PER_BACKBONE,
        "backbones": backbones,
    }
    rows: dict[str, list[Row]] = {sweep.family: [] for sweep in spec.sweeps}
    for row in _run(request, timeout_s):
        family, count = trials[row["label"]]
        rows[family] += [row] * count
    return rows


def _drawn_backbones(sweep: SweepSpec) -> Counter[BackboneSpec]:
    """The backbones that trials draw, and how many of them do."""
    axes = {path: axis for path, axis in sweep.space.items() if path.startswith("backbone.")}
    drawn = (
        spaces.sample(axes, seed=sweep.seed, index=index, family=sweep.family)
        for index in range(sweep.trials)
    )
    return Counter(with_axes(sweep, values).backbone for values in drawn)


def _measurement(
    sweep: SweepSpec, backbone: BackboneSpec, images: ImageFacts
) -> Mapping[str, object]:
    """The backbone as it would be built, without fetching its weights."""
    side = {"height": images.height, "width": images.width}
    stem = describe(backbone, **side).stem or backbone.stem
    fresh = replace(backbone, weights="none", stem=stem)
    assignment = replace(sweep, backbone=fresh, space={}).assignment(0)
    return {**side, "classes": images.classes, "assignment": assignment.as_dict()}


def _run(request: Mapping[str, object], timeout_s: float) -> list[Row]:
    root = str(Path(trainables.__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", "trainables.train.measure"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # As the slots' workers have it; tensors of a GPU are no concern of the C library.
        env={**os.environ, **FREED_MEMORY_KEPT, "PYTHONPATH": path},
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
