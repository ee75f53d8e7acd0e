"""A spec is checked, told what it will do (as JSON, and as text by ``plan.txt``), and made ready.

Nothing is written and no Ray is started before every cheap check has passed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator import process
from orchestrator.compare.data_notes import image_lines, image_warnings
from orchestrator.launch.execution import decided, execution_of
from orchestrator.launch.forecast import (
    COLD_START_S,
    TFLOPS,
    Costs,
    costs_of,
    expected_epochs,
    forecast,
    geometry_of,
    images_of,
    prices_by_side,
    read_datasets,
    refuse_unaffordable,
)
from orchestrator.launch.length import affordable, is_open, length_text, rung_warning, sized
from orchestrator.launch.options import RunOptions
from orchestrator.launch.rehearsal import refuse_broken
from orchestrator.ledger import openings, replication, session
from orchestrator.ledger.state import SplitOpening, State
from orchestrator.ray_cluster import attach, capacity
from orchestrator.spec.limits import ESTIMATED
from orchestrator.spec.run import RunSpec, SweepSpec, absolute_data
from orchestrator.tracking import store
from orchestrator.wording import duration, moved_texts, recipe_text, size, span
from trainables.backbones import Geometry, check_backbone, check_weights, current_pin, fetch
from trainables.config import HUB_WEIGHTS, NAMED_WEIGHTS, BackboneSpec, DatasetFacts, DataSpec
from trainables.data.build import find
from trainables.data.sources import KNOWN_DATASETS, check_source, known_images
from trainables.data.store import default_folder
from trainables.errors import collected, raise_if_any
from trainables.metrics import TOP1, class_mistakes
from trainables.storage import object_storage
from trainables.storage.object_storage import is_remote
from trainables.storage.waiting import in_background

log = logging.getLogger(__name__)

# Data that take longer than this to prepare are prepared while Ray and its slots start. Most
# mistakes in them show sooner, and then there is nothing to take down.
HEAD_START_S = 2.0
NETWORK_TIMEOUT_S = 5.0

Plan = dict[str, Any]


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


def plan_of(spec: RunSpec, options: RunOptions) -> Plan:
    """What ``spec`` would do. Steps are measured unless ``options.measure`` is ``False`` or a
    cluster runs, whose machines are not this one.

    Raises ``UserError`` for mistakes, and for what can never be scheduled or afforded.
    """
    totals = validate(spec)
    refuse_unknown_class(spec)
    images = images_of(spec)
    refuse_broken(spec, images, for_plan=True)
    has_length = session.state_of(spec.folder).begun or not is_open(spec)
    if not has_length:
        spec = sized(spec, images, options.texts())
    measure = options.measure is not False and totals is not None
    costs = costs_of(spec, images, measure=measure, tflops=options.tflops)
    refuse_unaffordable(spec, costs)
    if not has_length:
        spec = affordable(spec, costs, options.texts())
    spec = decided(spec, costs)
    geometry = {
        sweep.candidate: geometry_of(sweep, images[sweep.candidate]) for sweep in spec.sweeps
    }
    coming = coming_openings(spec, images, reopen=options.reopen_test)
    return plan(
        spec,
        totals=totals,
        geometry=geometry,
        costs=costs,
        tflops=options.tflops,
        coming=coming,
        counts={candidate: facts.counts for candidate, facts in images.items()},
        images=images,
        described=described(spec, images),
    )


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


def described(spec: RunSpec, images: Mapping[str, DatasetFacts]) -> list[Plan]:
    """Of each data set of the run that has been read, on this machine: its name, how many images
    its classes have, and what is wrong with them."""
    known: dict[str | None, tuple[DatasetFacts, DataSpec]] = {}
    for sweep in spec.sweeps:
        facts = images[sweep.candidate]
        if facts.class_counts is None and (store := find(absolute_data(sweep.data))):
            facts = store.info
        if facts.class_counts is not None:
            known[facts.content_hash] = (facts, sweep.data)
    return [
        {
            "name": facts.name,
            "classes": image_lines(facts, data),
            "warnings": [*image_warnings(facts, data)],
        }
        for facts, data in known.values()
    ]


def coming_openings(
    spec: RunSpec, images: Mapping[str, DatasetFacts], *, reopen: bool
) -> tuple[SplitOpening, ...]:
    """Which openings of their test splits the run's finals would be if they came now.

    Empty where it holds none, has held them without leave to ``reopen``, and of images that this
    machine has not read yet. Raises ``StorageError``.
    """
    state = session.state_of(spec.folder)
    if not spec.final_seeds or (state.test_openings and not reopen):
        return ()
    hashes = set()
    for sweep in spec.sweeps:
        facts = images[sweep.candidate]
        if facts.test_hash is None and (store := find(absolute_data(sweep.data))):
            facts = store.info
        hashes.add(facts.test_hash)
    known = sorted(test_hash for test_hash in hashes if test_hash)
    return openings.upcoming(spec.storage, openings.openings_of(spec, state, known))


def plan(
    spec: RunSpec,
    *,
    totals: Mapping[str, float] | None,
    geometry: Mapping[str, Geometry],
    costs: Costs,
    tflops: float | None = None,
    coming: Sequence[SplitOpening] = (),
    counts: Mapping[str, Mapping[str, int]] | None = None,
    images: Mapping[str, DatasetFacts] | None = None,
    described: Sequence[Plan] = (),
) -> Plan:
    """What a run will do, as JSON of this ``schema``: pure arithmetic, no ray, no torch.

    ``geometry`` and ``costs`` are by candidate. ``totals`` is ``None`` where only the cluster can
    tell what it holds; so are then ``cluster`` and ``slots``. ``slot`` is what one takes,
    ``tflops`` what estimates took a device to sustain (1e12 a second; ``None``: the default). A
    candidate's ``trials`` are those of one search, its epochs those of all, without the finals.
    ``coming`` says which openings of their test splits those would be; with ``counts``, images by
    candidate and split, a candidate's ``length`` says in steps why a full trial is as long as it
    is; with ``images``, by candidate, its ``store`` says how they are kept. ``described`` says what
    the data sets hold.
    """
    candidates: list[Plan] = [
        {
            "family": sweep.candidate,
            "dataset": sweep.data.source,
            "scale": sweep.backbone.scale,
            "weights": sweep.backbone.weights,
            "geometry": geometry[sweep.candidate].as_dict(),
            "warnings": [
                *geometry[sweep.candidate].warnings,
                *filter(None, [rung_warning(sweep)]),
            ],
            "store": None if images is None else stored(sweep, images[sweep.candidate]),
            "sides": [
                price.as_dict()
                for price in prices_by_side(
                    sweep, geometry[sweep.candidate], costs.get(sweep.candidate)
                )
            ],
            "execution": execution_of(sweep, costs.get(sweep.candidate)).as_dict(),
            "trials": sweep.trials,
            "scheduler": sweep.scheduler.kind,
            "rungs": list(sweep.scheduler.rungs()),
            "max_epochs": sweep.scheduler.max_epochs,
            "length": length_text(spec, sweep, counts[sweep.candidate]) if counts else None,
            "expected_epochs": round(
                spec.searches * expected_epochs(sweep.scheduler, sweep.trials), 1
            ),
            "worst_epochs": spec.searches * sweep.trials * sweep.scheduler.max_epochs,
            "published": None if (start := sweep.published_start()) is None else start.as_dict(),
            "warm_start": None
            if sweep.warm_start is None
            else {
                "recipes": len(sweep.warm_start.recipes),
                "sources": list(sweep.warm_start.sources),
            },
            "space": {
                path: {"range": str(axis), "why": axis.why} for path, axis in sweep.space.items()
            },
        }
        for sweep in spec.sweeps
    ]
    trials, resources = len(spec.trial_names()), spec.sweeps[0].resources
    slots = None if totals is None else capacity.slots_of(spec, trials, totals)
    per_worker = capacity.worker_asks(resources)
    return {
        "schema": 1,
        "name": spec.name,
        "folder": str(spec.folder),
        "spec_hash": spec.hash(),
        "cluster": totals,
        "slot": {kind: resources.num_workers * n for kind, n in per_worker.items()},
        "workers": {"least": resources.least_workers, "most": resources.num_workers},
        "slots": slots,
        "trials": trials,
        "expected_epochs": round(sum(candidate["expected_epochs"] for candidate in candidates), 1),
        "worst_epochs": sum(candidate["worst_epochs"] for candidate in candidates),
        "metric": spec.metric.as_dict(),
        "searches": spec.searches,
        "final_seeds": spec.final_seeds,
        "final_epochs": spec.searches
        * sum(spec.final_seeds * candidate["max_epochs"] for candidate in candidates),
        "test_splits": [opening.as_dict() for opening in coming],
        "datasets": list(described),
        "budget": spec.budget,
        "prices": spec.prices,
        "tflops": tflops,
        "forecast": forecast(spec, costs, slots=slots).as_dict(),
        "families": candidates,
    }


def stored(sweep: SweepSpec, images: DatasetFacts) -> Plan:
    """How the images are kept on each node: their ``form``, what they take, and the limit that
    ``data.store=auto`` goes by."""
    pixels, encoded = images.pixel_bytes, images.encoded_bytes
    return {
        "form": images.store_form,
        "bytes": pixels if encoded is None else encoded,
        "pixel_bytes": pixels,
        "pixels_at_most_gb": sweep.data.pixels_at_most_gb,
        "asked": sweep.data.store,
    }


def store_text(planned: Mapping[str, Any]) -> str:
    """How the images are kept, in a line."""
    limit = f"data.pixels_at_most_gb={planned['pixels_at_most_gb']:g}"
    by_limit, is_auto = f"data.store={planned['asked']}", planned["asked"] == "auto"
    if planned["form"] == "pixels":
        by_limit += f": encoded above {limit}" if is_auto else ""
        return f"pixels, {size(planned['bytes'])}, memory-mapped ({by_limit})"
    pixels = f"pixels would take {size(planned['pixel_bytes'])}"
    by_limit += f": {pixels}, more than {limit}" if is_auto else f": {pixels}"
    return (
        f"encoded, {size(planned['bytes'])}, decoded in threads whenever they are used, which no "
        f"cost here contains ({by_limit})"
    )


def plan_text(planned: Plan) -> str:
    """The plan for a terminal."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("plan.txt").read_text("utf-8"))
    used = (
        duration, size, span, geometry_line, opening_text, store_text, recipe_text, moved_texts,
    )  # fmt: skip
    functions = {function.__name__: function for function in used}
    constants = {"ESTIMATED": ESTIMATED, "TFLOPS": TFLOPS, "COLD_START_S": COLD_START_S,
                 "HUB_WEIGHTS": HUB_WEIGHTS}  # fmt: skip
    return template.render(planned, **functions, **constants).rstrip()


