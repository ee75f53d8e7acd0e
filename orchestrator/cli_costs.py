"""What the images of a run are, what an epoch of each family costs, whether it is affordable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from orchestrator import budget, measuring
from orchestrator.budget import MEASURED
from orchestrator.cli_check import describe_all, known_side
from orchestrator.forecast import Cost, estimated, images_per_epoch, measured
from orchestrator.orders_budget import MARGIN
from orchestrator.session import state_of
from orchestrator.spec import RunSpec, SweepSpec, absolute_data
from trainables.assignment import DataSpec
from trainables.errors import UserError

Say = Callable[[str], None]
Images = Mapping[str, Mapping[str, Any]]  # by family: height, width, classes, counts by split
Costs = dict[str, Cost | None]

# Classes, and images of the source's train and test splits, known before anything is read.
KNOWN_IMAGES = {
    "digits": (10, 1797, 0),
    "cifar10": (10, 50_000, 10_000),
    "cifar100": (100, 50_000, 10_000),
}
# A few steps are measured; of a backbone whose step is expected to take longer, none.
SLOWEST_STEP_S = 5.0


def prepare_all(spec: RunSpec, say: Say) -> tuple[dict[str, Any], dict[str, Any]]:
    """``(datasets, geometry)`` by family; builds each pixel store that is not there yet."""
    from trainables.data import prepare

    stores: dict[DataSpec, Any] = {}
    datasets, geometry = {}, {}
    for sweep in spec.sweeps:
        data = absolute_data(sweep.data)
        if data not in stores:
            stores[data] = prepare(data, say=say)
        info = stores[data].info
        datasets[sweep.family] = info.as_dict()
        geometry[sweep.family] = describe_all(sweep, height=info.height, width=info.width)
    return datasets, geometry


def images_of(spec: RunSpec, say: Say) -> tuple[Images, dict[str, Any]]:
    """``(images, geometry)`` by family; images of unknown size are read into the pixel store."""
    known = {sweep.family: _known_images(sweep.data) for sweep in spec.sweeps}
    images = {family: one for family, one in known.items() if one is not None}
    if len(images) < len(known):
        datasets, geometry = prepare_all(spec, say)
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
    side = known_side(data)
    if side is None:
        return None
    classes, train, test = KNOWN_IMAGES[data.source]
    val = round(data.val_fraction * train)
    carved = 0 if test else round(data.test_fraction * train)
    counts = {"train": train - val - carved, "val": val, "test": test or carved}
    return {"height": side, "width": side, "classes": classes, "counts": counts}


def costs_of(
    spec: RunSpec,
    images: Images,
    geometry: Mapping[str, Any],
    *,
    measure: bool,
    tflops: float | None,
    say: Say,
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
    say(f"measuring training steps of {names} on this machine; --no-measure leaves it out")
    rows = measuring.measure(replace(spec, sweeps=tuple(quick)), images)
    for sweep in quick:
        cost = measured(sweep, counts[sweep.family], rows[sweep.family])
        found[sweep.family] = cost or found[sweep.family]
        if cost is None:
            why = next((row["error"] for row in rows[sweep.family]), "it took too long")
            say(f"warning: {sweep.family} could not be measured: {why}")
    return found


def affordable_costs(spec: RunSpec, tflops: float | None, say: Say) -> Costs | None:
    """What an epoch of each family costs, measured; ``None`` where the run has no new trial to
    forecast. Raises ``UserError`` where the budget of a run that has not begun affords none."""
    known = state_of(spec.folder).trials
    if all(sweep.trial_name(sweep.trials - 1) in known for sweep in spec.sweeps):
        return None
    images, geometry = images_of(spec, say)
    costs = costs_of(spec, images, geometry, measure=True, tflops=tflops, say=say)
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
    cap_s = budget.cap_worker_seconds(spec.budget, resources, spec.prices)
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
