"""Options that commands share, and how they speak."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


class _PlainLines(logging.Handler):
    """Each record as its bare message on what is ``sys.stderr`` at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(record.getMessage(), err=True)


def log_to_stderr() -> None:
    """Print what ``orchestrator`` and ``trainables`` log from INFO up, once however often called.

    The loggers of libraries are left as they are.
    """
    for package in ("orchestrator", "trainables"):
        logger = logging.getLogger(package)
        logger.setLevel(logging.INFO)
        if not any(isinstance(handler, _PlainLines) for handler in logger.handlers):
            logger.addHandler(_PlainLines())


def show(plain: Mapping[str, object]) -> None:
    """Data as JSON, on stdout."""
    click.echo(json.dumps(plain, indent=2))


def apply(options: Sequence[Callable[[Any], Any]], command: Command) -> Command:
    """``command`` with ``options``, listed by ``--help`` in this order."""
    for option in reversed(options):
        command = option(command)
    return command


STORAGE = click.option(
    "--storage",
    default="runs",
    show_default=True,
    metavar="PATH|s3://...",
    help="Where the runs are kept.",
)
TRACKING = click.option(
    "--tracking-uri",
    help="MLflow. Default: $MLFLOW_TRACKING_URI, else sqlite in the storage folder.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
SET = click.option(
    "--set",
    multiple=True,
    metavar="PATH=VALUE",
    help="Any leaf of the spec: a value, [A,B], log(LOW,HIGH) or uniform(LOW,HIGH). Repeatable.",
)
REOPEN = click.option(
    "--reopen-test", is_flag=True, help="Open the test split again; the report is marked."
)
DRY_RUN = click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
# What is trained on what, in tournaments and claims alike; then, how and where.
SUBJECT = (
    click.option(
        "--dataset",
        metavar="NAME|PATH",
        help="digits (default), cifar10, cifar100, an image folder, a Parquet file or folder.",
    ),
    click.option("--scale", metavar="SCALE", help="tiny (default), small or base."),
    click.option(
        "--weights",
        metavar="hub|none|PATH",
        help="First weights. Default: none at tiny; hub at small, at base and for timm:MODEL.",
    ),
)
MEANS = (
    SET,
    click.option(
        "--workers",
        metavar="N|LEAST..MOST",
        help="Workers that train one trial. Default 1. With 2..4 a trial goes on with fewer where "
        "nodes are gone, at the global batch of 4.",
    ),
    click.option("--gpus-per-worker", type=float, help="Default 0: train on the CPU."),
    click.option("--cpus-per-worker", type=float, help="Default 1."),
    STORAGE,
    TRACKING,
    click.option("--experiment", help="MLflow experiment. Default: the run's name."),
    click.option(
        "--budget",
        metavar="UNIT=AMOUNT",
        help="A hard cap: gpu_hours=4, cpu_hours=4 without GPUs, or usd=20 with a --price; an "
        "equal share for each family. The run stops before it is passed, resumable.",
    ),
    click.option(
        "--price",
        multiple=True,
        metavar="UNIT=DOLLARS",
        help="What an hour costs: gpu_hour=2.50, cpu_hour=0.04. Repeatable.",
    ),
    click.option(
        "--measure/--no-measure",
        default=None,
        help="Measure some training steps here for the forecast. Default: in plans, and with a "
        "--budget; else hours are estimated from FLOPs.",
    ),
    click.option(
        "--tflops",
        type=click.FloatRange(min=0, min_open=True),
        help="What one GPU (or CPU) sustains in training, for estimates. Default 15 (0.03).",
    ),
)
RUN = (
    *SUBJECT,
    click.option("--name", help="Create this run, or go on with it. Default: TARGET-DATASET."),
    click.option("--trials", type=int, help="Trials of each family. Default 8."),
    click.option("--max-epochs", type=int, help="Full length of a trial. Default 9."),
    click.option("--seed", type=int, help="Draws the recipes, and all that is random. Default 0."),
    click.option(
        "--final-seeds",
        type=int,
        help="Train each winner again over so many seeds, then open the test split, once. "
        "Default 3 for a tournament, else 0.",
    ),
    click.option(
        "--audit",
        type=float,
        metavar="SHARE",
        help="Train this share of the trials that ASHA would prune to their end, to measure what "
        "pruning gets wrong.",
    ),
    *MEANS,
)


def run_options(command: Command) -> Command:
    """The options that sweep, tournament and plan share."""
    return apply(RUN, command)
