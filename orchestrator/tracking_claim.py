"""What MLflow shows of a claim's verdict on the run that tested it: a function of the state."""

from __future__ import annotations

import re
from typing import Any

from orchestrator.ledger import State

ARTIFACT = "verdict.json"
NO_VERDICT = "no verdict"


def tags(state: State) -> dict[str, Any]:
    """The claim as soon as it is declared; its verdict with scope, rule and time once it is on
    record."""
    said = state.header.get("spec", {}).get("claim") or {}
    found = {"claim": said.get("name"), "claim_hash": said.get("hash")}
    if not state.verdict:
        return found
    verdict = state.verdict["detail"]
    return {
        **found,
        "verdict": verdict["verdict"] or NO_VERDICT,
        "verdict_scope": verdict["scope"],
        "verdict_sentence": verdict["sentence"],
        "verdict_at": state.verdict["time"],
    }


def metrics(state: State) -> list[tuple[str, float, int, int]]:
    """Every effect with its interval and its seeds: name, value, unix milliseconds, step."""
    if not state.verdict:
        return []
    verdict, at = state.verdict["detail"], round(state.verdict["time"] * 1000)
    rows = []
    for effect in [*verdict["effects"], *verdict["others"]]:
        name = "effect/" + re.sub(r"[^a-z0-9]+", "_", effect["name"].lower()).strip("_")[:180]
        named = {name: "mean", f"{name}_low": "low", f"{name}_high": "high"}
        rows += [(k, float(effect[v]), at, 0) for k, v in named.items() if effect[v] is not None]
    if verdict["seeds"] is not None:
        rows.append(("claim_seeds", float(verdict["seeds"]), at, 0))
    return rows
