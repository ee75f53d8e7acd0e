"""Every check of a run that needs neither an image nor Ray, all mistakes at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from orchestrator import cluster, plan
from orchestrator.spaces import Choice
from orchestrator.spec import RunSpec, SweepSpec, with_axes
from trainables.assignment import BackboneSpec, DataSpec
from trainables.errors import UserError
from trainables.storage import is_remote
from trainables.storage import mistakes as stored_mistakes

# Sides in pixels that are known before anything is read or downloaded.
KNOWN_SIDES = {"digits": 8, "cifar10": 32, "cifar100": 32}
NETWORK_TIMEOUT_S = 5.0


def check(spec: RunSpec) -> dict[str, float] | None:
    """Raise ``UserError`` with every mistake that shows without reading an image or starting Ray.

    Returns the totals of this machine, or ``None`` where a running cluster must tell them.
    """
    from orchestrator import session, session_copy

    found = spec.mistakes() + storage_mistakes(spec.storage)
    if not found and is_remote(spec.storage):
        session_copy.pull(spec.storage, spec.name)
    backbones = [line for sweep in spec.sweeps for line in backbone_mistakes(sweep)]
    found += [line for sweep in spec.sweeps for line in _data_mistakes(sweep)] + backbones
    found += _network_mistakes(spec, weights=not backbones)
    if not found:
        found = session.name_mistakes(spec)
    total = None if cluster.known_address() else plan.local_totals()
    lacking = (
        []
        if total is None
        else [line for sweep in spec.sweeps for line in plan.feasible(sweep.resources, total)]
    )
    if found or lacking:
        raise UserError(*dict.fromkeys([*found, *lacking]), exit_code=2 if found else 3)
    return total


def storage_mistakes(storage: str) -> list[str]:
    """Why runs cannot be kept under ``storage``; empty when they can."""
    if is_remote(storage):
        return stored_mistakes(storage.rstrip("/"))
    place = Path(storage).expanduser().absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        return [f"--storage must be a folder; {place} is a file. Fix: --storage FOLDER"]
    if not os.access(place, os.W_OK | os.X_OK):
        return [f"--storage must be writable; {place} is not. Fix: --storage FOLDER"]
    return []


def known_side(data: DataSpec) -> int | None:
    """Side in pixels of the stored images, where the dataset's name tells it."""
    side = KNOWN_SIDES.get(data.source)
    return None if side is None else min(side, data.short_side or side)


def _variants(sweep: SweepSpec, section: str) -> Iterator[SweepSpec]:
    """The sweep at each end or value of its searched axes of ``section``."""
    yield sweep
    for path, domain in sweep.space.items():
        if path.startswith(f"{section}."):
            ends = domain.values if isinstance(domain, Choice) else (domain.low, domain.high)
            for value in ends:
                yield with_axes(sweep, {path: value})


def _data_mistakes(sweep: SweepSpec) -> list[str]:
    from trainables.data import check_source

    return [line for one in _variants(sweep, "data") for line in check_source(one.data)]


def backbone_mistakes(sweep: SweepSpec) -> list[str]:
    """Why the backbone, or one that is searched, cannot be; where the images' side is known, on
    such images."""
    from trainables.backbones import check_backbone

    found = [line for one in _variants(sweep, "backbone") for line in check_backbone(one.backbone)]
    side = known_side(sweep.data)
    if not found and side is not None:
        try:
            describe_all(sweep, height=side, width=side)
        except UserError as error:
            found += error.mistakes
    return found


def _network_mistakes(spec: RunSpec, *, weights: bool) -> list[str]:
    """Hub and tracking server asked at once, so that two silent ones cost one time-out."""
    from orchestrator import tracking
    from trainables.backbones import check_weights

    def ask(backbone: BackboneSpec) -> list[str]:
        return check_weights(backbone, timeout_s=NETWORK_TIMEOUT_S)

    asked = {sweep.backbone for sweep in spec.sweeps} if weights else set()
    with ThreadPoolExecutor() as threads:
        answers = [threads.submit(ask, backbone) for backbone in asked]
        uri = spec.tracking_uri or tracking.default_uri(spec.storage)
        answers.append(threads.submit(tracking.check, uri, timeout_s=NETWORK_TIMEOUT_S))
        return [line for answer in answers for line in answer.result()]


def describe_all(sweep: SweepSpec, *, height: int, width: int) -> dict[str, Any]:
    """The backbone's geometry as a dict, with the warnings of each searched variant.

    Raises ``UserError`` when a variant cannot be adapted to ``height`` x ``width`` pixels.
    """
    from trainables.backbones import describe

    seen = [
        describe(one.backbone, height=height, width=width) for one in _variants(sweep, "backbone")
    ]
    warnings = dict.fromkeys(line for geometry in seen for line in geometry.warnings)
    return {**seen[0].as_dict(), "warnings": list(warnings)}
