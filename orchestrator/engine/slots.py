"""Slots: long-lived Ray Train runs that serve trials, each in a thread of the driver.

A thread, because Ray Train installs its SIGINT handler on the main thread only and that one
belongs to the sweep. A slot needs no care while it lives: Ray Train restarts a broken group,
and the group asks the dispatcher what it was doing.

The dispatcher and its slots as the driver holds them.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from orchestrator.engine.dispatcher import Dispatcher
from orchestrator.engine.trial import NAMESPACE, RESOURCES
from orchestrator.ledger.events import FILE_NAME
from orchestrator.ledger.session import open_trials, state_of
from orchestrator.ray_cluster import attach
from orchestrator.spec.limits import ResourceSpec
from orchestrator.spec.run import RunSpec
from trainables.errors import UserError, one_line
from trainables.storage.object_storage import is_remote
from trainables.versions import installed
from trainables.worker.actor_client import ActorClient

MAX_RESTARTS_PER_SLOT = 3
NEVER_S = 1e9

# The controller looks at its workers this often: the delay until a dead one is noticed.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")
os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")


class SlotPool:
    """``num_slots`` Ray Train runs. ``lost(slot, reason)`` is called when one ends in error."""

    def __init__(
        self,
        *,
        num_slots: int,
        resources: ResourceSpec,
        dispatcher: str,
        namespace: str,
        session: str,
        folder: Path,
        lost: Callable[[str, str], None],
    ) -> None:
        self._resources = resources
        self._config = {
            "dispatcher": dispatcher,
            "namespace": namespace,
            "full_workers": resources.num_workers,
            "threads_per_worker": max(1, int(resources.cpus_per_worker)),
            "versions": installed(),
        }
        self._session = session
        self._folder = folder
        self._lost = lost
        self._leaving = threading.Event()
        self.errors: list[str] = []
        self._threads = [
            threading.Thread(
                target=self._keep,
                args=(index,),
                name=f"{attach.SLOT_THREAD}{index}",
                daemon=True,
            )
            for index in range(num_slots)
        ]

    def start(self) -> None:
        """Ask for all slots at once; their placement groups are what an autoscaler sees."""
        for thread in self._threads:
            thread.start()

    def alive(self) -> int:
        """Slots whose Ray Train run has not ended."""
        return sum(thread.is_alive() for thread in self._threads)

    def join(self, timeout_s: float) -> bool:
        """Wait for the slots to leave; ``False`` when some are still there after the time."""
        self._leaving.set()
        for thread in self._threads:
            thread.join(timeout_s)
        return self.alive() == 0

    def _keep(self, index: int) -> None:
        for life in range(1 + MAX_RESTARTS_PER_SLOT):
            slot = f"{self._session}-{index}.{life}"
            try:
                self._fit(slot)
                return
            except Exception as error:
                if self._leaving.is_set():
                    return
                named = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                reason = f"{named}{one_line(error)[:500]}"
                self.errors.append(f"{slot}: {reason}")
                self._lost(slot, reason)

    def _fit(self, slot: str) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        from trainables.worker.entry import serve_if_fit

        result = TorchTrainer(
            serve_if_fit,
            train_loop_config={**self._config, "slot": slot},
            scaling_config=ScalingConfig(
                num_workers=num_workers(self._resources),
                # It would resize in the middle of an epoch, which would be lost: a slot that may
                # grow is told so by the dispatcher, between two.
                elastic_resize_monitor_interval_s=NEVER_S,
                use_gpu=self._resources.gpus_per_worker > 0,
                resources_per_worker=worker_resources(self._resources),
            ),
            run_config=RunConfig(
                name=slot,
                storage_path=str(self._folder),
                # Which trial is to blame for a broken group is for the dispatcher to count.
                failure_config=FailureConfig(max_failures=-1),
            ),
        ).fit()
        if result.return_value:
            raise UserError(result.return_value)


def num_workers(resources: ResourceSpec) -> int | tuple[int, int]:
    """As Ray Train takes it: with a range it starts with what today's nodes hold."""
    if not resources.elastic:
        return resources.num_workers
    # What Ray Train believes of the nodes is up to 20 s old; it asks again when this is over.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
    return resources.least_workers, resources.num_workers


