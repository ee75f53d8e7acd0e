"""What ``orchestrator doctor`` looks at on this machine, and what it makes of the cluster."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from trainables.assignment import BackboneSpec, DataSpec
from trainables.storage import is_remote

PINS = Path(__file__).parents[1] / "constraints.txt"  # beside a checkout, not in a wheel


def examine(
    storage: str, tracking_uri: str | None, backbones: Sequence[BackboneSpec], *, local: bool
) -> dict[str, Any]:
    """Facts as JSON. ``problems`` keep a run from its end, ``warnings`` may; one line each.

    The cluster that Ray knows of is looked at node by node, unless ``local``.
    """
    from orchestrator import cluster, plan, tracking
    from orchestrator.cli_check import storage_mistakes
    from orchestrator.doctor_node import gpu_mistakes, torch_gpus
    from orchestrator.session import environment
    from orchestrator.tracking_store import age_mistakes
    from trainables.backbones import check_weights
    from trainables.data import default_folder

    machine, total = environment(), plan.local_totals()
    uri = tracking_uri or tracking.default_uri(storage)
    address, folder = None if local else cluster.known_address(), default_folder(DataSpec())
    problems = storage_mistakes(storage)
    problems += tracking.check(uri) or age_mistakes(uri)
    problems += [line for one in backbones for line in check_weights(one)]
    if total["GPU"]:
        problems += gpu_mistakes("this machine", total["GPU"], torch_gpus())
    facts = {
        "python": machine["python"],
        "platform": machine["platform"],
        "processor": machine["processor"],
        "cpus": int(total["CPU"]),
        "gpus": int(total["GPU"]),
        "memory_gb": machine["memory_gb"],
        "cluster": address,
        "tracking": uri,
        "storage": storage if is_remote(storage) else str(Path(storage).absolute()),
        "storage_free_gb": None if is_remote(storage) else _free_gb(Path(storage)),
        "data_folder": str(folder),
        "data_free_gb": _free_gb(folder),
        "versions": machine["versions"],
        "warnings": pin_mistakes(PINS),
    }
    if address is not None:
        from orchestrator import doctor_cluster

        found = doctor_cluster.examine(storage=storage, tracking_uri=uri, backbones=backbones)
        problems += found.pop("problems")
        facts |= found
    return {**facts, "problems": list(dict.fromkeys(problems))}


def pin_mistakes(pins: Path) -> list[str]:
    """What is installed here in another version than the one this project was tested with."""
    if not pins.is_file():
        return []
    found = []
    for line in pins.read_text(encoding="utf-8").splitlines():
        name, _, pinned = line.partition("==")
        if not pinned or name.startswith("#"):
            continue
        try:
            here = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            continue  # of the tests, or of another platform
        if here != pinned:
            found.append(
                f"{name} is {here} here; this project was tested with {pinned}. "
                f"Fix: pip install -c {pins.name} {name}"
            )
    return found


def _free_gb(folder: Path) -> float:
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return round(shutil.disk_usage(place).free / 1e9, 1)
