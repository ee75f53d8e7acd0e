"""python -m benchmarks.isolated LEDGER OUT [--trials N] [--at-a-time N]

Part (c) of ``benchmarks.sweep``: what most people would write. Each trial is a Tune function that
builds a ``TorchTrainer`` of one worker and fits it, so every trial starts its own processes. The
first trials of a recorded run, one epoch each: only the time until their first step is wanted.
OUT gets one JSON record a line: ``started`` when Tune has started the trial (its actor is up, which
is not counted), ``stepping`` when its worker is about to take the first step.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

# The controller looks every 2 s otherwise, which is a setting and no property of the design.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

import ray
import ray.train
from ray import tune
from ray.train.torch import TorchTrainer

from benchmarks.bare import work_of
from orchestrator.ledger.events import read


def tell(out: str, event: str, trial: str) -> None:
    """Append one record; lines this short are written whole."""
    with Path(out).open("a") as log:
        log.write(json.dumps({"time": time.time(), "event": event, "trial": trial}) + "\n")


def train(config: dict[str, Any]) -> None:
    """On the Train worker: one epoch, reported."""
    import torch

    from trainables.config import Assignment
    from trainables.finetune import fine_tune

    torch.set_num_threads(1)
    assignment = Assignment.from_dict(config["assignment"])
    asked: list[float] = []

    def at_first_question() -> bool:
        if not asked:
            asked.append(time.time())
            tell(config["out"], "stepping", assignment.trial_id)
        return False

    report = next(fine_tune(assignment, should_stop=at_first_question))
    ray.train.report(dict(report.metrics))


def trial(config: dict[str, Any]) -> None:
    """On the Tune trial: a trainer of its own."""
    from ray.tune.integration.ray_train import TuneReportCallback

    tell(config["out"], "started", config["assignment"]["trial_id"])
    TorchTrainer(
        train,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(num_workers=1),
        run_config=ray.train.RunConfig(
            name=config["assignment"]["trial_id"],
            storage_path=config["storage"],
            callbacks=[TuneReportCallback()],
        ),
    ).fit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ledger", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--at-a-time", type=int, default=2)
    options = parser.parse_args()
    work = work_of(list(read(options.ledger)))[: options.trials]
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory(prefix="isolated-") as storage:
        results = tune.Tuner(
            tune.with_resources(trial, {"CPU": 0, "node:__internal_head__": 0.001}),
            param_space={
                "assignment": tune.grid_search([assignment.as_dict() for assignment, _ in work]),
                "out": str(options.out),
                "storage": storage,
            },
            tune_config=tune.TuneConfig(max_concurrent_trials=options.at_a_time),
            run_config=tune.RunConfig(storage_path=storage, verbose=0),
        ).fit()
        ray.shutdown()
    if results.errors:
        raise SystemExit(f"a trial failed: {results.errors[0]}")


if __name__ == "__main__":
    main()
