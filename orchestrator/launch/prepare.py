"""From what was asked for to a run that may start: its spec, then its images and their costs.

Nothing is written and no Ray is started before every cheap check has passed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace

from orchestrator.launch.forecast import (
    Costs,
    ImageFacts,
    costs_of,
    geometry_of,
    images_of,
    read_datasets,
    refuse_unaffordable,
)
from orchestrator.launch.plan import Plan, geometry_line, plan
from orchestrator.launch.validation import validate
from orchestrator.ledger import replication
from orchestrator.ledger.session import state_of
from orchestrator.spec import limits, named_sweeps, overrides
from orchestrator.spec.run import RunSpec, SweepSpec, absolute_data, dataset_name, leaves, sanitised
from orchestrator.tracking import store
from trainables.backbones import Geometry
from trainables.data.store import DatasetInfo
from trainables.errors import UserError, raise_if_any
from trainables.storage.object_storage import is_remote
from trainables.storage.waiting import in_background

log = logging.getLogger(__name__)

# Data that take longer than this to prepare are prepared while Ray and its slots start. Most
# mistakes in them show sooner, and then there is nothing to take down.
HEAD_START_S = 2.0
DEMO_FAMILIES = ("resnet", "vit", "hybrid")
TOURNAMENT_FINAL_SEEDS = 3
SHARED = ("trials", "seed", "scheduler", "data", "resources")  # by all families of a run
# Options that are short for a --set of this path.
OPTION_PATHS = {
    "dataset": "data.source",
    "scale": "backbone.scale",
    "weights": "backbone.weights",
    "trials": "trials",
    "max_epochs": "scheduler.max_epochs",
    "seed": "seed",
    "audit": "scheduler.audit",
    "workers": "resources.num_workers",
    "gpus_per_worker": "resources.gpus_per_worker",
    "cpus_per_worker": "resources.cpus_per_worker",
}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a command that starts runs is asked for, in the words of its options; ``None`` is not
    given. ``workers`` is a number or ``LEAST..MOST``, ``set`` and ``price`` are repeatable."""

    name: str | None = None
    dataset: str | None = None
    scale: str | None = None
    weights: str | None = None
    trials: int | None = None
    max_epochs: int | None = None
    seed: int | None = None
    audit: float | None = None
    workers: str | None = None
    gpus_per_worker: float | None = None
    cpus_per_worker: float | None = None
    final_seeds: int | None = None
    set: tuple[str, ...] = ()
    storage: str = "runs"
    tracking_uri: str | None = None
    experiment: str | None = None
    budget: str | None = None
    price: tuple[str, ...] = ()
    measure: bool | None = None
    tflops: float | None = None
    reopen_test: bool = False

    def texts(self, options: Iterable[str] = OPTION_PATHS) -> list[str]:
        """These options and ``set`` as ``PATH=VALUE``, those of ``set`` last."""
        values = {OPTION_PATHS[option]: getattr(self, option) for option in options}
        least, is_range, most = str(self.workers or "").partition("..")
        if is_range:
            values |= {"resources.min_workers": least, "resources.num_workers": most}
        given = [f"{path}={value}" for path, value in values.items() if value is not None]
        return [*given, *self.set]

    def run(self, name: str, sweeps: tuple[SweepSpec, ...]) -> RunSpec:
        """A run of ``sweeps``, called ``name`` unless another name was asked for. Raises
        ``UserError`` for a budget or price that cannot be read."""
        budget, prices = limits.parse(self.budget, self.price)
        return RunSpec(
            name=self.name or name,
            sweeps=sweeps,
            storage=self.storage,
            tracking_uri=self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or None,
            experiment=self.experiment,
            final_seeds=self.final_seeds or 0,
            budget=budget,
            prices=prices,
        )


