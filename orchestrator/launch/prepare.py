"""From a spec to what it will do, as JSON and as text (``plan.txt``), and to a run that may start.

Nothing is written and no Ray is started before every cheap check has passed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.launch.forecast import (
    COLD_START_S,
    TFLOPS,
    Costs,
    costs_of,
    expected_epochs,
    forecast,
    geometry_of,
    images_of,
    read_datasets,
    refuse_unaffordable,
)
from orchestrator.launch.options import RunOptions
from orchestrator.launch.validation import validate
from orchestrator.ledger import replication
from orchestrator.ledger.session import state_of
from orchestrator.ray_cluster.capacity import slots_of, worker_asks
from orchestrator.spec.limits import ESTIMATED
from orchestrator.spec.run import RunSpec, absolute_data
from orchestrator.tracking import store
from orchestrator.wording import duration, size, span
from trainables.backbones import Geometry
from trainables.config import DatasetFacts
from trainables.storage.object_storage import is_remote
from trainables.storage.waiting import in_background

log = logging.getLogger(__name__)

# Data that take longer than this to prepare are prepared while Ray and its slots start. Most
# mistakes in them show sooner, and then there is nothing to take down.
HEAD_START_S = 2.0

Plan = dict[str, Any]


def plan_of(spec: RunSpec, options: RunOptions) -> Plan:
    """What ``spec`` would do. Steps are measured unless ``options.measure`` is ``False`` or a
    cluster runs, whose machines are not this one.

    Raises ``UserError`` for mistakes, and for what can never be scheduled or afforded.
    """
    totals = validate(spec)
    images = images_of(spec)
    measure = options.measure is not False and totals is not None
    costs = costs_of(spec, images, measure=measure, tflops=options.tflops)
    refuse_unaffordable(spec, costs)
    geometry = {sweep.family: geometry_of(sweep, images[sweep.family]) for sweep in spec.sweeps}
    return plan(spec, totals=totals, geometry=geometry, costs=costs, tflops=options.tflops)


def plan(
    spec: RunSpec,
    *,
    totals: Mapping[str, float] | None,
    geometry: Mapping[str, Geometry],
    costs: Costs,
    tflops: float | None = None,
) -> Plan:
    """What a run will do, as JSON of this ``schema``: pure arithmetic, no ray, no torch.

    ``geometry`` and ``costs`` are by family. ``totals`` is ``None`` where only the cluster can
    tell what it holds; so are then ``cluster`` and ``slots``. ``slot`` is what one takes,
    ``tflops`` what estimates took a device to sustain (1e12 a second; ``None``: the default). A
    family's epochs are over all of its trials, without the finals.
    """
    families: list[Plan] = [
        {
            "family": sweep.family,
            "dataset": sweep.data.source,
            "scale": sweep.backbone.scale,
            "weights": sweep.backbone.weights,
            "geometry": geometry[sweep.family].as_dict(),
            "warnings": list(geometry[sweep.family].warnings),
            "trials": sweep.trials,
            "scheduler": sweep.scheduler.kind,
            "rungs": list(sweep.scheduler.rungs()),
            "max_epochs": sweep.scheduler.max_epochs,
            "expected_epochs": round(expected_epochs(sweep.scheduler, sweep.trials), 1),
            "worst_epochs": sweep.trials * sweep.scheduler.max_epochs,
            "space": {
                path: {"range": str(axis), "why": axis.why} for path, axis in sweep.space.items()
            },
        }
        for sweep in spec.sweeps
    ]
    trials, resources = sum(sweep.trials for sweep in spec.sweeps), spec.sweeps[0].resources
    slots = None if totals is None else slots_of(spec, trials, totals)
    return {
        "schema": 1,
        "name": spec.name,
        "folder": str(spec.folder),
        "spec_hash": spec.hash(),
        "cluster": totals,
        "slot": {kind: resources.num_workers * n for kind, n in worker_asks(resources).items()},
        "workers": {"least": resources.least_workers, "most": resources.num_workers},
        "slots": slots,
        "trials": trials,
        "expected_epochs": round(sum(family["expected_epochs"] for family in families), 1),
        "worst_epochs": sum(family["worst_epochs"] for family in families),
        "final_seeds": spec.final_seeds,
        "final_epochs": sum(spec.final_seeds * family["max_epochs"] for family in families),
        "budget": spec.budget,
        "prices": spec.prices,
        "tflops": tflops,
        "forecast": forecast(spec, costs, slots=slots).as_dict(),
        "families": families,
    }


def plan_text(planned: Plan) -> str:
    """The plan for a terminal."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("plan.txt").read_text("utf-8"))
    functions = {f.__name__: f for f in (duration, size, span, geometry_line)}
    constants = {"ESTIMATED": ESTIMATED, "TFLOPS": TFLOPS, "COLD_START_S": COLD_START_S}
    return template.render(planned, **functions, **constants).rstrip()


def geometry_line(geometry: Mapping[str, Any]) -> str:
    """How the model meets the images: size, patch, tokens, stem and adaptation."""
    parts = {
        "model": "{}",
        "image_size": "{} px",
        "patch": "patch {}",
        "tokens": "{} tokens",
        "stem": "stem {}",
        "adaptation": "{}",
    }
    return ", ".join(text.format(geometry[key]) for key, text in parts.items() if geometry[key])


@dataclass(frozen=True, kw_only=True)
class RunImages:
    """By family: the prepared images, how the backbone meets them, what an epoch on them costs."""

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
        """Start to build the pixel stores; returns when they are there or after ``head_start_s``.

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
        geometry = {sweep.family: geometry_of(sweep, images[sweep.family]) for sweep in spec.sweeps}
        replication.share_stores(spec.folder, [absolute_data(sweep.data) for sweep in spec.sweeps])
        for sweep in spec.sweeps:
            own = geometry[sweep.family]
            line = geometry_line(own.as_dict())
            log.info(f"{sweep.family}: {line}; weights {sweep.backbone.weights}")
            for warning in own.warnings:
                log.warning(f"warning: {warning}")
        costs = self.costs or costs_of(spec, images, measure=False, tflops=self.options.tflops)
        return RunImages(datasets=images, geometry=geometry, costs=costs)


def prepare(spec: RunSpec, totals: Mapping[str, float] | None, options: RunOptions) -> PreparedRun:
    """The run, ready to start. ``totals`` is what :func:`validate` returned of its spec.

    ``options.measure`` says whether training steps are measured before anything starts, for the
    forecast: by default where the run has a budget, and never for a cluster, whose machines are
    not this one. Raises ``UserError`` where the budget affords no first epoch.
    """
    if totals and totals["GPU"] and not spec.sweeps[0].resources.gpus_per_worker:
        log.info(f"{totals['GPU']:g} GPU here stay unused: --gpus-per-worker 1 trains on them")
    measure = bool(spec.budget) if options.measure is None else options.measure
    trials, costs = state_of(spec.folder).trials, None
    has_new_trials = any(sweep.trial_name(sweep.trials - 1) not in trials for sweep in spec.sweeps)
    if measure and totals is not None and has_new_trials:
        costs = costs_of(spec, images_of(spec), measure=True, tflops=options.tflops)
        if not trials:
            refuse_unaffordable(spec, costs)
    prepared = PreparedRun(spec=spec, options=options, costs=costs)
    if is_remote(spec.storage) and not spec.tracking_uri:
        log.info(
            f"MLflow: {prepared.tracking_uri}, on this machine; --tracking-uri "
            "http://SERVER:5000 keeps it, and the same command fills it from the ledger"
        )
    return prepared
