"""From a command line to a run: build the spec, check all of it, prepare the data, start.

Nothing is written and no Ray is started before every cheap check has passed.

The plan of a run, printed.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.options import show
from orchestrator.launch.costs import (
    Costs,
    affordable_costs,
    costs_of,
    images_in,
    images_of,
    prepare_all,
    refuse_unaffordable,
)
from orchestrator.launch.plan import geometry_line, plan, plan_text
from orchestrator.launch.validation import check
from orchestrator.ledger import replication
from orchestrator.spec import limits, named_sweeps, overrides
from orchestrator.spec.paths import absolute_data, dataset_name
from orchestrator.spec.run import RunSpec, SweepSpec, sanitised
from trainables.errors import UserError, raise_if_any
from trainables.storage.object_storage import is_remote

if TYPE_CHECKING:
    from orchestrator.engine.runner import Outcome, Prepared

log = logging.getLogger(__name__)


def show_plan(
    spec: RunSpec, *, measure: bool | None, tflops: float | None, as_json: bool = False
) -> None:
    """Print what ``spec`` would do. ``measure`` is ``False`` to do without, and so it is on a
    running cluster: its machines are not this one.

    Raises ``UserError`` for mistakes, and for what can never be scheduled or afforded.
    """
    total = check(spec)
    images, geometry = images_of(spec)
    here = measure is not False and total is not None
    costs = costs_of(spec, images, geometry, measure=here, tflops=tflops)
    refuse_unaffordable(spec, costs)
    made = plan(spec, total=total, geometry=geometry, costs=costs, tflops=tflops)
    if as_json:
        show(made)
    else:
        click.echo(plan_text(made))
    log.info("next: the same with `orchestrator sweep` or `tournament` and no --dry-run")


DEMO_FAMILIES = ("resnet", "vit", "hybrid")
DEMO = {"trials": 6, "max_epochs": 6, "final_seeds": 2, "set": ("data.train_limit=1000",)}
TOURNAMENT_FINAL_SEEDS = 3

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


def spec_of(targets: Sequence[str], options: Mapping[str, Any]) -> RunSpec:
    """The run that a command line asks for. Raises ``UserError`` with all that is wrong."""
    wrong: list[str] = []
    made: list[SweepSpec] = []
    for target in targets:
        try:
            made.append(named_sweeps.resolve(target))
        except UserError as error:
            wrong += error.mistakes
    given = {OPTION_PATHS[key]: options.get(key) for key in OPTION_PATHS}
    least, elastic, most = str(options.get("workers") or "").partition("..")
    if elastic:
        given |= {"resources.min_workers": least, "resources.num_workers": most}
    texts = [f"{path}={value}" for path, value in given.items() if value is not None]
    try:
        # Unknown targets keep their mistakes beside those of --set.
        changed = overrides.apply_sets(
            made or [named_sweeps.family_sweep("vit")], [*texts, *options["set"]]
        )
    except UserError as error:
        wrong += error.mistakes
    try:
        caps, prices = limits.parse(options.get("budget"), options.get("price") or ())
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
        final_seeds=options.get("final_seeds") or 0,
        budget=caps,
        prices=prices,
    )


def demo_spec(options: Mapping[str, Any]) -> RunSpec:
    """The run of ``orchestrator demo``."""
    return spec_of(DEMO_FAMILIES, {**options, **DEMO})


def with_finals(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a tournament: it ends with finals unless it is told otherwise."""
    given = options["final_seeds"]
    return {**options, "final_seeds": TOURNAMENT_FINAL_SEEDS if given is None else given}


def default_name(targets: Sequence[str], made: Sequence[SweepSpec]) -> str:
    """``TARGET-DATASET``: the same command typed again is the same run."""
    short = [target.rpartition(":")[2] if ".py:" in target else target for target in targets]
    return sanitised("-".join([*short, dataset_name(made[0].data.source)]))


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


