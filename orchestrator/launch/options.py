"""From the options of a command to the run that they ask for.

Nothing heavy is imported: the command line reads its options here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from orchestrator.spec import limits, named_sweeps, overrides
from orchestrator.spec.run import RunSpec, SweepSpec, dataset_name, sanitised
from trainables.errors import collected, raise_if_any

DEMO_FAMILIES = ("resnet", "vit", "hybrid")
# Minutes on two CPUs.
DEMO = {"trials": 6, "max_epochs": 6, "final_seeds": 2, "set": ("data.train_limit=1000",)}
TOURNAMENT_FINAL_SEEDS = 3


def asked(text: str, *, default: Any = None, path: str | None = None, **more: Any) -> Any:
    """A field that the command line has an option for, short for a ``--set`` of ``path``: ``text``
    is its help; ``more`` is for :mod:`orchestrator.cli.options`."""
    return field(default=default, metadata={"path": path, "option": {"help": text, **more}})


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a command that starts runs is asked for, in the words of its options and in the order
    of their help; ``None`` is not given."""

    dataset: str | None = asked(
        "digits (default), cifar10, cifar100, an image folder, a Parquet file or folder.",
        path="data.source",
        metavar="NAME|PATH",
    )
    scale: str | None = asked(
        "tiny (default), small or base.", path="backbone.scale", metavar="SCALE"
    )
    weights: str | None = asked(
        "First weights. Default: none at tiny; hub at small, at base and for timm:MODEL.",
        path="backbone.weights",
        metavar="hub|none|PATH",
    )
    name: str | None = asked("Create this run, or go on with it. Default: TARGET-DATASET.")
    trials: int | None = asked("Trials of each family. Default 8.", path="trials")
    max_epochs: int | None = asked(
        "Full length of a trial. Default 9.", path="scheduler.max_epochs"
    )
    seed: int | None = asked("Draws the recipes, and all that is random. Default 0.", path="seed")
    final_seeds: int | None = asked(
        "Train each winner again over so many seeds, then open the test split, once. "
        "Default 3 for a tournament, else 0."
    )
    audit: float | None = asked(
        "Train this share of the trials that ASHA would prune to their end, to measure what "
        "pruning gets wrong.",
        path="scheduler.audit",
        metavar="SHARE",
    )
    set: tuple[str, ...] = asked(
        "Any leaf of the spec: a value, [A,B], log(LOW,HIGH) or uniform(LOW,HIGH). Repeatable.",
        default=(),
        metavar="PATH=VALUE",
    )
    workers: str | None = asked(
        "Workers that train one trial. Default 1. With 2..4 a trial goes on with fewer where "
        "nodes are gone, at the global batch of 4.",
        path="resources.num_workers",
        metavar="N|LEAST..MOST",
    )
    gpus_per_worker: float | None = asked(
        "Default 0: train on the CPU.", path="resources.gpus_per_worker"
    )
    cpus_per_worker: float | None = asked("Default 1.", path="resources.cpus_per_worker")
    storage: str = asked(
        "Where the runs are kept.", default="runs", show_default=True, metavar="PATH|s3://..."
    )
    tracking_uri: str | None = asked(
        "MLflow. Default: $MLFLOW_TRACKING_URI, else sqlite in the storage folder."
    )
    experiment: str | None = asked("MLflow experiment. Default: the run's name.")
    budget: str | None = asked(
        "A hard cap: gpu_hours=4, cpu_hours=4 without GPUs, or usd=20 with a --price; an "
        "equal share for each family. The run stops before it is passed, resumable.",
        metavar="UNIT=AMOUNT",
    )
    price: tuple[str, ...] = asked(
        "What an hour costs: gpu_hour=2.50, cpu_hour=0.04. Repeatable.",
        default=(),
        metavar="UNIT=DOLLARS",
    )
    measure: bool | None = asked(
        "Measure some training steps here for the forecast. Default: in plans, and with a "
        "--budget; else hours are estimated from FLOPs."
    )
    tflops: float | None = asked(
        "What one GPU (or CPU) sustains in training, for estimates. Default 15 (0.03).",
        above=0,
    )
    reopen_test: bool = asked("Open the test split again; the report is marked.", default=False)

    def texts(self, options: Iterable[str] = ()) -> list[str]:
        """``options``, or all, and ``set`` as ``PATH=VALUE``, those of ``set`` last."""
        paths = {option.name: option.metadata.get("path") for option in fields(self)}
        values = {paths[name]: getattr(self, name) for name in options or paths if paths[name]}
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


def spec_of(targets: Sequence[str], options: RunOptions, *, final_seeds: int = 0) -> RunSpec:
    """The run that is asked for, with so many ``final_seeds`` unless the options say. Raises
    ``UserError`` with all that is wrong."""
    mistakes: list[str] = []
    sweeps: list[SweepSpec] = []
    for target in targets:
        with collected(mistakes):
            sweeps.append(named_sweeps.resolve(target))
    # Unknown targets keep their mistakes beside those of --set.
    targeted = sweeps or [named_sweeps.family_sweep("vit")]
    with collected(mistakes):
        changed = overrides.apply_sets(targeted, options.texts())
    with collected(mistakes):
        run = options.run("", ())
    raise_if_any(mistakes)
    if options.final_seeds is None:
        run = replace(run, final_seeds=final_seeds)
    return replace(run, name=run.name or default_name(targets, changed), sweeps=changed)


def default_name(targets: Sequence[str], sweeps: Sequence[SweepSpec]) -> str:
    """``TARGET-DATASET``: the same command typed again is the same run."""
    short = [target.rpartition(":")[2] if ".py:" in target else target for target in targets]
    return sanitised("-".join([*short, dataset_name(sweeps[0].data.source)]))