def worker_resources(resources: ResourceSpec) -> dict[str, Any]:
    """What one worker reserves, in Ray's names."""
    reserved: dict[str, Any] = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        reserved["GPU"] = resources.gpus_per_worker
    return reserved


CONCURRENT_CALLS = 1000
ABANDON_PATIENCE_S = 3.0


class DecisionRecorder:
    """Writes a decision through the dispatcher; plain data, because Tune pickles schedulers."""

    def __init__(self, dispatcher: str) -> None:
        self._call = ActorClient(dispatcher, NAMESPACE)

    def __call__(self, event: str, trial: str | None = None, **fields: Any) -> None:
        self._call("record", event, trial, **fields)


class Pool:
    """One session's dispatcher actor and ``num_slots`` slots."""

    def __init__(
        self, spec: RunSpec, folder: Path, session: str, num_slots: int, *, more_to_come: bool
    ) -> None:
        resources = spec.sweeps[0].resources
        self.num_slots = num_slots
        self.dispatcher = f"dispatcher-{spec.name}-{session}"
        self.decide = DecisionRecorder(self.dispatcher)
        self._call = ActorClient(self.dispatcher, NAMESPACE)
        self._folder = folder
        self._uncapped = not spec.budget and not is_remote(spec.storage)
        self._actor = (
            ray.remote(Dispatcher)
            .options(
                name=self.dispatcher,
                namespace=NAMESPACE,
                num_cpus=0,
                resources=RESOURCES,
                max_restarts=-1,
                max_concurrency=CONCURRENT_CALLS,
            )
            .remote(
                str(folder / FILE_NAME),
                session=session,
                more_to_come=more_to_come,
                max_failures_per_trial=resources.max_failures_per_trial,
                worker=worker_resources(resources),
                full_workers=resources.num_workers if resources.elastic else None,
            )
        )
        self._slots = SlotPool(
            num_slots=num_slots,
            resources=resources,
            dispatcher=self.dispatcher,
            namespace=NAMESPACE,
            session=session,
            folder=folder / "slots",
            lost=lambda slot, reason: self._call("slot_lost", slot, reason),
        )

    def start(self) -> None:
        """Ask Ray Train for the slots; they wait until the books are opened."""
        self._slots.start()

    def open(self) -> None:
        """The ledger holds what to train."""
        self._call("open")

    def ready(self) -> int:
        """Slots that have asked for work."""
        return int(self._call("slots_ready"))

    def silent_s(self) -> float:
        """Seconds since any slot asked for an order."""
        return float(self._call("silent_s"))

    def alive(self) -> int:
        """Slots whose Ray Train run has not ended."""
        return self._slots.alive()

    def errors(self) -> list[str]:
        """Why slots ended, where they ended in error."""
        return self._slots.errors

    def submit(self, records: list[dict[str, Any]]) -> None:
        """Write the records that begin the last phase."""
        self._call("submit", records)

    def over_budget(self) -> str | None:
        """Why nothing that is left may be trained, if the budget or the storage ends the run."""
        if self._uncapped:
            return None
        reason: str | None = self._call("over_budget")
        return reason

    def open_trials(self) -> list[str]:
        """Trials that have not ended, from the ledger."""
        return open_trials(state_of(self._folder))

    def stop(self) -> None:
        """Wake every trial and slot that waits, so that they end at once."""
        self._call("stop")

    def close(self, event: str, reason: str | None, patience_s: float) -> None:
        """Let the slots leave, for at most ``patience_s``, then write the last record."""
        self.stop()
        self._slots.join(patience_s)
        self._call("close", event, reason=reason)
        ray.kill(self._actor)

    def abandon(self) -> None:
        """Leave no trace of a session that never began."""
        self.stop()
        self._slots.join(ABANDON_PATIENCE_S)
        ray.kill(self._actor)
        shutil.rmtree(self._folder / "slots", ignore_errors=True)
