"""What differed between the arms of a comparison besides the architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.compare.curves import Curve, family_labels, sweeps
from orchestrator.compare.families import best_trial
from orchestrator.compare.runs import RunData

FACTS = (
    "model", "weights", "scale", "params_m", "gflops_per_image", "image_size", "patch", "stem",
    "tokens", "adaptation", "mean", "std", "train_limit", "fraction", "train_images", "optimizer",
    "batch_size_per_worker", "global_batch", "freeze", "augment", "flip", "precision", "compile",
    "channels_last", "epochs", "num_workers", "device",
)  # fmt: skip

OLD = {"road": "adaptation"}  # names in ledgers of before 2026-11-28


def arms(families: Mapping[str, Sequence[Curve]], runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """One row a fact: ``{"what", "values": {family: value}, "same"}``.

    The facts are those of the family's best finished trial, else of its first one: what its
    worker reported, then its recipe, the header's geometry and the sweep's spec. A fact that
    no family states is left out; one that a family does not state is ``None`` there.
    """
    headers = _header_facts(runs)
    stated = {label: _facts(curves, headers[label]) for label, curves in families.items()}
    rows = []
    for what in FACTS:
        values = {label: facts.get(what) for label, facts in stated.items()}
        known = [value for value in values.values() if value is not None]
        if known:
            same = len(known) == len(values) and all(value == known[0] for value in known)
            rows.append({"what": what, "values": values, "same": same})
    return rows


def _header_facts(runs: Sequence[RunData]) -> dict[str, dict[str, Any]]:
    found = {}
    for (index, family), label in family_labels(runs).items():
        header = runs[index].header
        facts: dict[str, Any] = {}
        for sweep in sweeps(runs[index]):
            if sweep["backbone"]["family"] == family:
                facts.update(sweep.get("data", {}))
                facts.update(sweep["backbone"])
                facts["epochs"] = sweep.get("scheduler", {}).get("max_epochs")
        found[label] = {**facts, **header.get("geometry", {}).get(family, {})}
    return found


def _facts(curves: Sequence[Curve], header: Mapping[str, Any]) -> dict[str, Any]:
    search = [curve for curve in curves if curve.stage == "search"]
    chosen = best_trial(search) or next(iter(search), None)
    layers: list[Mapping[str, Any]] = [header]
    if chosen is not None:
        drawn = {path.rpartition(".")[2]: value for path, value in chosen.axes.items()}
        layers += [chosen.recipe, drawn, chosen.detail]
    facts: dict[str, Any] = {}
    for layer in layers:
        facts.update({OLD.get(key, key): v for key, v in layer.items() if v is not None})
    return facts
