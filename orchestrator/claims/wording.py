"""A verdict in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.compare.wording import signed

NO_VERDICT = "no verdict"


def effect_text(value: float | None, unit: str) -> str:
    """``+3.1 points``, ``×4.2`` or ``0.8 decades``."""
    if value is None:
        return "missing"
    if unit == "ratio":
        return f"×{10**value:.3g}"
    if unit == "decades":
        return f"{value:.2f} decades"
    return f"{'+' if value >= 0 else ''}{signed(value)} points"


def interval_text(effect: Mapping[str, Any]) -> str:
    """``+3.1 points (90 % interval +1.2 to +5.0, n = 5)``."""
    mean = effect_text(effect["mean"], effect["unit"])
    bound = "" if effect["bound"] == "exact" else f", {effect['bound']} these values"
    if effect["low"] is None:
        return f"{mean} (n = {effect['n']}, no interval{bound})"
    low, high = (effect_text(effect[end], effect["unit"]) for end in ("low", "high"))
    level = f"{100 * effect['level']:.0f} %"
    low = low.removesuffix(" points").removesuffix(" decades")
    return f"{mean} ({level} interval {low} to {high}, n = {effect['n']}{bound})"


def sentence(verdict: Mapping[str, Any]) -> str:
    """The verdict with its scope and its numbers, in a sentence or two."""
    outcome = verdict["verdict"] or NO_VERDICT
    head = f"{outcome[0].upper()}{outcome[1:]} for {verdict['scope']}"
    if verdict["verdict"] is None:
        return f"{head}: {verdict['reason'].removesuffix('.')}."
    told = "; ".join(f"{one['name']}: {interval_text(one)}" for one in verdict["effects"])
    return f"{head}: {told}."


def verdict_lines(verdict: Mapping[str, Any]) -> list[str]:
    """The verdict for a terminal."""
    lines = [
        f"claim      {verdict['claim']}: {verdict['statement']}",
        f"verdict    {verdict['verdict'] or NO_VERDICT}",
        f"why        {verdict['reason']}",
        f"scope      {verdict['scope']}",
        f"rule       effect against {verdict['smallest_effect']['text']}, wrong with probability "
        f"{verdict['alpha']:g} at most, hash {verdict['hash']}",
    ]
    for one in verdict["effects"]:
        lines.append(f"effect     {one['name']}: {interval_text(one)}")
        lines.append(f"           {one['verdict']}, p = {one['p_value_holm']:.3g} (Holm)")
    lines += [f"besides    {one['name']}: {interval_text(one)}" for one in verdict["others"]]
    lines += [f"note       {note}" for note in verdict["notes"]]
    lines += [f"departs    {one}" for one in verdict["departures"]]
    hardware = verdict["hardware"]
    lines.append(
        f"on         {hardware['processor']}, {hardware['cpus']} CPUs, "
        f"{verdict['device_seconds'] / 60:.1f} device minutes, "
        f"{verdict['trials']['finished']} of {verdict['trials']['asked']} trials finished"
    )
    recorded = verdict.get("recorded")
    if recorded and not recorded["agrees"]:
        was = recorded["verdict"] or NO_VERDICT
        lines.append(f"RECORDED   {was}, and not in all the same as what is recomputed here")
    lines += [f"CHANGED    {change}" for change in verdict["rule_changes"]]
    return lines