def opening_text(planned: Mapping[str, Any]) -> str:
    """Which opening of its test split the finals are planned to be."""
    return SplitOpening.from_dict(planned).text


def geometry_line(geometry: Mapping[str, Any]) -> str:
    """How the model meets the images: size, patch, tokens, stem and adaptation."""
    optional = {"patch": "patch {}", "tokens": "{} tokens", "stem": "stem {}"}
    parts = [text.format(geometry[key]) for key, text in optional.items() if geometry[key]]
    model, side = geometry["model"], f"{geometry['image_size']} px"
    return ", ".join([model, side, *parts, geometry["adaptation"]])


@dataclass(frozen=True, kw_only=True)
class RunImages:
    """By candidate: the prepared images, how the backbone meets them, what an epoch on them
    costs."""

    datasets: Mapping[str, DatasetFacts]
    geometry: Mapping[str, Geometry]
    costs: Costs


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A validated run, ready to start once its images are. ``costs`` are those measured already,
    ``None`` where they are to be estimated."""

    spec: RunSpec
    options: RunOptions = field(default_factory=RunOptions)
    costs: Costs | None = None

    @property
    def tracking_uri(self) -> str:
        """MLflow's store of this run."""
        return self.spec.tracking_uri or store.default_uri(self.spec.storage)

    def prepare_images(self, head_start_s: float = HEAD_START_S) -> Future[RunImages]:
        """Start to build the image stores; returns when they are there or after ``head_start_s``.

        The run's folder must be this process's by now: it says whether nodes share the stores
        through object storage. Raises what went wrong within the head start, as the future's
        ``result()`` does later: ``UserError``, ``StorageError``.
        """
        preparing = in_background(self._images)
        if not wait([preparing], head_start_s).not_done:
            preparing.result()
        return preparing

    def _images(self) -> RunImages:
        spec, images = self.spec, read_datasets(self.spec)
        begun = session.state_of(spec.folder.resolve())
        raise_if_any(session.data_mistakes(begun, images, spec.name))
        geometry = {
            sweep.candidate: geometry_of(sweep, images[sweep.candidate]) for sweep in spec.sweeps
        }
        replication.share_stores(spec.folder, [absolute_data(sweep.data) for sweep in spec.sweeps])
        for sweep in spec.sweeps:
            own, weights = geometry[sweep.candidate], sweep.backbone.weights
            log.info(f"{sweep.candidate}: {geometry_line(own.as_dict())}; weights {weights}")
            for warning in [*own.warnings, *filter(None, [rung_warning(sweep)])]:
                log.warning(f"warning: {warning}")
        data = spec.sweeps[0].data  # the candidates of a run share it
        for facts in {id(facts): facts for facts in images.values()}.values():
            for line in image_lines(facts, data):
                log.info(f"{facts.name}: {line}")
            for problem in image_warnings(facts, data):
                log.warning(f"warning: {facts.name}: {problem}")
        for opening in coming_openings(spec, images, reopen=self.options.reopen_test):
            if opening.number > 1:
                log.warning(f"warning: the finals will be {opening.text}; the report will say so")
        costs = self.costs or costs_of(spec, images, measure=False, tflops=self.options.tflops)
        return RunImages(datasets=images, geometry=geometry, costs=costs)