def carry_out(
    spec: RunSpec,
    *,
    reopen_test: bool = False,
    measure: bool | None = None,
    tflops: float | None = None,
) -> int:
    """Run, print how it ended and what to type next; the exit code. Raises ``UserError``.

    ``measure`` says whether training steps are measured before anything starts, for the forecast:
    by default where the run has a budget. ``tflops`` is for what is not measured.
    """
    wanted = bool(spec.budget) if measure is None else measure
    outcome, comparison = launch(spec, reopen_test=reopen_test, measure=wanted, tflops=tflops)
    place = "" if spec.storage == "runs" else f" --storage {spec.storage}"
    if outcome.interrupted and outcome.stop_reason:
        log.info(f"{spec.name} stopped: {outcome.stop_reason}; nothing is lost")
        larger = " with a larger --budget" if spec.budget else ""
        log.info(f"next: the same command{larger} goes on; orchestrator compare {spec.name}{place}")
    elif outcome.interrupted:
        log.info(f"interrupted after {outcome.finished + outcome.pruned} trials; nothing is lost")
        log.info(f"next: the same command goes on; orchestrator status {spec.name}{place}")
    else:
        click.echo(comparison, nl=False)
        log.info(f"report: {outcome.run_folder / 'report.html'}")
        log.info(f"next: orchestrator ui{place}, or orchestrator compare {spec.name} --json{place}")
    return outcome.exit_code


def launch(
    spec: RunSpec,
    *,
    reopen_test: bool = False,
    measure: bool = False,
    tflops: float | None = None,
) -> tuple[Outcome, str]:
    """Check, prepare, run; the outcome and, unless it was stopped, the comparison as text.

    Raises ``UserError``; returns when the run ended or was stopped.
    """
    total = check(spec)
    if total and total["GPU"] and not spec.sweeps[0].resources.gpus_per_worker:
        log.info(f"{total['GPU']:g} GPU here stay unused: --gpus-per-worker 1 trains on them")
    costs = affordable_costs(spec, tflops) if measure and total is not None else None
    from orchestrator.engine import runner
    from orchestrator.tracking import store

    if is_remote(spec.storage) and not spec.tracking_uri:
        log.info(
            f"MLflow: {store.default_uri(spec.storage)}, on this machine; --tracking-uri "
            "http://SERVER:5000 keeps it, and the same command fills it from the ledger"
        )
    texts: list[str] = []
    outcome = runner.run(
        spec,
        prepare=lambda: _prepared(spec, costs, tflops),
        say=log.info,
        report=lambda folder: texts.append(report(folder)),
        reopen_test=reopen_test,
    )
    return outcome, "".join(texts)


def _prepared(spec: RunSpec, costs: Costs | None, tflops: float | None) -> Prepared:
    datasets, geometry = prepare_all(spec)
    data = [absolute_data(sweep.data) for sweep in spec.sweeps]
    replication.share_stores(spec.folder, data)
    for sweep in spec.sweeps:
        one = geometry[sweep.family]
        log.info(f"{sweep.family}: {geometry_line(one)}; weights {sweep.backbone.weights}")
        for warning in one["warnings"]:
            log.warning(f"warning: {warning}")
    if costs is None:
        images = images_in(datasets)
        costs = costs_of(spec, images, geometry, measure=False, tflops=tflops)
    return datasets, geometry, costs


def report(run_folder: Path) -> str:
    """Write the run's ``report.html``, ``plots/*.svg`` and ``comparison.json``.

    Returns its comparison, or its verdict where it tests a claim, for the terminal.
    """
    from orchestrator.claims.verdict import conclude
    from orchestrator.compare import compare, load, table_text, write_report

    replication.pull_finals(run_folder)
    verdict = conclude(run_folder)
    runs = [load(run_folder)]
    comparison = compare(runs)
    (run_folder / "comparison.json").write_text(json.dumps(comparison), encoding="utf-8")
    write_report(runs, comparison, run_folder)
    replication.push_reports(run_folder)
    return verdict or table_text(comparison)
