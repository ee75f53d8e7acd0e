"""What a run is expected to train and to cost: epochs, device-hours, time, money, memory, disk.

A candidate's cost is that of a real step where one was measured on this machine, else estimated
from its FLOPs and an assumed throughput; every figure says which. Steps are measured in a process
of its own with a bound: torch and timm take seconds to import, and this process may have neither.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean

from orchestrator import process
from orchestrator.ledger.header import CandidateForecast, Cases, Forecast
from orchestrator.spec import limits, named_sweeps, overrides, spaces
from orchestrator.spec.limits import ESTIMATED, MEASURED, SchedulerSpec
from orchestrator.spec.run import RunSpec, SweepSpec, absolute_data, with_axes
from trainables.backbones import Geometry, describe, size_of, weights_sides
from trainables.config import FREED_MEMORY_KEPT, BackboneSpec, DatasetFacts
from trainables.data.build import prepare
from trainables.data.sources import check_source, known_images
from trainables.data.store import ImageStore
from trainables.errors import UserError, raise_if_any
from trainables.spec import Spec
from trainables.train.requests import Measurable, Measurement, MeasurementRequest, StepCosts

log = logging.getLogger(__name__)

MOST_VARIANTS = 3  # of a searched geometry, the most common ones
# A few steps are measured; of a backbone whose step is expected to take longer, none.
SLOWEST_STEP_S = 5.0
MEASURE_TIMEOUT_S = 60.0
COMPILE_TIMEOUT_S = 180.0  # more, for each candidate that may be compiled

# Sustained in training by one device, where nothing is measured: of a laptop's core in fp32, and
# of a data-centre GPU on networks as small as these.
TFLOPS = {"CPU": 0.03, "GPU": 15.0}
COLD_START_S = 30.0
# FLOPs of a training step for each of its forward pass: the backward pass costs two.
STEP_PASSES = 3
OPTIMIZER_COPIES = {"adamw": 2, "sgd": 1, "lion": 1}  # tensors kept per parameter
FP32_BYTES = 4
CASES = ("expected", "worst")
PRICED_SIDES = (64, 128)  # in pixels, beside the side that the weights are published for

Costs = Mapping[str, CandidateForecast | None]  # by candidate, not yet by what slots will spend


_described = cache(describe)


def geometry_of(sweep: SweepSpec, images: DatasetFacts) -> Geometry:
    """How the sweep's backbone meets the images, with the warnings of each searched variant.

    Raises ``UserError`` when a variant cannot be adapted to their size.
    """
    geometries = [
        _described(variant.backbone, height=images.height, width=images.width)
        for variant in sweep.variants("backbone.")
    ]
    warnings = dict.fromkeys(line for geometry in geometries for line in geometry.warnings)
    return replace(geometries[0], warnings=tuple(warnings))


def expected_epochs(scheduler: SchedulerSpec, trials: int) -> float:
    """Epochs that ASHA is expected to train when trials arrive at each rung in random order.

    The trial that finds m results at a rung goes on when it is at or above their (1 - 1/eta)
    quantile; for uniform values that has the probability (m - q) / (m + 1), q = (1 - 1/eta)
    (m - 1), and 1 for m = 0. (Li et al., MLSys 2020, section 3; the quantile as Tune takes it.)
    Of those pruned, the audited share is finished anyway. The published recipe, which is never
    pruned, is mostly the first at a rung, who goes on in any case. PASHA trains at most as much as
    ASHA.
    """
    pruned_share = 1 - 1 / scheduler.reduction_factor

    def kept(arriving: float) -> float:
        whole = int(arriving)
        odds = [1.0, *((m - pruned_share * (m - 1)) / (m + 1) for m in range(1, whole + 1))]
        return sum(odds[:whole]) + (arriving - whole) * odds[whole]

    return _epochs_over_rungs(scheduler, 0, float(trials), kept)


def expected_rest(scheduler: SchedulerSpec, epoch: int) -> float:
    """Epochs that one trial is still expected to train after ``epoch`` of them.

    At each rung ahead it goes on with probability 1/eta, as one of very many would.
    """
    return _epochs_over_rungs(scheduler, epoch, 1.0, lambda n: n / scheduler.reduction_factor)


def _epochs_over_rungs(
    scheduler: SchedulerSpec, epoch: int, trials: float, kept: Callable[[float], float]
) -> float:
    """Epochs that ``trials`` are expected to train after ``epoch``, where of so many that arrive
    at a rung ``kept`` go on."""
    epochs = 0.0
    for rung in scheduler.rungs():
        if rung > epoch:
            survivors = kept(trials)
            epochs += trials * (rung - epoch)
            epochs += scheduler.audit * (trials - survivors) * (scheduler.max_epochs - rung)
            trials, epoch = survivors, rung
    return epochs + trials * (scheduler.max_epochs - epoch)


def images_per_epoch(sweep: SweepSpec, counts: Mapping[str, int]) -> tuple[int, int]:
    """Images that each worker trains on and evaluates in an epoch; ``counts`` are by split."""
    data, workers = sweep.data, sweep.resources.num_workers
    train = min(counts["train"], data.train_limit or counts["train"])
    train = max(1, round(data.fraction * train)) // workers
    batch = max(1, min(sweep.recipe.batch_size_per_worker, train))
    return train // batch * batch, -(-counts["val"] // workers)


def measured(
    sweep: SweepSpec, counts: Mapping[str, int], measurements: Sequence[Measurement]
) -> CandidateForecast | None:
    """The mean over ``measurements``, one for each trial asked for; ``None`` where none of them
    could be measured."""
    good = [row.costs for row in measurements if row.costs is not None]
    if not good:
        return None

    def mean(cost: Callable[[StepCosts], float]) -> float:
        return fmean(map(cost, good))

    train, val = images_per_epoch(sweep, counts)
    step_s, setup_s = mean(lambda c: c.train_seconds_per_image), mean(lambda c: c.setup_seconds)
    compiled = [row.compiled for row in measurements if row.compiled is not None]
    compile_s = saved_s = None
    if len(compiled) == len(good):
        compiled_step_s = fmean(one.train_seconds_per_image for one in compiled)
        compile_s = fmean(one.compile_seconds for one in compiled)
        saved_s = train * (step_s - compiled_step_s) * sweep.scheduler.max_epochs
        if saved_s > compile_s:
            step_s = compiled_step_s
            setup_s += compile_s
    evaluation_s = val * mean(lambda c: c.eval_seconds_per_image)
    return CandidateForecast(
        basis=MEASURED,
        epoch_seconds=train * step_s + evaluation_s + mean(lambda c: c.checkpoint_seconds),
        setup_seconds=setup_s,
        first_setup_seconds=mean(lambda c: c.first_setup_seconds),
        checkpoint_bytes=round(mean(lambda c: c.checkpoint_bytes)),
        params_m=mean(lambda c: c.params_m),
        gflops_per_image=mean(lambda c: c.gflops_per_image),
        memory=max((c.memory for c in good), key=lambda memory: sum(memory.values())),
        compile_seconds=compile_s,
        compile_saves_seconds=saved_s,
    )


def estimated(
    sweep: SweepSpec, counts: Mapping[str, int], geometry: Geometry, tflops: float | None = None
) -> CandidateForecast | None:
    """From the backbone's published size; ``None`` for one that is known only once it is built.

    ``tflops`` is what one device sustains, 1e12 a second; ``None`` takes ``TFLOPS``.
    """
    size = size_of(geometry)
    if size is None:
        return None
    recipe, resources = sweep.recipe, sweep.resources
    devices = resources.gpus_per_worker or resources.cpus_per_worker
    speed = (tflops or TFLOPS[limits.device(resources)]) * 1e12 * devices
    train, val = images_per_epoch(sweep, counts)
    weights = round(size.params_m * 1e6) * FP32_BYTES
    copies = OPTIMIZER_COPIES[recipe.optimizer]
    average = int(recipe.ema_decay is not None)
    micro_batch = recipe.batch_size_per_worker // recipe.accumulation_steps
    halved = 0.5 if recipe.precision == "bf16" else 1.0
    return CandidateForecast(
        basis=ESTIMATED,
        epoch_seconds=(STEP_PASSES * train + val) * size.gflops_per_image * 1e9 / speed,
        checkpoint_bytes=weights * (1 + copies + average),
        params_m=size.params_m,
        gflops_per_image=size.gflops_per_image,
        memory={
            "parameters": weights,
            "gradients": weights,
            "optimizer": copies * weights,
            "average": average * weights,
            "activations": round(size.activation_mb * 1e6 * micro_batch * halved),
        },
    )


@dataclass(frozen=True, kw_only=True)
class SidePrice(Spec):
    """What an epoch and a full trial would take on one slot if the backbone saw images of
    ``image_size`` pixels a side."""

    image_size: int
    epoch_seconds: float
    trial_seconds: float


def prices_by_side(
    sweep: SweepSpec, geometry: Geometry, cost: CandidateForecast | None
) -> tuple[SidePrice, ...]:
    """By side, ascending, of a backbone with trained weights, whose side is a choice; empty where
    the side is searched or the cost is not known.

    The cost at the side of ``geometry``, measured or estimated, scaled by FLOPs; by pixels where
    the model's size is not known. Sides that a chosen patch does not divide are left out.
    """
    sides = weights_sides(sweep.backbone)
    if cost is None or sides is None or "backbone.image_size" in sweep.space:
        return ()
    prices = []
    for side in sorted({*PRICED_SIDES, sides.best, geometry.image_size}):
        with suppress(UserError):
            backbone = replace(sweep.backbone, image_size=side)
            there = _described(backbone, height=side, width=side)
            epoch_seconds = cost.epoch_seconds * _work(there) / _work(geometry)
            whole = sweep.scheduler.max_epochs * epoch_seconds + cost.setup_seconds
            prices.append(
                SidePrice(image_size=side, epoch_seconds=epoch_seconds, trial_seconds=whole)
            )
    return tuple(prices)


def _work(geometry: Geometry) -> float:
    """Proportional to what an image takes, among geometries of one model."""
    size = size_of(geometry)
    return float(geometry.image_size**2) if size is None else size.gflops_per_image


def forecast(spec: RunSpec, costs: Costs, *, slots: int | None) -> Forecast:
    """What is not known is ``None``. ``slots`` is ``None`` where only the cluster can tell how many
    it holds. Hours and dollars include the finals."""
    resources, seeds = spec.sweeps[0].resources, spec.searches * spec.final_seeds
    candidates: dict[str, CandidateForecast | None] = {
        sweep.candidate: (cost := costs.get(sweep.candidate))
        and _with_slot_seconds(sweep, spec, cost)
        for sweep in spec.sweeps
    }
    forecasts = [candidate for candidate in candidates.values() if candidate is not None]
    unsummed = Forecast(
        device=limits.device(resources),
        slots=slots,
        basis=" and ".join(sorted({candidate.basis for candidate in forecasts})) or None,
        families=candidates,
    )
    if len(forecasts) < len(candidates):
        return unsummed
    finals_s = sum(candidate.slot_seconds["finals"] for candidate in forecasts)
    finals_at_once = max(1, min(slots or 1, seeds * len(forecasts)))

    def cases(amount: Callable[[float], float | None]) -> Cases | None:
        """``amount`` of the slot-seconds of the search; ``None`` where it is not known."""
        expected, worst = (amount(sum(f.slot_seconds[case] for f in forecasts)) for case in CASES)
        return None if expected is None or worst is None else Cases(expected=expected, worst=worst)

    def workers_s(search_s: float) -> float:
        return (search_s + finals_s) * resources.num_workers

    def wall_hours(search_s: float) -> float | None:
        if not slots:
            return None
        return (search_s / slots + finals_s / finals_at_once + COLD_START_S) / limits.HOUR_S

    return replace(
        unsummed,
        device_hours=cases(lambda s: limits.device_hours(workers_s(s), resources)),
        wall_hours=cases(wall_hours),
        usd=cases(lambda s: limits.usd(workers_s(s), resources, spec.prices)),
        checkpoint_bytes=_checkpoints(spec, forecasts, slots),
    )


def search_seconds(sweep: SweepSpec, spec: RunSpec, cost: CandidateForecast) -> float:
    """Seconds of slots that one search of the candidate is expected to take, its finals
    included."""
    seconds = _with_slot_seconds(sweep, spec, cost).slot_seconds
    return (seconds["expected"] + seconds["finals"]) / spec.searches


def _with_slot_seconds(
    sweep: SweepSpec, spec: RunSpec, cost: CandidateForecast
) -> CandidateForecast:
    """The candidate's cost with what slots will spend on its searches; each trial pays for
    setup."""
    full, setup = sweep.scheduler.max_epochs, cost.setup_seconds
    expected, worst = expected_epochs(sweep.scheduler, sweep.trials), sweep.trials * full
    if sweep.grid:
        expected = worst = sum(row["epochs"] for row in sweep.grid)
    epochs = zip(CASES, (expected, worst), strict=True)
    seconds = {case: n * cost.epoch_seconds + sweep.trials * setup for case, n in epochs}
    # Evaluating the test split, with its probes, takes about as long as an epoch. Not counted:
    # measuring the speed of each winner's model once, a few seconds.
    seconds["finals"] = spec.final_seeds * ((full + 1) * cost.epoch_seconds + setup)
    return replace(cost, slot_seconds={case: spec.searches * s for case, s in seconds.items()})


def _checkpoints(
    spec: RunSpec, candidates: Sequence[CandidateForecast], slots: int | None
) -> dict[str, int]:
    """Bytes by the rule of :mod:`orchestrator.ledger.retention`: ``kept`` by a run that has closed,
    each search's winner and its finals; ``at_most``, while it runs and no trial is pruned."""
    sizes = [candidate.checkpoint_bytes for candidate in candidates]
    kept = sum(sizes) * spec.searches * (1 + spec.final_seeds)
    at_most = spec.searches * spec.final_seeds * sum(sizes)
    for sweep, size in zip(spec.sweeps, sizes, strict=True):
        waiting = sweep.scheduler.pauses or slots is None
        # A trial that has not ended keeps its best and its newest, and writes the next.
        trials = spec.searches * sweep.trials
        live = trials if waiting else min(trials, slots or 0)
        at_most += size * (trials + live)
    return {"kept": kept, "at_most": at_most + max(sizes) * (slots or 1)}