def _begun_at_length(spec: RunSpec, options: RunOptions) -> RunSpec:
    """``spec`` as it begins; what ``--from`` tells TPE compares at the length that it has now."""
    from orchestrator.launch.warm_start import warm_started

    for sweep in spec.sweeps[:1]:
        steps = f" for at least {sweep.scheduler.least_steps} steps"
        log.info(f"a full trial is {sweep.scheduler.max_epochs} epochs long{steps}")
    return warm_started(spec, options.from_) if options.from_ else spec


def prepare(spec: RunSpec, totals: Mapping[str, float] | None, options: RunOptions) -> PreparedRun:
    """The run, ready to start. ``totals`` is what :func:`validate` returned of its spec.

    ``options.measure`` says whether training steps are measured before anything starts, for the
    forecast: by default where the run has a budget or a GPU's models may be compiled, and never for
    a cluster, whose machines are not this one. A length that follows from the size of train needs
    the images to be read first. Raises ``UserError`` where the budget affords no first epoch.
    """
    if totals and totals["GPU"] and not spec.sweeps[0].resources.gpus_per_worker:
        log.info(f"{totals['GPU']:g} GPU here stay unused: --gpus-per-worker 1 trains on them")
    begun = session.state_of(spec.folder)
    if not begun.begun:
        refuse_unknown_class(spec)
    spec = _with_hub_pins(spec, begun)
    trials, costs = begun.trials, None
    undecided = not trials and any(sweep.recipe.compile is None for sweep in spec.sweeps)
    measure = bool(spec.budget) or undecided if options.measure is None else options.measure
    has_new_trials = not spec.trial_names() <= set(trials)
    has_length = begun.begun or not is_open(spec)
    if not has_length:
        spec = sized(spec, images_of(spec), options.texts())
    if measure and totals is not None and has_new_trials:
        costs = costs_of(spec, images_of(spec), measure=True, tflops=options.tflops)
        if not trials:
            refuse_unaffordable(spec, costs)
    if not has_length:
        if spec.budget and costs is None:
            costs = costs_of(spec, images_of(spec), measure=False, tflops=options.tflops)
        spec = _begun_at_length(affordable(spec, costs or {}, options.texts()), options)
    spec = decided(spec, costs or {})
    for sweep in spec.sweeps:
        if sweep.resources.gpus_per_worker:
            steps = execution_of(sweep, (costs or {}).get(sweep.candidate))
            log.info(f"{sweep.candidate}: {steps.text}")
    prepared = PreparedRun(spec=spec, options=options, costs=costs)
    if is_remote(spec.storage) and not spec.tracking_uri:
        log.info(
            f"MLflow: {prepared.tracking_uri}, on this machine; --tracking-uri "
            "http://SERVER:5000 keeps it, and the same command fills it from the ledger"
        )
    return prepared


