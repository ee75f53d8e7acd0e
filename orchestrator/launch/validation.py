"""Every check of a run that needs neither an image nor Ray, all mistakes at once.

What can be checked here of a run that is to go on elsewhere, as a job: no folder of the cluster
is looked for on this machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from orchestrator.launch import plan
from orchestrator.ray_cluster import attach
from orchestrator.spec.run import RunSpec, SweepSpec, with_axes
from orchestrator.spec.spaces import Choice
from trainables.config import BackboneSpec, DataSpec
from trainables.data.sources import KNOWN_DATASETS, check_source
from trainables.errors import UserError, raise_if_any
from trainables.storage.object_storage import is_remote
from trainables.storage.object_storage import mistakes as stored_mistakes

NETWORK_TIMEOUT_S = 5.0


def check(spec: RunSpec) -> dict[str, float] | None:
    """Raise ``UserError`` with every mistake that shows without reading an image or starting Ray.

    Returns the totals of this machine, or ``None`` where a running cluster must tell them.
    """
    from orchestrator.ledger import replication, session

    found = spec.mistakes() + storage_mistakes(spec.storage)
    if not found and is_remote(spec.storage):
        replication.pull(spec.storage, spec.name)
    backbones = [line for sweep in spec.sweeps for line in backbone_mistakes(sweep)]
    found += [line for sweep in spec.sweeps for line in _data_mistakes(sweep)] + backbones
    found += _network_mistakes(spec, weights=not backbones)
    if not found:
        found = session.name_mistakes(spec)
    total = None if attach.known_address() else plan.local_totals()
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
    known = KNOWN_DATASETS.get(data.source)
    return None if known is None else known.stored_side_px(data)


def _variants(sweep: SweepSpec, section: str) -> Iterator[SweepSpec]:
    """The sweep at each end or value of its searched axes of ``section``."""
    yield sweep
    for path, domain in sweep.space.items():
        if path.startswith(f"{section}."):
            ends = domain.values if isinstance(domain, Choice) else (domain.low, domain.high)
            for value in ends:
                yield with_axes(sweep, {path: value})


def _data_mistakes(sweep: SweepSpec) -> list[str]:
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
    from orchestrator.tracking import store
    from trainables.backbones import check_weights

    def ask(backbone: BackboneSpec) -> list[str]:
        return check_weights(backbone, timeout_s=NETWORK_TIMEOUT_S)

    asked = {sweep.backbone for sweep in spec.sweeps} if weights else set()
    with ThreadPoolExecutor() as threads:
        answers = [threads.submit(ask, backbone) for backbone in asked]
        uri = spec.tracking_uri or store.default_uri(spec.storage)
        answers.append(threads.submit(store.check, uri, timeout_s=NETWORK_TIMEOUT_S))
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


def check_job(spec: RunSpec) -> None:
    """Raise ``UserError`` with every mistake that shows before the job is submitted."""
    found = spec.mistakes()
    for sweep in spec.sweeps:
        found += backbone_mistakes(sweep) + _job_data_mistakes(sweep.data)
    found += [_relative(option, path) for option, path in _paths(spec) if not _absolute(path)]
    found += _tracking_mistakes(spec.tracking_uri)
    if not found and not is_remote(spec.storage) and spec.folder.is_dir():
        from orchestrator.ledger import session

        found = session.name_mistakes(spec)
    raise_if_any(dict.fromkeys(found))


def _paths(spec: RunSpec) -> Iterator[tuple[str, str]]:
    if not is_remote(spec.storage):
        yield "--storage ", spec.storage
    for sweep in spec.sweeps:
        data, weights = sweep.data, sweep.backbone.weights
        if data.source not in KNOWN_DATASETS and Path(data.source).exists():
            yield "--dataset ", data.source
        if data.archive is not None:
            yield "--set data.archive=", data.archive
        if data.folder is not None:
            yield "--set data.folder=", data.folder
        if weights not in ("hub", "none"):
            yield "--weights ", weights


def _absolute(path: str) -> bool:
    return Path(path).expanduser().is_absolute()


def _relative(option: str, path: str) -> str:
    fix = f"{option}{Path(path).absolute()} where the head is this machine, else a path there"
    if option == "--storage ":
        fix += ", or --storage s3://BUCKET/runs"
    return (
        f"a job runs in a copy of its folder, so a path must be absolute; got {option}{path}. "
        f"Fix: {fix}"
    )


def _job_data_mistakes(data: DataSpec) -> list[str]:
    """Of a source with a name, of one that is here too, and of one that is a slip of the pen."""
    elsewhere = [
        path
        for path in (data.archive, data.source if data.source not in KNOWN_DATASETS else None)
        if path is not None and _absolute(path) and not Path(path).expanduser().exists()
    ]
    return [] if elsewhere else check_source(data)


def _tracking_mistakes(uri: str | None) -> list[str]:
    from orchestrator.tracking.store import SERVER_SCHEMES, check

    if uri is None or uri.partition(":")[0] in SERVER_SCHEMES:
        return []
    scheme, _, path = uri.partition(":///")
    if scheme.partition("+")[0] != "sqlite":
        return check(uri)
    return [] if _absolute(path) else [_relative("--tracking-uri sqlite:///", path)]
