"""Slots: long-lived Ray Train runs that serve trials, each in a thread of the driver.

A thread, because Ray Train installs its SIGINT handler on the main thread only and that one
belongs to the sweep. A slot needs no care while it lives: Ray Train restarts a broken group,
and the group asks the dispatcher what it was doing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator import cluster
from orchestrator.spec import ResourceSpec
from trainables.errors import UserError, one_line
from trainables.installed import installed

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
                name=f"{cluster.SLOT_THREAD}{index}",
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

        from trainables.worker_entry import serve_if_fit

        result = trainer_class(self._resources)(
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


def trainer_class(resources: ResourceSpec) -> Any:
    """``TorchTrainer`` without the helpers that a slot has no use for. An idle process of Ray's
    wakes a hundred times a second and takes about 1 % of a core, from the slots if all cores are
    theirs. No slot has datasets to manage. One worker has no process group to be in. In a Ray that
    ends with this process nobody need give back what a dead driver held, or ask an autoscaler for
    nodes, and one worker there waits for no other."""
    import ray
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

    ours, alone = cluster.is_our_own(), num_workers(resources) == 1
    unused = {"DatasetsCallback"}
    unused |= {"PlacementGroupCleanerCallback"} if ours else set()
    unused |= {"BackendSetupCallback"} if alone else set()

    class WaitsForNobody(WorkerGroupCallback):  # type: ignore[misc]
        def after_worker_group_start(self, worker_group: Any) -> None:
            ray.kill(worker_group._worker_group_state.sync_actor)

    class AsksNobody(FixedScalingPolicy):  # type: ignore[misc]
        def after_controller_start(self, train_run_context: Any) -> None:
            pass

        def _maybe_send_resource_request(self) -> None:
            pass

    class SlotTrainer(TorchTrainer):  # type: ignore[misc]
        def _initialize_and_run_controller(self, **parts: Any) -> Any:
            if ours and type(parts["scaling_policy"]) is FixedScalingPolicy:
                parts["scaling_policy"] = AsksNobody(self.scaling_config)
            return super()._initialize_and_run_controller(**parts)

        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            used = [one for one in callbacks if type(one).__name__ not in unused]
            return [*used, WaitsForNobody()] if ours and alone else used

    return SlotTrainer


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
