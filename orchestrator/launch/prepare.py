"""A validated spec is made ready to run: its length, what is measured, its images and weights.

Nothing is written here and no Ray is started.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace

from orchestrator.compare.data_notes import image_lines, image_warnings
from orchestrator.launch.execution import decided, execution_of
from orchestrator.launch.forecast import (
    Costs,
    costs_of,
    geometry_of,
    images_of,
    read_datasets,
    refuse_unaffordable,
)
from orchestrator.launch.length import affordable, is_open, length_text, rung_warning, sized
from orchestrator.launch.options import RunOptions
from orchestrator.launch.plan import coming_openings
from orchestrator.launch.validation import NETWORK_TIMEOUT_S, refuse_unknown_class
from orchestrator.ledger import replication, session
from orchestrator.ledger.state import State
from orchestrator.ray_cluster import attach
from orchestrator.spec.run import RunSpec, SweepSpec, absolute_data
from orchestrator.tracking import store
from trainables.backbones import Geometry, current_pin, fetch
from trainables.config import DatasetFacts
from trainables.errors import raise_if_any
from trainables.storage.object_storage import is_remote
from trainables.storage.waiting import in_background

log = logging.getLogger(__name__)

# Data that take longer than this to prepare are prepared while Ray and its slots start. Most
# mistakes in them show sooner, and then there is nothing to take down.
HEAD_START_S = 2.0


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
            log.info(f"{sweep.candidate}: {own.text}; weights {weights}")
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
        counts = images_of(spec)[sweep.candidate].counts
        log.info(f"a full trial has {length_text(spec, sweep, counts)}")
    return warm_started(spec, options.from_) if options.from_ else spec


def prepare(spec: RunSpec, totals: Mapping[str, float] | None, options: RunOptions) -> PreparedRun:
    """The run, ready to start. ``totals`` is what
    :func:`~orchestrator.launch.validation.validate` returned of its spec.

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
