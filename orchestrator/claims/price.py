"""What a claim's experiment will cost: each arm by its own backbone and length."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.launch.forecast import COLD_START_S, STEP_PASSES, Cost, images_per_epoch
from orchestrator.launch.plan import slots_of
from orchestrator.spec import limits
from orchestrator.spec.run import RunSpec, SweepSpec, with_axes
from trainables.config import SHIFT_IMAGES

# As many forward passes as trainables.evaluate.probes takes: each shift moves along two axes.
SHIFT_WAYS = 2

# (run of one arm) -> its family's images by split and its cost, None where that is not known
CostOf = Callable[[RunSpec], tuple[Mapping[str, int], Cost | None]]


@dataclass(frozen=True, kw_only=True)
class ArmPrice:
    """Arms of one family that cost the same: ``trials`` of them over all seeds."""

    family: str
    levels: Mapping[str, Any]
    epochs: int
    trials: int
    basis: str | None
    slot_seconds: float | None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**vars(self), "levels": dict(self.levels)}


def price(spec: RunSpec, cost_of: CostOf, *, total: Mapping[str, float] | None) -> dict[str, Any]:
    """The plan of a claim's run as JSON; what is not known is ``None``.

    ``cost_of`` tells the cost of a run with one arm, ``total`` what the machine holds.
    """
    arms = [one for sweep in spec.sweeps for one in _arms(spec, sweep, cost_of)]
    trials = sum(arm.trials for arm in arms)
    resources = spec.sweeps[0].resources
    slots = None if total is None else slots_of(spec, trials, total)
    priced = [arm.slot_seconds for arm in arms if arm.slot_seconds is not None]
    whole = sum(priced) if len(priced) == len(arms) else None
    held = None if whole is None else whole * resources.num_workers
    said = spec.claim or {}
    return {
        "claim": said.get("name"),
        "statement": said.get("statement"),
        "run": spec.name,
        "hash": said.get("hash"),
        "spec_hash": spec.hash(),
        "preset": said.get("preset"),
        "departures": list(said.get("departures", ())),
        "trials": trials,
        "epochs": sum(arm.trials * arm.epochs for arm in arms),
        "device": limits.device(resources),
        "slots": slots,
        "basis": " and ".join(sorted({arm.basis for arm in arms if arm.basis})) or None,
        "device_hours": None if held is None else limits.device_hours(held, resources),
        "wall_hours": (whole / slots + COLD_START_S) / limits.HOUR_S if whole and slots else None,
        "usd": None if held is None else limits.usd(held, resources, spec.prices),
        "arms": [arm.as_dict() for arm in arms],
    }


def _arms(spec: RunSpec, sweep: SweepSpec, cost_of: CostOf) -> list[ArmPrice]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in sweep.grid:
        groups.setdefault(repr(_what_costs(row)), []).append(row)
    return [_priced(spec, sweep, rows, cost_of) for rows in groups.values()]


def _what_costs(row: Mapping[str, Any]) -> dict[str, Any]:
    """Backbone, share of the data and length; a learning rate costs nothing."""
    return {
        key: value
        for key, value in row.items()
        if key.startswith("backbone.") or key in ("data.fraction", "epochs", "shift_offsets_px")
    }


def _priced(
    spec: RunSpec, sweep: SweepSpec, rows: list[Mapping[str, Any]], cost_of: CostOf
) -> ArmPrice:
    first, trials = rows[0], len(rows)
    levels = {key: value for key, value in _what_costs(first).items() if "." in key}
    one = replace(
        with_axes(sweep, levels),
        grid=(),
        space={},
        trials=trials,
        scheduler=replace(sweep.scheduler, max_epochs=first["epochs"]),
    )
    counts, cost = cost_of(replace(spec, sweeps=(one,), claim=None))
    seconds = None
    if cost is not None:
        train, val = images_per_epoch(one, counts)
        passes = STEP_PASSES * train + val
        probes = SHIFT_IMAGES * (1 + SHIFT_WAYS * len(first.get("shift_offsets_px", ())))
        more = (passes + probes) / passes if "shift_offsets_px" in first else 1.0
        seconds = trials * (first["epochs"] * cost.epoch_seconds * more + cost.setup_seconds)
    return ArmPrice(
        family=sweep.family,
        levels=levels,
        epochs=first["epochs"],
        trials=trials,
        basis=cost.basis if cost else None,
        slot_seconds=seconds,
    )


def price_lines(made: Mapping[str, Any]) -> list[str]:
    """A claim's plan for a terminal."""
    lines = [
        f"claim     {made['claim']}: {made['statement']}",
        f"run       {made['run']}, rule {made['hash']}, preset {made['preset']}"
        + "".join(f", {one}" for one in made["departures"]),
        f"trials    {made['trials']} on {made['slots'] or 'as many as fit'} slots, "
        f"{made['epochs']} epochs in all",
        f"forecast  {_hours(made)}",
    ]
    for arm in made["arms"]:
        levels = ", ".join(f"{key.partition('.')[2]} {value}" for key, value in
                           arm["levels"].items() if value is not None)  # fmt: skip
        seconds = arm["slot_seconds"]
        cost = "unknown" if seconds is None else f"{seconds / 60:.1f} slot minutes"
        told = f" ({levels})" if levels else ""
        lines.append(
            f"  {arm['family']:<8}{told} {arm['trials']} trials of {arm['epochs']} epochs: {cost}"
        )
    return lines


def _hours(made: Mapping[str, Any]) -> str:
    if made["device_hours"] is None:
        return "unknown: a backbone's size is known only once it is built; --measure tells"
    parts = [f"{made['device_hours']:.2f} {made['device']} hours"]
    if made["wall_hours"] is not None:
        parts.append(f"about {60 * made['wall_hours']:.0f} minutes here")
    if made["usd"] is not None:
        parts.append(f"{made['usd']:.2f} USD")
    return f"{', '.join(parts)} ({made['basis']})"
