"""What a run is expected to train and to cost: epochs, device-hours, time, money, memory, disk.

A family's cost is that of a real step where one was measured on this machine, else estimated from
its FLOPs and an assumed throughput; every figure says which. Pure arithmetic: no ray.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.ledger.header import Cases, FamilyForecast, Forecast
from orchestrator.spec import limits
from orchestrator.spec.limits import ESTIMATED, MEASURED, SchedulerSpec
from orchestrator.spec.run import RunSpec, SweepSpec
from trainables.backbones import Geometry, size_of


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


def expected_rest(scheduler: SchedulerSpec, epoch: int) -> float:
    """Epochs that one trial is still expected to train after ``epoch`` of them.

    At each rung ahead it goes on with probability 1/eta, as one of very many would.
    """
    odds, before, epochs = 1.0, epoch, 0.0
    for rung in scheduler.rungs():
        if rung <= epoch:
            continue
        epochs += odds * (rung - before)
        before = rung
        pruned = odds * (1 - 1 / scheduler.reduction_factor)
        epochs += scheduler.audit * pruned * (scheduler.max_epochs - rung)
        odds -= pruned
    return epochs + odds * (scheduler.max_epochs - before)


# Sustained in training by one device, where nothing is measured: of a laptop's core in fp32, and
# of a data-centre GPU on networks as small as these.
TFLOPS = {"CPU": 0.03, "GPU": 15.0}
COLD_START_S = 30.0
# FLOPs of a training step for each of its forward pass: the backward pass costs two.
STEP_PASSES = 3
OPTIMIZER_COPIES = {"adamw": 2, "sgd": 1, "lion": 1}  # tensors kept per parameter
FP32_BYTES = 4
CASES = ("expected", "worst")

Costs = Mapping[str, FamilyForecast | None]  # by family, not yet by what slots will spend
Row = Mapping[str, Any]  # what trainables.train.measure prints of one backbone


def images_per_epoch(sweep: SweepSpec, counts: Mapping[str, int]) -> tuple[int, int]:
    """Images that each worker trains on and evaluates in an epoch; ``counts`` are by split."""
    data, workers = sweep.data, sweep.resources.num_workers
    train = min(counts["train"], data.train_limit or counts["train"])
    train = max(1, round(data.fraction * train)) // workers
    batch = max(1, min(sweep.recipe.batch_size_per_worker, train))
    return train // batch * batch, -(-counts["val"] // workers)


def measured(
    sweep: SweepSpec, counts: Mapping[str, int], rows: Sequence[Row]
) -> FamilyForecast | None:
    """The mean over ``rows`` of :mod:`trainables.train.measure`, one for each trial asked for;
    ``None`` where none of them could be measured."""
    good = [row for row in rows if "error" not in row]
    if not good:
        return None
    train, val = images_per_epoch(sweep, counts)

    def mean(name: str) -> float:
        return float(sum(row[name] for row in good) / len(good))

    return FamilyForecast(
        basis=MEASURED,
        epoch_seconds=train * mean("train_seconds_per_image")
        + val * mean("eval_seconds_per_image")
        + mean("checkpoint_seconds"),
        setup_seconds=mean("setup_seconds"),
        first_setup_seconds=mean("first_setup_seconds"),
        checkpoint_bytes=round(mean("checkpoint_bytes")),
        params_m=mean("params_m"),
        gflops_per_image=mean("gflops_per_image"),
        memory=max((row["memory"] for row in good), key=lambda memory: sum(memory.values())),
    )


def estimated(
    sweep: SweepSpec,
    counts: Mapping[str, int],
    geometry: Geometry,
    tflops: float | None = None,
) -> FamilyForecast | None:
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
    return FamilyForecast(
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


def forecast(spec: RunSpec, costs: Costs, *, slots: int | None) -> Forecast:
    """What is not known is ``None``. ``slots`` is ``None`` where only the cluster can tell how many
    it holds. Hours and dollars include the finals."""
    resources, seeds = spec.sweeps[0].resources, spec.final_seeds
    families = {
        sweep.family: _family(sweep, seeds, costs.get(sweep.family)) for sweep in spec.sweeps
    }
    known = [family for family in families.values() if family is not None]
    partial = Forecast(
        device=limits.device(resources),
        slots=slots,
        basis=" and ".join(sorted({family.basis for family in known})) or None,
        families=families,
    )
    if len(known) < len(families):
        return partial
    finals_s = sum(family.slot_seconds["finals"] for family in known)
    finals_at_once = max(1, min(slots or 1, seeds * len(known)))

    def cases(amount: Callable[[float], float]) -> Cases:
        """``amount`` of the slot-seconds of the search."""
        seconds = {case: sum(family.slot_seconds[case] for family in known) for case in CASES}
        return Cases(expected=amount(seconds["expected"]), worst=amount(seconds["worst"]))

    def workers_s(search_s: float) -> float:
        return (search_s + finals_s) * resources.num_workers

    def wall_s(search_s: float) -> float:
        return search_s / (slots or 1) + finals_s / finals_at_once + COLD_START_S

    is_priced = limits.usd(0.0, resources, spec.prices) is not None
    return replace(
        partial,
        device_hours=cases(lambda s: limits.device_hours(workers_s(s), resources)),
        wall_hours=cases(lambda s: wall_s(s) / limits.HOUR_S) if slots else None,
        usd=cases(lambda s: limits.usd(workers_s(s), resources, spec.prices) or 0.0)
        if is_priced
        else None,
        checkpoint_bytes=_checkpoints(spec, known, slots),
    )


def _family(
    sweep: SweepSpec, final_seeds: int, cost: FamilyForecast | None
) -> FamilyForecast | None:
    """The family's cost with what its slots will spend on it; setup is paid for every trial."""
    if cost is None:
        return None
    full, setup = sweep.scheduler.max_epochs, cost.setup_seconds
    epochs = {
        "expected": expected_epochs(sweep.scheduler, sweep.trials),
        "worst": float(sweep.trials * full),
    }
    if sweep.grid:
        epochs = dict.fromkeys(CASES, float(sum(row["epochs"] for row in sweep.grid)))
    seconds = {case: epochs[case] * cost.epoch_seconds + sweep.trials * setup for case in CASES}
    # Evaluating the test split, with its probes, takes about as long as an epoch.
    seconds["finals"] = final_seeds * ((full + 1) * cost.epoch_seconds + setup)
    return replace(cost, slot_seconds=seconds)


def _checkpoints(
    spec: RunSpec, families: Sequence[FamilyForecast], slots: int | None
) -> dict[str, int]:
    """Bytes by the rule of :mod:`orchestrator.ledger.checkpoint_cleanup`: ``kept`` by a run that
    has closed, each family's winner and its finals; ``at_most``, while it runs and no trial is
    pruned."""
    sizes = [family.checkpoint_bytes for family in families]
    kept = sum(sizes) * (1 + spec.final_seeds)
    at_most = spec.final_seeds * sum(sizes)
    for sweep, size in zip(spec.sweeps, sizes, strict=True):
        waiting = sweep.scheduler.kind == "pasha" or slots is None
        # A trial that has not ended keeps its best and its newest, and writes the next.
        live = sweep.trials if waiting else min(sweep.trials, slots or 0)
        at_most += size * (sweep.trials + live)
    return {"kept": kept, "at_most": at_most + max(sizes) * (slots or 1)}
