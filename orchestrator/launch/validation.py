"""Every check of a run that needs neither an image nor Ray, all mistakes at once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from orchestrator.launch.forecast import geometry_of
from orchestrator.ledger import replication, session
from orchestrator.ray_cluster import attach, capacity
from orchestrator.spec.run import RunSpec, SweepSpec
from orchestrator.tracking import store
from trainables.backbones import check_backbone, check_weights
from trainables.data.sources import KNOWN_DATASETS, check_source, known_images
from trainables.errors import collected, raise_if_any
from trainables.storage import object_storage
from trainables.storage.object_storage import is_remote

NETWORK_TIMEOUT_S = 5.0


def validate(*specs: RunSpec, as_job: bool = False) -> Mapping[str, float] | None:
    """Raise ``UserError`` with every mistake of ``specs`` that shows without reading an image or
    starting Ray; its exit code is 3 where all that is wrong is that there is no room for a slot.

    With ``as_job`` the runs go on elsewhere: their paths must be absolute, and no folder, server
    or CPU of the cluster is looked for from here. Returns the CPUs and GPUs of this machine, or
    ``None`` where a running cluster must tell.
    """
    mistakes: list[str] = []
    for spec in specs:
        own = spec.mistakes() + (_job_mistakes(spec) if as_job else storage_mistakes(spec.storage))
        if not own and not as_job and is_remote(spec.storage):
            replication.pull(spec.storage, spec.name)
        mistakes += own
        mistakes += [line for sweep in spec.sweeps for line in _data_mistakes(sweep, as_job)]
    sweeps = [sweep for spec in specs for sweep in spec.sweeps]
    backbones = [line for sweep in sweeps for line in _backbone_mistakes(sweep)]
    mistakes += backbones
    if not as_job:
        mistakes += _network_mistakes(specs, weights=not backbones)
    if not mistakes:
        local = [spec for spec in specs if not (as_job and is_remote(spec.storage))]
        mistakes = [line for spec in local for line in session.name_mistakes(spec)]
    totals = None if as_job or attach.known_address() else capacity.local_totals()
    slots = [spec.sweeps[0].resources for spec in specs] if totals else []
    no_room = [line for slot in slots for line in capacity.capacity_mistakes(slot, totals or {})]
    raise_if_any(mistakes + no_room, exit_code=2 if mistakes else 3)
    return totals


def storage_mistakes(storage: str) -> list[str]:
    """Why runs cannot be kept under ``storage``; empty when they can."""
    if is_remote(storage):
        return object_storage.mistakes(storage.rstrip("/"))
    place = Path(storage).expanduser().absolute()
    place = next(folder for folder in (place, *place.parents) if folder.exists())
    if not place.is_dir():
        return [f"--storage must be a folder; {place} is a file. Fix: --storage FOLDER"]
    if not os.access(place, os.W_OK | os.X_OK):
        return [f"--storage must be writable; {place} is not. Fix: --storage FOLDER"]
    return []


def _data_mistakes(sweep: SweepSpec, as_job: bool) -> list[str]:
    named = sweep.data.source in KNOWN_DATASETS
    texts = (sweep.data.archive, None if named else sweep.data.source)
    paths = [Path(text).expanduser() for text in texts if text]
    if as_job and any(path.is_absolute() and not path.exists() for path in paths):
        return []  # it is where the job runs, or nowhere
    return [line for variant in sweep.variants("data.") for line in check_source(variant.data)]


def _backbone_mistakes(sweep: SweepSpec) -> list[str]:
    """Why the backbone, or one that is searched, cannot be; where the images' side is known, on
    such images."""
    mistakes = [
        line for variant in sweep.variants("backbone.") for line in check_backbone(variant.backbone)
    ]
    images = known_images(sweep.data)
    if not mistakes and images is not None:
        with collected(mistakes):
            geometry_of(sweep, images)
    return mistakes


def _network_mistakes(specs: Sequence[RunSpec], *, weights: bool) -> list[str]:
    """Hub and tracking server asked at once, so that two silent ones cost one time-out."""
    uris = {spec.tracking_uri or store.default_uri(spec.storage) for spec in specs}
    backbones = {sweep.backbone for spec in specs for sweep in spec.sweeps} if weights else set()
    checks = [
        *(partial(check_weights, one, timeout_s=NETWORK_TIMEOUT_S) for one in backbones),
        *(partial(store.check, uri, timeout_s=NETWORK_TIMEOUT_S) for uri in uris),
    ]
    with ThreadPoolExecutor() as threads:
        return [line for answer in threads.map(lambda check: check(), checks) for line in answer]


def _job_mistakes(spec: RunSpec) -> list[str]:
    """Of the paths of the run, which another machine must understand."""
    uri = spec.tracking_uri or ""
    scheme, _, database = uri.partition(":///")
    is_sqlite = scheme.partition("+")[0] == "sqlite"
    paths = [("--storage ", None if is_remote(spec.storage) else spec.storage)]
    for sweep in spec.sweeps:
        data, weights = sweep.data, sweep.backbone.weights
        is_path = data.source not in KNOWN_DATASETS and Path(data.source).exists()
        paths += [
            ("--dataset ", data.source if is_path else None),
            ("--set data.archive=", data.archive),
            ("--set data.folder=", data.folder),
            ("--weights ", None if weights in ("hub", "none") else weights),
        ]
    paths.append(("--tracking-uri sqlite:///", database if is_sqlite else None))
    mistakes = [
        f"a job runs in a copy of its folder, so a path must be absolute; got {option}{path}. "
        f"Fix: {option}{Path(path).absolute()} where the head is this machine, else a path there"
        + (", or --storage s3://BUCKET/runs" if option == "--storage " else "")
        for option, path in paths
        if path is not None and not Path(path).expanduser().is_absolute()
    ]
    if uri and not is_sqlite and uri.partition(":")[0] not in store.SERVER_SCHEMES:
        mistakes += store.check(uri)
    return mistakes