def spec_of(targets: Sequence[str], options: RunOptions) -> RunSpec:
    """The run that is asked for. Raises ``UserError`` with all that is wrong."""
    mistakes: list[str] = []
    sweeps: list[SweepSpec] = []
    for target in targets:
        try:
            sweeps.append(named_sweeps.resolve(target))
        except UserError as error:
            mistakes += error.mistakes
    try:
        # Unknown targets keep their mistakes beside those of --set.
        changed = overrides.apply_sets(
            sweeps or [named_sweeps.family_sweep("vit")], options.texts()
        )
    except UserError as error:
        mistakes += error.mistakes
    try:
        run = options.run("", ())
    except UserError as error:
        mistakes += error.mistakes
    raise_if_any(mistakes)
    raise_if_any(_unequal(changed))
    return replace(run, name=run.name or default_name(targets, changed), sweeps=changed)


def tournament_spec(families: Sequence[str], options: RunOptions) -> RunSpec:
    """The run of ``orchestrator tournament``: it ends with finals unless it is asked not to."""
    seeds = TOURNAMENT_FINAL_SEEDS if options.final_seeds is None else options.final_seeds
    return spec_of(families, replace(options, final_seeds=seeds))


def demo_spec(options: RunOptions) -> RunSpec:
    """The run of ``orchestrator demo``: minutes on two CPUs."""
    few = {"trials": 6, "max_epochs": 6, "final_seeds": 2, "set": ("data.train_limit=1000",)}
    return spec_of(DEMO_FAMILIES, replace(options, **few))  # type: ignore[arg-type]


def default_name(targets: Sequence[str], sweeps: Sequence[SweepSpec]) -> str:
    """``TARGET-DATASET``: the same command typed again is the same run."""
    short = [target.rpartition(":")[2] if ".py:" in target else target for target in targets]
    return sanitised("-".join([*short, dataset_name(sweeps[0].data.source)]))


def _unequal(sweeps: Sequence[SweepSpec]) -> list[str]:
    """What keeps families from being compared in one run, one line each."""
    mistakes = []
    leaves_by_sweep = [leaves(sweep.as_dict()) for sweep in sweeps]
    for path in leaves_by_sweep[0]:
        values = [own.get(path) for own in leaves_by_sweep]
        if path.partition(".")[0] in SHARED and len(set(values)) > 1:
            pairs = zip(sweeps, values, strict=True)
            each = ", ".join(f"{sweep.family} {value}" for sweep, value in pairs)
            mistakes.append(
                f"families of one run must have equal {path}; got {each}. "
                f"Fix: --set {path}=VALUE for all of them"
            )
    return mistakes


@dataclass(frozen=True, kw_only=True)
class RunImages:
    """By family: the prepared images, how the backbone meets them, what an epoch on them costs."""

    datasets: Mapping[str, DatasetInfo]
    geometry: Mapping[str, Geometry]
    costs: Costs


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A validated run, ready to start once its images are. ``costs`` are those measured already,
    ``None`` where they are to be estimated, with ``tflops`` (1e12 a second) a device."""

    spec: RunSpec
    tracking_uri: str
    reopen_test: bool = False
    costs: Costs | None = None
    tflops: float | None = None

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
        spec, datasets = self.spec, read_datasets(self.spec)
        images = {family: ImageFacts.of(info) for family, info in datasets.items()}
        geometry = {sweep.family: geometry_of(sweep, images[sweep.family]) for sweep in spec.sweeps}
        replication.share_stores(spec.folder, [absolute_data(sweep.data) for sweep in spec.sweeps])
        for sweep in spec.sweeps:
            own = geometry[sweep.family]
            log.info(f"{sweep.family}: {geometry_line(own)}; weights {sweep.backbone.weights}")
            for warning in own.warnings:
                log.warning(f"warning: {warning}")
        costs = self.costs or costs_of(spec, images, measure=False, tflops=self.tflops)
        return RunImages(datasets=datasets, geometry=geometry, costs=costs)


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
    uri = spec.tracking_uri or store.default_uri(spec.storage)
    if is_remote(spec.storage) and not spec.tracking_uri:
        log.info(
            f"MLflow: {uri}, on this machine; --tracking-uri http://SERVER:5000 keeps it, and "
            "the same command fills it from the ledger"
        )
    return PreparedRun(
        spec=spec,
        tracking_uri=uri,
        reopen_test=options.reopen_test,
        costs=costs,
        tflops=options.tflops,
    )


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