def fetch_weights(spec: RunSpec) -> None:
    """Have the hub's weights on this machine before Ray's workers ask for them, where the run is
    carried out by it alone: a download that nobody sees looks like a run that hangs."""
    if attach.known_address() is not None or session.state_of(spec.folder).closed:
        return
    for backbone in dict.fromkeys(
        variant.backbone for sweep in spec.sweeps for variant in sweep.variants("backbone.")
    ):
        fetch(backbone)


def _with_hub_pins(spec: RunSpec, begun: State) -> RunSpec:
    """``spec`` with the revisions of its weights on the hub: those that the run has begun with, or
    that the spec names, else what the hub has now."""
    recorded = {sweep.candidate: sweep.backbone.hub_pins for sweep in begun.spec.sweeps}

    def pins(sweep: SweepSpec) -> str | None:
        if begun.begun or sweep.backbone.hub_pins:
            return recorded.get(sweep.candidate, sweep.backbone.hub_pins)
        backbones = {variant.backbone for variant in sweep.variants("backbone.")}
        current = {current_pin(one, timeout_s=NETWORK_TIMEOUT_S) for one in backbones}
        return " ".join(sorted(pin for pin in current if pin is not None)) or None

    pinned = (replace(sweep.backbone, hub_pins=pins(sweep)) for sweep in spec.sweeps)
    sweeps = [
        replace(sweep, backbone=backbone)
        for sweep, backbone in zip(spec.sweeps, pinned, strict=True)
    ]
    return replace(spec, sweeps=tuple(sweeps))
