"""What a run will do: arithmetic over its spec, as JSON, and as text by ``plan.txt``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.compare.data_notes import image_lines, image_warnings
from orchestrator.launch.execution import Execution, decided, execution_of
from orchestrator.launch.forecast import (
    COLD_START_S,
    TFLOPS,
    Costs,
    SidePrice,
    costs_of,
    expected_epochs,
    forecast,
    geometry_of,
    images_of,
    prices_by_side,
    refuse_unaffordable,
)
from orchestrator.launch.length import affordable, is_open, length_text, rung_warning, sized
from orchestrator.launch.options import RunOptions
from orchestrator.launch.rehearsal import refuse_broken
from orchestrator.launch.validation import refuse_unknown_class, validate
from orchestrator.ledger import openings, session
from orchestrator.ledger.header import CandidateForecast, Forecast
from orchestrator.ledger.state import SplitOpening
from orchestrator.ray_cluster import capacity
from orchestrator.spec.limits import ESTIMATED
from orchestrator.spec.published import PublishedStart
from orchestrator.spec.run import RunSpec, SweepSpec, absolute_data
from orchestrator.wording import duration, moved_texts, recipe_text, size, span
from trainables.backbones import Geometry
from trainables.config import HUB_WEIGHTS, DatasetFacts, DataSpec
from trainables.data.build import find
from trainables.metrics import Metric
from trainables.spec import Spec


@dataclass(frozen=True, kw_only=True)
class PlannedStore(Spec):
    """How the images are kept on each node: their ``form``, the ``bytes`` that this takes and those
    of pixels, and what was ``asked`` for with the limit that ``data.store=auto`` goes by."""

    form: str
    bytes: int
    pixel_bytes: int
    pixels_at_most_gb: float
    asked: str

    @property
    def text(self) -> str:
        """The same in a line."""
        limit = f"data.pixels_at_most_gb={self.pixels_at_most_gb:g}"
        by_limit, is_auto = f"data.store={self.asked}", self.asked == "auto"
        if self.form == "pixels":
            by_limit += f": encoded above {limit}" if is_auto else ""
            return f"pixels, {size(self.bytes)}, memory-mapped ({by_limit})"
        pixels = f"pixels would take {size(self.pixel_bytes)}"
        by_limit += f": {pixels}, more than {limit}" if is_auto else f": {pixels}"
        return (
            f"encoded, {size(self.bytes)}, decoded in threads whenever they are used, which no "
            f"cost here contains ({by_limit})"
        )


@dataclass(frozen=True, kw_only=True)
class PlannedWarmStart(Spec):
    """How many first trials have ``recipes`` of the earlier runs ``sources``."""

    recipes: int
    sources: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PlannedAxis(Spec):
    """The range that is searched, and why that one."""

    range: str
    why: str


@dataclass(frozen=True, kw_only=True)
class PlannedCandidate(Spec):
    """A candidate's part of a plan. ``trials`` are those of one search, the epochs those of all,
    without the finals; ``length`` says in steps why a full trial is as long as it is, and ``space``
    is by path."""

    family: str
    dataset: str
    scale: str | None
    weights: str
    geometry: Geometry
    warnings: tuple[str, ...]
    store: PlannedStore | None
    sides: tuple[SidePrice, ...]
    execution: Execution
    trials: int
    scheduler: str
    rungs: tuple[int, ...]
    max_epochs: int
    length: str | None
    expected_epochs: float
    worst_epochs: int
    published: PublishedStart | None
    warm_start: PlannedWarmStart | None
    space: Mapping[str, PlannedAxis]


@dataclass(frozen=True, kw_only=True)
class PlannedDataset(Spec):
    """A data set that has been read: lines on the images of its ``classes``, and what is wrong."""

    name: str | None
    classes: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PlannedWorkers(Spec):
    """Of a slot."""

    least: int
    most: int


@dataclass(frozen=True, kw_only=True)
class RunPlan(Spec):
    """What a run will do, as ``plan --json`` prints its fields.

    ``cluster`` is what it holds and ``slots`` how many fit, both ``None`` where only a cluster can
    tell; ``slot`` is what one takes. ``tflops`` is what estimates took a device to sustain (1e12 a
    second; ``None``: the default), and ``test_splits`` says which openings of their test splits the
    finals would be.
    """

    schema: int = 1
    name: str
    folder: str
    spec_hash: str
    cluster: Mapping[str, float] | None
    slot: Mapping[str, float]
    workers: PlannedWorkers
    slots: int | None
    trials: int
    expected_epochs: float
    worst_epochs: int
    metric: Metric
    searches: int
    final_seeds: int
    final_epochs: int
    test_splits: tuple[SplitOpening, ...]
    datasets: tuple[PlannedDataset, ...]
    budget: Mapping[str, float] | None
    prices: Mapping[str, float] | None
    tflops: float | None
    forecast: Forecast
    families: tuple[PlannedCandidate, ...]


def plan_of(spec: RunSpec, options: RunOptions) -> RunPlan:
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
        images=images,
        described=described(spec, images),
    )


def described(spec: RunSpec, images: Mapping[str, DatasetFacts]) -> list[PlannedDataset]:
    """Of each data set of the run that has been read, on this machine: its name, how many images
    its classes have, and what is wrong with them."""
    by_content: dict[str | None, tuple[DatasetFacts, DataSpec]] = {}
    for sweep in spec.sweeps:
        facts = images[sweep.candidate]
        if facts.class_counts is None and (store := find(absolute_data(sweep.data))):
            facts = store.info
        if facts.class_counts is not None:
            by_content[facts.content_hash] = (facts, sweep.data)
    return [
        PlannedDataset(
            name=facts.name,
            classes=tuple(image_lines(facts, data)),
            warnings=tuple(image_warnings(facts, data)),
        )
        for facts, data in by_content.values()
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
    images: Mapping[str, DatasetFacts] | None = None,
    described: Sequence[PlannedDataset] = (),
) -> RunPlan:
    """What a run will do: pure arithmetic, no ray, no torch.

    ``geometry``, ``costs`` and ``images`` are by candidate; without ``images`` the plan says of no
    candidate how they are kept, nor why its trials are as long as they are. ``totals`` is ``None``
    where only the cluster can tell what it holds.
    """
    candidates = tuple(
        _planned(
            spec,
            sweep,
            geometry[sweep.candidate],
            costs.get(sweep.candidate),
            None if images is None else images[sweep.candidate],
        )
        for sweep in spec.sweeps
    )
    trials, resources = len(spec.trial_names()), spec.sweeps[0].resources
    slots = None if totals is None else capacity.slots_of(spec, trials, totals)
    per_worker = capacity.worker_asks(resources)
    return RunPlan(
        name=spec.name,
        folder=str(spec.folder),
        spec_hash=spec.hash(),
        cluster=totals,
        slot={kind: resources.num_workers * n for kind, n in per_worker.items()},
        workers=PlannedWorkers(least=resources.least_workers, most=resources.num_workers),
        slots=slots,
        trials=trials,
        expected_epochs=round(sum(candidate.expected_epochs for candidate in candidates), 1),
        worst_epochs=sum(candidate.worst_epochs for candidate in candidates),
        metric=spec.metric,
        searches=spec.searches,
        final_seeds=spec.final_seeds,
        final_epochs=spec.searches
        * sum(spec.final_seeds * candidate.max_epochs for candidate in candidates),
        test_splits=tuple(coming),
        datasets=tuple(described),
        budget=spec.budget,
        prices=spec.prices,
        tflops=tflops,
        forecast=forecast(spec, costs, slots=slots),
        families=candidates,
    )


def _planned(
    spec: RunSpec,
    sweep: SweepSpec,
    geometry: Geometry,
    cost: CandidateForecast | None,
    images: DatasetFacts | None,
) -> PlannedCandidate:
    scheduler, warm_start = sweep.scheduler, sweep.warm_start
    return PlannedCandidate(
        family=sweep.candidate,
        dataset=sweep.data.source,
        scale=sweep.backbone.scale,
        weights=sweep.backbone.weights,
        geometry=geometry,
        warnings=(*geometry.warnings, *filter(None, [rung_warning(sweep)])),
        store=None if images is None else _stored(sweep, images),
        sides=prices_by_side(sweep, geometry, cost),
        execution=execution_of(sweep, cost),
        trials=sweep.trials,
        scheduler=scheduler.kind,
        rungs=tuple(scheduler.rungs()),
        max_epochs=scheduler.max_epochs,
        length=None if images is None else length_text(spec, sweep, images.counts),
        expected_epochs=round(spec.searches * expected_epochs(scheduler, sweep.trials), 1),
        worst_epochs=spec.searches * sweep.trials * scheduler.max_epochs,
        published=sweep.published_start(),
        warm_start=None
        if warm_start is None
        else PlannedWarmStart(recipes=len(warm_start.recipes), sources=warm_start.sources),
        space={
            path: PlannedAxis(range=str(axis), why=axis.why) for path, axis in sweep.space.items()
        },
    )


def _stored(sweep: SweepSpec, images: DatasetFacts) -> PlannedStore:
    pixels, encoded = images.pixel_bytes, images.encoded_bytes
    return PlannedStore(
        form=images.store_form,
        bytes=pixels if encoded is None else encoded,
        pixel_bytes=pixels,
        pixels_at_most_gb=sweep.data.pixels_at_most_gb,
        asked=sweep.data.store,
    )


def plan_text(planned: RunPlan) -> str:
    """The plan for a terminal."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("plan.txt").read_text("utf-8"))
    used = (duration, size, span, recipe_text, moved_texts)
    functions = {function.__name__: function for function in used}
    constants = {"ESTIMATED": ESTIMATED, "TFLOPS": TFLOPS, "COLD_START_S": COLD_START_S,
                 "HUB_WEIGHTS": HUB_WEIGHTS}  # fmt: skip
    return template.render(vars(planned), **functions, **constants).rstrip()
