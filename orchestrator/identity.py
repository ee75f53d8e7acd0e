"""When two specs are the same run, and in which leaves they differ. Works on their plain dicts."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from orchestrator import spaces
from trainables.recipe import stable_hash

# How a run is carried out, not what it trains: may change when it is resumed.
OPERATIONAL_RESOURCES = (
    "cpus_per_worker",
    "min_workers",
    "max_slots",
    "epoch_timeout_s",
    "slot_start_timeout_s",
    "max_failures_per_trial",
)
OPERATIONAL_RUN = (
    *("name", "storage", "tracking_uri", "experiment", "final_seeds"),
    *("budget", "prices"),
)


def identity(run: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two runs the same: all but the number of trials (a run may be extended), where
    things are kept, and how it is carried out. ``run`` is ``RunSpec.as_dict()``."""
    plain = {key: copy.deepcopy(value) for key, value in run.items() if key not in OPERATIONAL_RUN}
    for sweep in plain["sweeps"]:
        del sweep["trials"], sweep["data"]["folder"]
        for name in OPERATIONAL_RESOURCES:
            sweep["resources"].pop(name, None)
        if not sweep.get("grid"):
            sweep.pop("grid", None)
    if not plain.get("claim"):
        plain.pop("claim", None)
    return plain


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """``PATH: was OLD, asked NEW`` for each leaf that makes ``new`` another run than ``old``."""
    before, after = (_leaves(_by_family(identity(run))) for run in (old, new))
    return [
        f"{path}: was {before.get(path, 'not there')}, asked {after.get(path, 'not there')}"
        for path in sorted({*before, *after})
        if before.get(path) != after.get(path)
    ]


def _by_family(plain: dict[str, Any]) -> dict[str, Any]:
    sweeps = {sweep["backbone"]["family"]: sweep for sweep in plain.pop("sweeps")}
    return {**plain, **sweeps}


def _leaves(plain: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in plain.items():
        path = f"{prefix}{key}"
        if key == "space":
            domains = spaces.from_dict(value)
            found |= {f"{path}.{axis}": str(domain) for axis, domain in domains.items()}
        elif key == "grid":
            found[path] = f"{len(value)} trials, {stable_hash(value)}"
        elif isinstance(value, Mapping):
            found |= _leaves(value, f"{path}.")
        else:
            found[path] = "none" if value is None else str(value)
    return found