def read_dataset(source: str, sets: Iterable[str]) -> ImageStore:
    """The image store of ``source`` as each ``data.PATH=VALUE`` of ``sets`` has it, built where it
    is not there yet. Raises ``UserError``."""
    data = overrides.apply_set(named_sweeps.family_sweep("vit", dataset=source), sets).data
    raise_if_any(check_source(data))
    return prepare(absolute_data(data))


def read_datasets(spec: RunSpec) -> dict[str, DatasetFacts]:
    """By candidate; builds each image store that is not there yet."""
    stores = {data: prepare(absolute_data(data)) for data in {sweep.data for sweep in spec.sweeps}}
    return {sweep.candidate: stores[sweep.data].info for sweep in spec.sweeps}


def images_of(spec: RunSpec) -> dict[str, DatasetFacts]:
    """By candidate; images of unknown size are read into the image store."""
    images = {sweep.candidate: known_images(sweep.data) for sweep in spec.sweeps}
    present = {candidate: facts for candidate, facts in images.items() if facts is not None}
    return present if len(present) == len(images) else read_datasets(spec)


def costs_of(
    spec: RunSpec, images: Mapping[str, DatasetFacts], *, measure: bool, tflops: float | None
) -> Costs:
    """What an epoch of each candidate costs: measured on this machine where asked, else
    estimated."""
    costs: dict[str, CandidateForecast | None] = {}
    quick = []
    for sweep in spec.sweeps:
        facts = images[sweep.candidate]
        cost = estimated(sweep, facts.counts, geometry_of(sweep, facts), tflops)
        costs[sweep.candidate] = cost
        steps = images_per_epoch(sweep, facts.counts)[0] / sweep.recipe.batch_size_per_worker
        if measure and (cost is None or cost.epoch_seconds / steps < SLOWEST_STEP_S):
            quick.append(sweep)
    if not quick:
        return costs
    names = ", ".join(sweep.candidate for sweep in quick)
    log.info(f"measuring training steps of {names} on this machine; --no-measure leaves it out")
    rows = measure_steps(replace(spec, sweeps=tuple(quick)), images)
    for sweep in quick:
        cost = measured(sweep, images[sweep.candidate].counts, rows[sweep.candidate])
        costs[sweep.candidate] = cost or costs[sweep.candidate]
        if cost is None:
            why = next((row.error for row in rows[sweep.candidate]), "it took too long")
            log.warning(f"warning: {sweep.candidate} could not be measured: {why}")
    return costs


