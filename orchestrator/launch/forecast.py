"""What a run will cost, before it does: device-hours, wall time, money, memory, checkpoints.

Each family's cost is of a real step where one was measured on this machine, else estimated from
its FLOPs and a throughput that is assumed; every figure says which.

How many epochs a scheduler is expected to train. Pure arithmetic: no ray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

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

Forecast = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One family's cost on one slot. ``memory`` is bytes of each worker by purpose,
    ``first_setup_seconds`` those of a slot's first trial, which imports what it needs."""

    basis: str
    epoch_seconds: float
    setup_seconds: float
    first_setup_seconds: float
    checkpoint_bytes: int
    params_m: float
    gflops_per_image: float
    memory: Mapping[str, int]


def images_per_epoch(sweep: SweepSpec, counts: Mapping[str, int]) -> tuple[int, int]:
    """Images that each worker trains on and evaluates in an epoch; ``counts`` are by split."""
    data, workers = sweep.data, sweep.resources.num_workers
    train = min(counts["train"], data.train_limit or counts["train"])
    train = max(1, round(data.fraction * train)) // workers
    batch = max(1, min(sweep.recipe.batch_size_per_worker, train))
    return train // batch * batch, -(-counts["val"] // workers)


def measured(
    sweep: SweepSpec, counts: Mapping[str, int], rows: Sequence[Mapping[str, Any]]
) -> Cost | None:
    """The mean over ``rows`` of :mod:`trainables.train.measure`, one for each trial asked for;
    ``None`` where none of them could be measured."""
    good = [row for row in rows if "error" not in row]
    if not good:
        return None
    train, val = images_per_epoch(sweep, counts)

    def mean(name: str) -> float:
        return float(sum(row[name] for row in good) / len(good))

    return Cost(
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
) -> Cost | None:
    """From the backbone's published size; ``None`` for one that is known only once it is built.

    ``tflops`` is what one device sustains, 1e12 a second; ``None`` takes ``TFLOPS``.
    """
    size = size_of(geometry)
    if size is None:
        return None
    recipe, resources = sweep.recipe, sweep.resources
    held = resources.gpus_per_worker or resources.cpus_per_worker
    speed = (tflops or TFLOPS[limits.device(resources)]) * 1e12 * held
    train, val = images_per_epoch(sweep, counts)
    weights = round(size.params_m * 1e6) * FP32_BYTES
    copies = OPTIMIZER_COPIES[recipe.optimizer]
    average = int(recipe.ema_decay is not None)
    micro_batch = recipe.batch_size_per_worker // recipe.accumulation_steps
    halved = 0.5 if recipe.precision == "bf16" else 1.0
    return Cost(
        basis=ESTIMATED,
        epoch_seconds=(STEP_PASSES * train + val) * size.gflops_per_image * 1e9 / speed,
        setup_seconds=0.0,
        first_setup_seconds=0.0,
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


def forecast(spec: RunSpec, costs: Mapping[str, Cost | None], *, slots: int | None) -> Forecast:
    """The forecast as JSON; what is not known is ``None``. ``slots`` is ``None`` where only the
    cluster can tell how many it holds. Hours and dollars include the finals."""
    resources = spec.sweeps[0].resources
    families = {
        sweep.family: None if cost is None else _family(spec, sweep, cost)
        for sweep in spec.sweeps
        for cost in [costs.get(sweep.family)]
    }
    found = [family for family in families.values() if family is not None]
    made: dict[str, Any] = {
        "device": limits.device(resources),
        "slots": slots,
        "basis": " and ".join(sorted({family["basis"] for family in found})) or None,
        "device_hours": None,
        "wall_hours": None,
        "usd": None,
        "checkpoint_bytes": None,
        "families": families,
    }
    if len(found) < len(families):
        return made
    finals = sum(family["slot_seconds"]["finals"] for family in found)
    search = {case: sum(family["slot_seconds"][case] for family in found) for case in CASES}
    workers = {case: (search[case] + finals) * resources.num_workers for case in CASES}
    made["device_hours"] = {case: limits.device_hours(workers[case], resources) for case in CASES}
    money = {case: limits.usd(workers[case], resources, spec.prices) for case in CASES}
    made["usd"] = None if None in money.values() else money
    made["checkpoint_bytes"] = _checkpoints(spec, found, slots)
    if slots:
        together = max(1, min(slots, spec.final_seeds * len(found)))
        made["wall_hours"] = {
            case: (search[case] / slots + finals / together + COLD_START_S) / limits.HOUR_S
            for case in CASES
        }
    return made


def _family(spec: RunSpec, sweep: SweepSpec, cost: Cost) -> dict[str, Any]:
    """The family's cost, and what its slots will spend on it; setup is paid for every trial."""
    full, setup = sweep.scheduler.max_epochs, cost.setup_seconds
    epochs = {
        "expected": expected_epochs(sweep.scheduler, sweep.trials),
        "worst": float(sweep.trials * full),
    }
    if sweep.grid:
        epochs = dict.fromkeys(CASES, float(sum(row["epochs"] for row in sweep.grid)))
    seconds = {case: epochs[case] * cost.epoch_seconds + sweep.trials * setup for case in CASES}
    # Meeting the test split, with its probes, takes about as long as an epoch.
    seconds["finals"] = spec.final_seeds * ((full + 1) * cost.epoch_seconds + setup)
    return {**asdict(cost), "slot_seconds": seconds}


def _checkpoints(
    spec: RunSpec, families: Sequence[Mapping[str, Any]], slots: int | None
) -> dict[str, int]:
    """Bytes by the rule of :mod:`orchestrator.ledger.retention`: ``kept`` by a run that has closed,
    each family's winner and its finals; ``at_most``, while it runs and no trial is pruned."""
    sizes = [family["checkpoint_bytes"] for family in families]
    kept = sum(sizes) * (1 + spec.final_seeds)
    at_most = spec.final_seeds * sum(sizes)
    for sweep, size in zip(spec.sweeps, sizes, strict=True):
        waiting = sweep.scheduler.kind == "pasha" or slots is None
        # A trial that has not ended keeps its best and its newest, and writes the next.
        live = sweep.trials if waiting else min(sweep.trials, slots or 0)
        at_most += size * (sweep.trials + live)
    return {"kept": kept, "at_most": at_most + max(sizes) * (slots or 1)}
