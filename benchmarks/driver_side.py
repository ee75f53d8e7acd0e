"""The driver's side of a run, with slots that report at once instead of training.

    python -m benchmarks.driver_side FOLDER --trials N --reports N --slots N [--uri URI]

Part of ``benchmarks.throughput``, in a process of its own. Everything but the slots is the
real run: ``runner.run``, Tune with its thin trials, the dispatcher actor, the ledger and, with
``--uri``, the process that mirrors it into MLflow. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import ray

from benchmarks.common import largest_rss_mb
from orchestrator.engine import runner
from orchestrator.launch.prepare import PreparedRun, RunImages
from orchestrator.simulate.worlds import WORLDS, Training
from orchestrator.spec.limits import ResourceSpec
from orchestrator.spec.named_sweeps import family_sweep
from orchestrator.spec.run import RunSpec
from trainables.config import EpochReport
from trainables.worker.dispatcher_client import NAMESPACE
from trainables.worker.messages import SlotCommand

NAME = "throughput"
FAMILY = "vit"
IMAGES = 45_000


class Reporters:
    """A Ray actor that is all slots: it talks to the dispatcher as a worker of a slot does."""

    def __init__(self, dispatcher: str) -> None:
        self._dispatcher = ray.get_actor(dispatcher, namespace=NAMESPACE)
        self._trainings: dict[str, Training] = {}

    async def serve(self, slot: str) -> None:
        incarnation, running, attempt = uuid.uuid4().hex, None, 0
        while True:
            order = await self._dispatcher.next_order.remote(slot, incarnation, running)
            if order.command is SlotCommand.SHUTDOWN:
                return
            if order.command is SlotCommand.RELEASE:
                running = None
            if order.command is not SlotCommand.TRAIN:
                continue
            if order.assignment is not None:
                running, attempt = order.assignment.trial_id, order.assignment.attempt
                self._trainings[running] = WORLDS["null"].train(order.assignment)
            assert running is not None
            report = self._report(running, order.epoch)
            await self._dispatcher.report.remote(slot, running, attempt, report)

    def _report(self, trial: str, epoch: int) -> EpochReport:
        """As many metrics as an epoch of the engine has, of the usual length in digits."""
        top1 = self._trainings[trial].metrics[epoch - 1]["val_top1"]
        metrics = {
            "val_top1": round(top1, 6),
            "val_top5": min(1.0, top1 + 0.3),
            "val_loss": 2.5 * (1 - top1),
            "train_loss": 2.4 * (1 - top1),
            "lr": 0.001 / epoch,
            "images_seen": float(IMAGES * epoch),
            "train_seconds": 61.234567,
            "eval_seconds": 3.456789,
            "data_seconds": 0.123456,
            "images_per_second": 734.567891,
            "flops": 1.23456789e15 * epoch,
        }
        detail = {"model": "test_vit", "params_m": 0.37, "num_workers": 1} if epoch == 1 else {}
        return EpochReport(epoch, metrics, detail=detail)


def fit_slot(
    trials: int, reports: int, slot: str, dispatcher: str, resources: ResourceSpec, folder: Path
) -> None:
    """In the place of Ray Train: an actor, the same for all slots, that reports at once."""
    actor = ray.remote(Reporters).options(
        name="reporters", namespace=NAMESPACE, get_if_exists=True, num_cpus=0, max_concurrency=1000
    )
    ray.get(actor.remote(dispatcher).serve.remote(slot))


def spec(folder: Path, options: argparse.Namespace) -> RunSpec:
    """Trials whose every report goes through ASHA; what it would prune is audited: goes on."""
    sweep = family_sweep(FAMILY, trials=options.trials, max_epochs=options.reports)
    cpus = len(os.sched_getaffinity(0))
    sweep = replace(
        sweep,
        scheduler=replace(sweep.scheduler, audit=1.0),
        resources=ResourceSpec(cpus_per_worker=cpus / options.slots, max_slots=options.slots),
    )
    return RunSpec(name=NAME, sweeps=(sweep,), storage=str(folder), tracking_uri=options.uri)


class WithoutImages(PreparedRun):
    """Its slots report what they are told to."""

    def prepare_images(self, head_start_s: float = 0.0) -> Future[RunImages]:
        """Nothing, of no family."""
        images: Future[RunImages] = Future()
        images.set_result(RunImages(datasets={}, geometry={}, costs={}))
        return images


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, required=True)
    parser.add_argument("--reports", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--uri", help="MLflow's server; without it nothing is mirrored")
    options = parser.parse_args()
    lag: list[float] = []

    @contextmanager
    def timed(prepared: PreparedRun, folder: Path) -> Iterator[None]:
        if options.uri is None:
            yield
            return
        with runner.mirrored(prepared, folder):
            yield
            ended = time.monotonic()
        lag.append(time.monotonic() - ended)

    asked = spec(options.folder, options)
    outcome = runner.run(
        WithoutImages(spec=asked),
        fit_slot=partial(fit_slot, options.trials, options.reports),
        mirror=timed,
        write=lambda folder: "",
    )
    print(
        json.dumps(
            {
                "finished": outcome.succeeded,
                "mlflow_lag_s": lag[0] if lag else None,
                "driver_rss_mb": largest_rss_mb(),
            }
        )
    )


if __name__ == "__main__":
    main()
