"""Whether runs can be: every mistake in a spec that shows before an image is read or Ray started.

Also what a screen and ``doctor`` ask of a storage folder, a source of images and a job's paths.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from orchestrator import process
from orchestrator.launch.forecast import geometry_of, images_of, read_datasets
from orchestrator.ledger import replication, session
from orchestrator.ray_cluster import attach, capacity
from orchestrator.spec.run import RunSpec, SweepSpec, absolute_data
from orchestrator.tracking import store
from trainables.backbones import check_backbone, check_weights
from trainables.config import NAMED_WEIGHTS, BackboneSpec, DataSpec
from trainables.data.build import find
from trainables.data.sources import KNOWN_DATASETS, check_source, known_images
from trainables.data.store import default_folder
from trainables.errors import collected, raise_if_any
from trainables.metrics import TOP1, class_mistakes
from trainables.storage import object_storage
from trainables.storage.object_storage import is_remote

NETWORK_TIMEOUT_S = 5.0


def validate(
    *specs: RunSpec, as_job: bool = False, starting: bool = False
) -> Mapping[str, float] | None:
    """Raise ``UserError`` with every mistake of ``specs`` that shows without reading an image or
    starting Ray; its exit code is 3 where all that is wrong is that there is no room for a slot.

    With ``as_job`` the runs go on elsewhere: their paths must be absolute, and no folder, server
    or CPU of the cluster is looked for from here. For runs that are ``starting`` MLflow's client
    writes a record and deletes it, and a cluster must answer. Returns the CPUs and GPUs of this
    machine, or ``None`` where a running cluster must tell.
    """
    mistakes: list[str] = []
    for spec in specs:
        parts = [(sweep.data, sweep.backbone) for sweep in spec.sweeps]
        place = job_mistakes(spec, parts) if as_job else storage_mistakes(spec.storage)
        own = spec.mistakes() + place
        if not own and not as_job and is_remote(spec.storage):
            replication.pull(spec.storage, spec.name)
        mistakes += own
        images = [one.data for sweep in spec.sweeps for one in sweep.variants("data.")]
        mistakes += [line for data in images for line in data_mistakes(data, as_job)]
    sweeps = [sweep for spec in specs for sweep in spec.sweeps]
    backbones = [line for sweep in sweeps for line in _backbone_mistakes(sweep)]
    mistakes += backbones
    if not as_job:
        mistakes += _place_mistakes(sweeps)
        mistakes += _network_mistakes(specs, weights=not backbones, starting=starting)
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


def data_mistakes(data: DataSpec, as_job: bool) -> list[str]:
    """Why there are no such images; empty where only the machine of a job can tell."""
    named = data.source in KNOWN_DATASETS
    texts = (data.archive, None if named else data.source)
    paths = [Path(text).expanduser() for text in texts if text]
    if as_job and any(path.is_absolute() and not path.exists() for path in paths):
        return []  # it is where the job runs, or nowhere
    return check_source(data)


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


def _place_mistakes(sweeps: Sequence[SweepSpec]) -> list[str]:
    """Why this user's images could not be kept: no home, or one that cannot be written."""
    if mistakes := process.home_mistakes():
        return mistakes
    fix = "export ORCHESTRATOR_DATA=FOLDER, or --set data.folder=FOLDER"
    for data in {sweep.data for sweep in sweeps}:
        lines = process.folder_mistakes(default_folder(data), "the folder of prepared images", fix)
        with collected([]):  # of the source, which others name
            if lines and find(absolute_data(data)) is None:
                return lines
    return []


def _network_mistakes(specs: Sequence[RunSpec], *, weights: bool, starting: bool) -> list[str]:
    """Hub, tracking server and cluster asked at once, so that silent ones cost one time-out."""
    stores = {
        (spec.tracking_uri or store.default_uri(spec.storage), spec.experiment or spec.name)
        for spec in specs
    }
    backbones = {sweep.backbone for spec in specs for sweep in spec.sweeps} if weights else set()
    checks = [partial(check_weights, one, timeout_s=NETWORK_TIMEOUT_S) for one in backbones]
    if starting:
        checks += [partial(store.can_record, *s, timeout_s=NETWORK_TIMEOUT_S) for s in stores]
        checks.append(partial(attach.address_mistakes, attach.known_address()))
    else:
        checks += [partial(store.check, uri, timeout_s=NETWORK_TIMEOUT_S) for uri, _ in stores]
    with ThreadPoolExecutor() as threads:
        return [line for answer in threads.map(lambda check: check(), checks) for line in answer]


def job_mistakes(spec: RunSpec, parts: Iterable[tuple[DataSpec, BackboneSpec]]) -> list[str]:
    """Of the paths of the run and of its ``parts``, which another machine must understand."""
    uri = spec.tracking_uri or ""
    scheme, _, database = uri.partition(":///")
    is_sqlite = scheme.partition("+")[0] == "sqlite"
    paths = [("--storage ", None if is_remote(spec.storage) else spec.storage)]
    for data, backbone in parts:
        weights = backbone.weights
        is_path = data.source not in KNOWN_DATASETS and Path(data.source).exists()
        paths += [
            ("--dataset ", data.source if is_path else None),
            ("--set data.archive=", data.archive),
            ("--set data.folder=", data.folder),
            ("--weights ", None if weights in NAMED_WEIGHTS else weights),
        ]
    paths.append(("--tracking-uri sqlite:///", database if is_sqlite else None))
    mistakes = [
        f"a job runs in a copy of its folder, so a path must be absolute; got {option}{path}. "
        f"Fix: {option}{Path(path).absolute()} where the head is this machine, else a path there"
        + (", or --storage s3://BUCKET/runs" if option == "--storage " else "")
        for option, path in dict.fromkeys(paths)
        if path is not None and not Path(path).expanduser().is_absolute()
    ]
    if uri and not is_sqlite:
        mistakes += store.scheme_mistakes(uri)
    return mistakes


def refuse_unknown_class(spec: RunSpec) -> None:
    """Raise ``UserError`` where the images do not have the class that the run's metric names, or
    too few classes for it. Images whose classes' names are not known are read into the image
    store."""
    metric = spec.metric
    if metric == TOP1 or (metric.class_name is None and not metric.is_image_share):
        return
    images = images_of(spec) if metric.class_name is None else read_datasets(spec)
    raise_if_any(
        line for facts in images.values() for line in class_mistakes(metric, facts.class_names)
    )
