"""Every check of a run that needs neither an image nor Ray, all mistakes at once.

Also what is known of a run before anything is read: a named dataset's images, and how a backbone
meets them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from orchestrator.launch import plan
from orchestrator.ledger import replication, session
from orchestrator.ray_cluster import attach
from orchestrator.spec.run import RunSpec, SweepSpec, with_axes
from orchestrator.spec.spaces import Choice
from orchestrator.tracking import store
from trainables.backbones import Geometry, check_backbone, check_weights, describe
from trainables.config import BackboneSpec, DataSpec
from trainables.data.sources import KNOWN_DATASETS, check_source
from trainables.data.store import DatasetInfo
from trainables.errors import UserError
from trainables.storage import object_storage
from trainables.storage.object_storage import is_remote

NETWORK_TIMEOUT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """Stored images: ``height`` and ``width`` in pixels, and ``counts`` by split."""

    height: int
    width: int
    classes: int
    counts: Mapping[str, int]

    @classmethod
    def of(cls, info: DatasetInfo) -> ImageFacts:
        """Of a dataset that is prepared."""
        classes = len(info.class_names)
        return cls(height=info.height, width=info.width, classes=classes, counts=info.counts)


def known_images(data: DataSpec) -> ImageFacts | None:
    """What the dataset's name alone tells; ``None`` for a path."""
    known = KNOWN_DATASETS.get(data.source)
    if known is None:
        return None
    side = known.stored_side_px(data)
    return ImageFacts(height=side, width=side, classes=known.classes, counts=known.counts(data))


def geometry_of(sweep: SweepSpec, images: ImageFacts) -> Geometry:
    """How the sweep's backbone meets the images, with the warnings of each searched variant.

    Raises ``UserError`` when a variant cannot be adapted to their size.
    """
    variants = [
        _described(one.backbone, images.height, images.width)
        for one in _variants(sweep, "backbone")
    ]
    warnings = dict.fromkeys(line for geometry in variants for line in geometry.warnings)
    return replace(variants[0], warnings=tuple(warnings))


@cache
def _described(backbone: BackboneSpec, height: int, width: int) -> Geometry:
    return describe(backbone, height=height, width=width)


def validate(*specs: RunSpec, as_job: bool = False) -> Mapping[str, float] | None:
    """Raise ``UserError`` with every mistake of ``specs`` that shows without reading an image or
    starting Ray; its exit code is 3 where all that is wrong is that there is no room for a slot.

    With ``as_job`` the runs go on elsewhere: their paths must be absolute, and no folder, server
    or CPU of the cluster is looked for from here. Returns the CPUs and GPUs of this machine, or
    ``None`` where a running cluster must tell.
    """
    mistakes: list[str] = []
    for spec in specs:
        mistakes += _job_mistakes(spec) if as_job else _place_mistakes(spec)
        mistakes += [line for sweep in spec.sweeps for line in _data_mistakes(sweep, as_job)]
    sweeps = [sweep for spec in specs for sweep in spec.sweeps]
    backbones = [line for sweep in sweeps for line in _backbone_mistakes(sweep)]
    mistakes += backbones
    if not as_job:
        mistakes += _network_mistakes(specs, weights=not backbones)
    if not mistakes:
        local = [spec for spec in specs if not (as_job and is_remote(spec.storage))]
        mistakes = [line for spec in local for line in session.name_mistakes(spec)]
    totals = None if as_job or attach.known_address() else plan.local_totals()
    resources = [spec.sweeps[0].resources for spec in specs] if totals else []
    no_room = [line for one in resources for line in plan.capacity_mistakes(one, totals or {})]
    if mistakes or no_room:
        raise UserError(*dict.fromkeys(mistakes + no_room), exit_code=2 if mistakes else 3)
    return totals


def storage_mistakes(storage: str) -> list[str]:
    """Why runs cannot be kept under ``storage``; empty when they can."""
    if is_remote(storage):
        return object_storage.mistakes(storage.rstrip("/"))
    place = Path(storage).expanduser().absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        return [f"--storage must be a folder; {place} is a file. Fix: --storage FOLDER"]
    if not os.access(place, os.W_OK | os.X_OK):
        return [f"--storage must be writable; {place} is not. Fix: --storage FOLDER"]
    return []


def _place_mistakes(spec: RunSpec) -> list[str]:
    """Of the spec alone and of where it is kept, whose copy of the run is brought up to date."""
    mistakes = spec.mistakes() + storage_mistakes(spec.storage)
    if not mistakes and is_remote(spec.storage):
        replication.pull(spec.storage, spec.name)
    return mistakes


def _variants(sweep: SweepSpec, section: str) -> Iterator[SweepSpec]:
    """The sweep at each end or value of its searched axes of ``section``."""
    yield sweep
    for path, domain in sweep.space.items():
        if path.startswith(f"{section}."):
            ends = domain.values if isinstance(domain, Choice) else (domain.low, domain.high)
            for value in ends:
                yield with_axes(sweep, {path: value})


def _data_mistakes(sweep: SweepSpec, as_job: bool) -> list[str]:
    paths = [sweep.data.archive]
    if sweep.data.source not in KNOWN_DATASETS:
        paths.append(sweep.data.source)
    if as_job and any(path and _is_absolute(path) and not _exists(path) for path in paths):
        return []  # it is where the job runs, or nowhere
    return [line for one in _variants(sweep, "data") for line in check_source(one.data)]


def _backbone_mistakes(sweep: SweepSpec) -> list[str]:
    """Why the backbone, or one that is searched, cannot be; where the images' side is known, on
    such images."""
    variants = _variants(sweep, "backbone")
    mistakes = [line for one in variants for line in check_backbone(one.backbone)]
    images = known_images(sweep.data)
    if not mistakes and images is not None:
        try:
            geometry_of(sweep, images)
        except UserError as error:
            mistakes += error.mistakes
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
        answers = [threads.submit(check) for check in checks]
        return [line for answer in answers for line in answer.result()]


def _job_mistakes(spec: RunSpec) -> list[str]:
    """Of the spec alone, and of its paths, which another machine must understand."""
    mistakes = spec.mistakes()
    mistakes += [_relative(option, path) for option, path in _paths(spec) if not _is_absolute(path)]
    uri = spec.tracking_uri
    if uri is None or uri.partition(":")[0] in store.SERVER_SCHEMES:
        return mistakes
    scheme, _, path = uri.partition(":///")
    if scheme.partition("+")[0] != "sqlite":
        return mistakes + store.check(uri)
    if not _is_absolute(path):
        mistakes.append(_relative("--tracking-uri sqlite:///", path))
    return mistakes


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


def _is_absolute(path: str) -> bool:
    return Path(path).expanduser().is_absolute()


def _exists(path: str) -> bool:
    return Path(path).expanduser().exists()


def _relative(option: str, path: str) -> str:
    fix = f"{option}{Path(path).absolute()} where the head is this machine, else a path there"
    if option == "--storage ":
        fix += ", or --storage s3://BUCKET/runs"
    return (
        f"a job runs in a copy of its folder, so a path must be absolute; got {option}{path}. "
        f"Fix: {fix}"
    )