def refuse_unaffordable(spec: RunSpec, costs: Costs) -> None:
    """Raise ``UserError``, exit code 3, where a measured first epoch exceeds a search's share."""
    share_s, mistakes = spec.search_share_s(), []
    workers = spec.sweeps[0].resources.num_workers
    for candidate, cost in costs.items():
        if share_s is None or cost is None or cost.basis != MEASURED:
            continue
        first_s = (cost.epoch_seconds + cost.first_setup_seconds) * limits.EPOCH_MARGIN
        if first_s > share_s:
            ((unit, amount),) = (spec.budget or {}).items()
            mistakes.append(
                f"a budget must afford an epoch of each search; --budget {unit}={amount:g} gives "
                f"{candidate} {share_s * workers:.3g} s of a worker, its first epoch takes "
                f"{first_s * workers:.3g} s ({MEASURED}, with a margin). "
                f"Fix: --budget {unit}={amount * first_s / share_s:.2g} or more"
            )
    raise_if_any(mistakes, exit_code=3)


def measure_steps(
    spec: RunSpec, images: Mapping[str, DatasetFacts], *, timeout_s: float | None = None
) -> dict[str, list[Measurement]]:
    """By candidate, a measurement for every trial whose backbone was measured; candidates that did
    not fit into ``timeout_s`` have none. By default that is ``MEASURE_TIMEOUT_S``, and more where
    models may be compiled."""
    resources = spec.sweeps[0].resources
    backbones: dict[str, Measurable] = {}
    trials: dict[str, tuple[str, int]] = {}
    for sweep in spec.sweeps:
        axes = {path: axis for path, axis in sweep.space.items() if path.startswith("backbone.")}
        drawn = (
            spaces.sample(axes, seed=sweep.seed, index=index, candidate=sweep.candidate)
            for index in range(sweep.trials)
        )
        backbones_drawn = Counter(with_axes(sweep, values).backbone for values in drawn)
        for backbone, count in backbones_drawn.most_common(MOST_VARIANTS):
            label = f"{sweep.candidate}-{len(trials)}"
            backbones[label] = _measurable(sweep, backbone, images[sweep.candidate])
            trials[label] = (sweep.candidate, count)
    open_compile = sum(sweep.recipe.compile is None for sweep in spec.sweeps)
    if timeout_s is None:
        timeout_s = MEASURE_TIMEOUT_S + open_compile * COMPILE_TIMEOUT_S
    request = MeasurementRequest(
        device="cuda" if resources.gpus_per_worker else "cpu",
        threads=max(1, int(resources.cpus_per_worker)),
        seconds=1.0,
        backbones=backbones,
    )
    rows: dict[str, list[Measurement]] = {sweep.candidate: [] for sweep in spec.sweeps}
    # Of a model that was compiled too, the last line is complete.
    by_label = {row.label: row for row in _run(request, timeout_s)}
    for label, row in by_label.items():
        candidate, count = trials[label]
        rows[candidate] += [row] * count
    return rows


def _measurable(sweep: SweepSpec, backbone: BackboneSpec, images: DatasetFacts) -> Measurable:
    """The backbone as it would be built; whoever measures it fetches no weights."""
    assignment = replace(sweep, backbone=backbone, space={}).assignment(0)
    # Whether it is compiled is what is to be found out.
    undecided = replace(assignment, recipe=replace(assignment.recipe, compile=sweep.recipe.compile))
    return Measurable(
        assignment=undecided,
        height=images.height,
        width=images.width,
        classes=len(images.class_names),
        trial_images=sweep.scheduler.max_epochs * images_per_epoch(sweep, images.counts)[0],
    )


def _run(request: MeasurementRequest, timeout_s: float) -> list[Measurement]:
    # As the slots' workers have it; tensors of a GPU are no concern of the C library.
    environment = dict(FREED_MEMORY_KEPT)
    lines = process.ask_module(
        "trainables.train.measure", request.as_dict(), timeout_s=timeout_s, **environment
    )
    return [Measurement.from_dict(line) for line in lines]
