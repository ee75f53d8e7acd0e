"""From a command line to a run: build the spec, check all of it, prepare the data, start.

Nothing is written and no Ray is started before every cheap check has passed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import cluster, overrides, plan, sweeps
from orchestrator.spaces import Choice
from orchestrator.spec import (
    NAMED_DATASETS,
    RunSpec,
    SweepSpec,
    absolute_data,
    sanitised,
    with_axes,
)
from trainables.assignment import BackboneSpec, DataSpec
from trainables.errors import UserError, raise_if_any

if TYPE_CHECKING:
    from orchestrator.runner import Outcome

Say = Callable[[str], None]

# Options that are short for a --set of this path.
OPTION_PATHS = {
    "dataset": "data.source",
    "scale": "backbone.scale",
    "weights": "backbone.weights",
    "trials": "trials",
    "max_epochs": "scheduler.max_epochs",
    "seed": "seed",
    "workers": "resources.num_workers",
    "gpus_per_worker": "resources.gpus_per_worker",
    "cpus_per_worker": "resources.cpus_per_worker",
}
# Sides in pixels that are known before anything is read or downloaded.
KNOWN_SIDES = {"digits": 8, "cifar10": 32, "cifar100": 32}
NETWORK_TIMEOUT_S = 5.0


def spec_of(targets: Sequence[str], options: Mapping[str, Any]) -> RunSpec:
    """The run that a command line asks for. Raises ``UserError`` with all that is wrong."""
    wrong: list[str] = []
    made: list[SweepSpec] = []
    for target in targets:
        try:
            made.append(sweeps.resolve(target))
        except UserError as error:
            wrong += error.mistakes
    given = {OPTION_PATHS[key]: options.get(key) for key in OPTION_PATHS}
    texts = [f"{path}={value}" for path, value in given.items() if value is not None]
    try:
        # Unknown targets keep their mistakes beside those of --set.
        changed = overrides.apply_sets(
            made or [sweeps.family_sweep("vit")], [*texts, *options["set"]]
        )
    except UserError as error:
        wrong += error.mistakes
    if wrong:
        raise UserError(*wrong)
    raise_if_any(unequal(changed))
    return RunSpec(
        name=options.get("name") or default_name(targets, changed),
        sweeps=changed,
        storage=options["storage"],
        tracking_uri=options.get("tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI") or None,
        experiment=options.get("experiment"),
    )


def default_name(targets: Sequence[str], made: Sequence[SweepSpec]) -> str:
    """``TARGET-DATASET``: the same command typed again is the same run."""
    source = made[0].data.source
    dataset = source if source in NAMED_DATASETS else Path(source).resolve().stem
    short = [target.rpartition(":")[2] if ".py:" in target else target for target in targets]
    return sanitised("-".join([*short, dataset]))


def unequal(made: Sequence[SweepSpec]) -> list[str]:
    """What keeps families from being compared in one run, one line each."""
    found = []
    leaves = [_shared_leaves(sweep) for sweep in made]
    for path in leaves[0]:
        if any(one[path] != leaves[0][path] for one in leaves):
            told = ", ".join(
                f"{sweep.family} {one[path]}" for sweep, one in zip(made, leaves, strict=True)
            )
            found.append(
                f"families of one run must have equal {path}; got {told}. "
                f"Fix: --set {path}=VALUE for all of them"
            )
    return found


def _shared_leaves(sweep: SweepSpec) -> dict[str, Any]:
    plain = sweep.as_dict()
    return {"trials": sweep.trials, "seed": sweep.seed} | {
        f"{section}.{name}": value
        for section in ("scheduler", "data", "resources")
        for name, value in plain[section].items()
    }


def check(spec: RunSpec) -> dict[str, float] | None:
    """Raise ``UserError`` with every mistake that shows without reading an image or starting Ray.

    Returns the totals of this machine, or ``None`` where a running cluster must tell them.
    """
    from orchestrator import session

    found = spec.mistakes() + storage_mistakes(spec.storage)
    backbones = [line for sweep in spec.sweeps for line in _backbone_mistakes(sweep)]
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
    if "://" in storage:
        return [f"--storage must be a folder; got {storage!r}. Fix: a local or shared folder"]
    place = Path(storage).expanduser().absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        return [f"--storage must be a folder; {place} is a file. Fix: --storage FOLDER"]
    if not os.access(place, os.W_OK | os.X_OK):
        return [f"--storage must be writable; {place} is not. Fix: --storage FOLDER"]
    return []


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


def _backbone_mistakes(sweep: SweepSpec) -> list[str]:
    from trainables.backbones import check_backbone

    found = [line for one in _variants(sweep, "backbone") for line in check_backbone(one.backbone)]
    side = KNOWN_SIDES.get(sweep.data.source)
    if not found and side is not None:
        side = min(side, sweep.data.short_side or side)
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


def geometry_of(spec: RunSpec, say: Say) -> dict[str, Any]:
    """Each family's geometry; images of unknown size are read into the pixel store first."""
    if all(sweep.data.source in KNOWN_SIDES for sweep in spec.sweeps):
        found = {}
        for sweep in spec.sweeps:
            side = KNOWN_SIDES[sweep.data.source]
            side = min(side, sweep.data.short_side or side)
            found[sweep.family] = describe_all(sweep, height=side, width=side)
        return found
    return prepare_all(spec, say)[1]


def prepare_all(spec: RunSpec, say: Say) -> tuple[dict[str, Any], dict[str, Any]]:
    """``(datasets, geometry)`` by family; builds each pixel store that is not there yet."""
    from trainables.data import prepare

    stores: dict[DataSpec, Any] = {}
    datasets, geometry = {}, {}
    for sweep in spec.sweeps:
        data = absolute_data(sweep.data)
        if data not in stores:
            stores[data] = prepare(data, say=say)
        info = stores[data].info
        datasets[sweep.family] = info.as_dict()
        geometry[sweep.family] = describe_all(sweep, height=info.height, width=info.width)
    return datasets, geometry


def launch(spec: RunSpec, say: Say) -> Outcome:
    """Check, prepare, run. Raises ``UserError``; returns when the run ended or was stopped."""
    total = check(spec)
    if total and total["GPU"] and not spec.sweeps[0].resources.gpus_per_worker:
        say(f"{total['GPU']:g} GPU here stay unused: --gpus-per-worker 1 trains on them")
    datasets, geometry = prepare_all(spec, say)
    for sweep in spec.sweeps:
        one = geometry[sweep.family]
        say(f"{sweep.family}: {plan.geometry_line(one)}; weights {sweep.backbone.weights}")
        for warning in one["warnings"]:
            say(f"warning: {warning}")
    from orchestrator import runner

    return runner.run(spec, datasets=datasets, geometry=geometry, say=say)


def report(run_folder: Path) -> str:
    """Write the run's ``report.html`` and return its comparison for the terminal."""
    from orchestrator.compare import compare, load, report_html, table_text

    runs = [load(run_folder)]
    comparison = compare(runs)
    (run_folder / "report.html").write_text(report_html(runs, comparison), encoding="utf-8")
    return table_text(comparison)
