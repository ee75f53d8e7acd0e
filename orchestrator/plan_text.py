"""The plan for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.budget import ESTIMATED, HOUR_S
from orchestrator.forecast import CASES, COLD_START_S, TFLOPS
from orchestrator.plan import geometry_line
from orchestrator.words import duration, size, span

Plan = Mapping[str, Any]


def plan_text(made: Plan) -> str:
    """What :func:`orchestrator.plan.plan` made, line by line."""
    asks = " + ".join(f"{count:g} {kind}" for kind, count in made["slot"].items() if count)
    if made["cluster"] is None:
        held = "as many as the cluster holds"
    else:
        there = ", ".join(f"{made['cluster'].get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
        held = f"{made['slots']} at once, of {there}"
    lines = [
        f"run       {made['name']} in {made['folder']}, spec {made['spec_hash']}",
        f"slots     {held}; each {_workers(made['workers'])}{asks}",
        f"epochs    {made['expected_epochs']:g} expected, {made['worst_epochs']} at worst, "
        f"over {made['trials']} trials",
    ]
    if made["final_seeds"]:
        lines.append(
            f"finals    {made['final_epochs']} epochs more: each winner over {made['final_seeds']} "
            "seeds, then the test split is opened"
        )
    lines += _forecast_lines(made)
    for family in made["families"]:
        lines += ["", *_family_lines(family, made["forecast"])]
    return "\n".join(lines)


def _workers(workers: Mapping[str, int]) -> str:
    least, most = workers["least"], workers["most"]
    if least < most:
        return f"{least}..{most} workers at the global batch of {most}, at most "
    return f"{most} workers, " if most > 1 else ""


def _forecast_lines(made: Plan) -> list[str]:
    forecast = made["forecast"]
    unit, hours, wall = forecast["device"], forecast["device_hours"], forecast["wall_hours"]
    if hours is None:
        unknown = [family for family, cost in forecast["families"].items() if cost is None]
        return [f"cost      unknown: {', '.join(unknown)} neither measured here nor of known size"]
    finals = ", finals included" if made["final_seeds"] else ""
    told = span(*(f"{hours[case]:.3g}" for case in CASES))
    cost = f"cost      {told} {unit}-hours{finals} ({forecast['basis']})"
    if ESTIMATED in forecast["basis"]:
        cost += f"; by {made['tflops'] or TFLOPS[unit]:g} TFLOP/s a {unit}, maybe off by 3 times"
    lines = [cost]
    if wall is not None:
        told = span(*(duration(wall[case] * HOUR_S) for case in CASES))
        lines.append(f"time      {told} with {COLD_START_S:g} s of cold start")
    lines += [f"money     {_money(forecast)}", *_budget_lines(made)]
    disk = forecast["checkpoint_bytes"]
    return [
        *lines,
        f"disk      checkpoints: {size(disk['at_most'])} at most, {size(disk['kept'])} at the end",
    ]


def _money(forecast: Plan) -> str:
    if forecast["usd"] is None:
        return f"missing: --price {forecast['device'].lower()}_hour=DOLLARS"
    return span(*(f"{forecast['usd'][case]:.3g}" for case in CASES)) + " USD"


def _budget_lines(made: Plan) -> list[str]:
    families = len(made["families"])
    each = f", {1 / families:.0%} of it for each family" if families > 1 else ""
    return [
        f"budget    {amount:g} {unit}{each}: the run stops before it is passed"
        for unit, amount in (made["budget"] or {}).items()
    ]


def _family_lines(family: Plan, forecast: Plan) -> list[str]:
    rungs = ", ".join(map(str, family["rungs"])) or "none: every trial trains to the end"
    return [
        f"{family['family']:<9} {geometry_line(family['geometry'])}",
        f"  weights   {weights_line(family['weights'])}",
        f"  trials    {family['trials']} of at most {family['max_epochs']} epochs; rungs {rungs}",
        *_cost_lines(forecast["families"][family["family"]]),
        *(f"  warning   {warning}" for warning in family["warnings"]),
        *(
            f"  search    {path} {axis['range']}" + (f": {axis['why']}" if axis["why"] else "")
            for path, axis in family["space"].items()
        ),
    ]


def _cost_lines(cost: Plan | None) -> list[str]:
    if cost is None:
        return ["  cost      unknown until the model is built"]
    memory = cost["memory"]
    held = ", ".join(f"{size(count)} {name}" for name, count in memory.items() if count)
    return [
        f"  cost      {duration(cost['epoch_seconds'])} an epoch, {cost['basis']}; "
        f"{cost['params_m']:.3g} M parameters, {cost['gflops_per_image']:.3g} GFLOPs an image",
        f"  memory    about {size(sum(memory.values()))} a worker: {held}",
        f"  storage   {size(cost['checkpoint_bytes'])} a checkpoint",
    ]


def weights_line(weights: str) -> str:
    """Where the first weights come from."""
    if weights == "none":
        return "none: random, trained from scratch (--weights hub|PATH to fine-tune)"
    if weights == "hub":
        return "hub: timm's own, fetched once (--weights none|PATH to go without)"
    return f"from {weights}"
