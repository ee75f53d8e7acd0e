"""Slots: long-lived Ray Train runs that serve trials, and the dispatcher's actor beside them.

Each slot is fitted in a thread of the driver: Ray Train installs its SIGINT handler on the main
thread only, and that one belongs to the sweep. A slot needs no care while it lives: Ray Train
restarts a broken group, and the group asks the dispatcher what it was doing. A watchdog ends a run
whose slots are of no use any more.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import ray

from orchestrator.engine.dispatcher import Dispatcher, SlotHealth
from orchestrator.engine.dispatcher_state import SessionOptions
from orchestrator.engine.trial import RESOURCES
from orchestrator.ledger.events import FILE_NAME
from orchestrator.ledger.session import open_trials, state_of
from orchestrator.ray_cluster import attach
from orchestrator.ray_cluster.capacity import usable_cores, worker_asks
from orchestrator.spec.limits import ResourceSpec
from orchestrator.spec.run import RunSpec
from trainables.config import FREED_MEMORY_KEPT
from trainables.errors import UserError, one_line
from trainables.storage.waiting import wait_until
from trainables.versions import installed
from trainables.worker.dispatcher_client import NAMESPACE, ActorClient
from trainables.worker.messages import SlotConfig

MAX_RESTARTS_PER_SLOT = 3
NEVER_S = 1e9
CONCURRENT_CALLS = 1000
ABANDON_PATIENCE_S = 3.0
SECOND_SIGNAL_S = 2.0
POLL_S, HEALTH_POLL_S = 0.5, 3.0  # of the stop file; of the dispatcher, which takes its time
STALL_S = 10.0  # between two looks: longer than any busy machine makes of POLL_S
# A Ray of our own starts as many slots at once as have this many cores each: what their processes
# import keeps so many at work, and the first is ready in half the time. The next ones start while
# it trains, or when it has not been heard of for TURN_PATIENCE_S.
CORES_OF_A_START = 2
TURN_PATIENCE_S = 60.0
JOIN_PATIENCE_S = 300.0  # beyond two outages of the dispatcher, whose calls are bounded themselves

os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")

FitSlot = Callable[[str, str, ResourceSpec, Path], None]  # as fit_with_ray_train


class SlotPool:
    """One session's dispatcher actor, which ``dispatcher(method, ...)`` calls, and ``num_slots``
    slots, each carried out by ``fit_slot`` in a thread of its own."""

    def __init__(
        self,
        spec: RunSpec,
        folder: Path,
        session: str,
        num_slots: int,
        fit_slot: FitSlot | None = None,
    ) -> None:
        self.num_slots, self.session = num_slots, session
        self.dispatcher = ActorClient(f"dispatcher-{spec.name}-{session}")
        self.errors: list[str] = []  # why slots ended, where they ended in error
        self._resources, self._folder = spec.sweeps[0].resources, folder
        self._options = SessionOptions(
            session=session,
            max_failures_per_trial=self._resources.max_failures_per_trial,
            more_to_come=spec.final_seeds > 0,
            full_workers=self._resources.num_workers if self._resources.elastic else None,
        )
        self._fit_slot = fit_slot or fit_with_ray_train
        self._leaving = threading.Event()
        self._starter = threading.Thread(
            target=self._start_others, name=f"{attach.SLOT_THREAD}starter", daemon=True
        )
        self._threads = [
            threading.Thread(
                target=self._keep_up,
                args=(f"{session}-{index}",),
                name=f"{attach.SLOT_THREAD}{index}",
                daemon=True,
            )
            for index in range(num_slots)
        ]

    def start(self) -> None:
        """Start the dispatcher, which waits for its ``open``, and ask Ray Train for all slots at
        once; their placement groups are what an autoscaler sees. On a Ray of our own those for
        which there are no cores yet start later."""
        actor = ray.remote(Dispatcher).options(
            name=self.dispatcher.name,
            namespace=NAMESPACE,
            num_cpus=0,
            resources=RESOURCES,
            max_restarts=-1,
            max_concurrency=CONCURRENT_CALLS,
        )
        fitting = partial(attach.fitting, worker_asks(self._resources))
        self._actor = actor.remote(str(self._folder / FILE_NAME), self._options, fitting=fitting)
        self._at_once = self.num_slots
        if attach.is_ours():
            self._at_once = max(1, usable_cores() // CORES_OF_A_START)
        for thread in self._threads[: self._at_once]:
            thread.start()
        if self._at_once < self.num_slots:
            self._starter.start()

    def _start_others(self) -> None:
        """Each slot once the one before whose cores it takes has asked for work."""
        for place, thread in enumerate(self._threads[self._at_once :], start=1):
            with suppress(ray.exceptions.RayError):  # Ray is lost: the watchdog notices
                wait_until(
                    lambda place=place: (
                        self._leaving.is_set()  # type: ignore[misc]
                        or self.dispatcher("health").heard >= place
                    ),
                    patience_s=TURN_PATIENCE_S,
                    poll_s=POLL_S,
                )
            if self._leaving.is_set():
                return
            thread.start()

    def alive(self) -> int:
        """Slots whose Ray Train run has not ended."""
        return sum(thread.is_alive() for thread in self._threads)

    def close(self, event: str, reason: str | None, patience_s: float) -> None:
        """Let the slots leave, for at most ``patience_s`` each, then write the last record."""
        self._let_slots_leave(patience_s)
        self.dispatcher("close", event, reason=reason)
        ray.kill(self._actor)

    def abandon(self) -> None:
        """Leave no trace of a session that never began."""
        self._let_slots_leave(ABANDON_PATIENCE_S)
        ray.kill(self._actor)
        shutil.rmtree(self._folder / "slots", ignore_errors=True)

    def _let_slots_leave(self, patience_s: float) -> None:
        self.dispatcher("stop")
        self._leaving.set()
        for thread in (self._starter, *self._threads):
            if thread.ident is not None:
                thread.join(patience_s)

    def _keep_up(self, slot_name: str) -> None:
        """Fit the slot, and again under another name where it ends in error."""
        for life in range(1 + MAX_RESTARTS_PER_SLOT):
            slot = f"{slot_name}.{life}"
            try:
                folder = self._folder / "slots"
                self._fit_slot(slot, self.dispatcher.name, self._resources, folder)
                return
            except Exception as error:
                if self._leaving.is_set():
                    return
                kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                reason = f"{kind}{one_line(error)[:500]}"
                self.errors.append(f"{slot}: {reason}")
                if not self._give_back(slot, reason):
                    return

    def _give_back(self, slot: str, reason: str) -> bool:
        """What a lost slot held: its trial, and its placement group, which a controller that was
        killed leaves behind and nobody else frees before the run ends. ``False`` where Ray is lost:
        the watchdog notices."""
        try:
            if attach.is_ours():
                attach.remove_groups_of(mark_of(slot))
            self.dispatcher("slot_lost", slot, reason)
        except ray.exceptions.RayError:
            return False
        return True


class Watchdog(threading.Thread):
    """Ends a run, by writing its ``stop_file``, whose slots never start, are all gone, or fall
    silent, as when their nodes went away and none comes back: that is an ``error`` with a name
    instead of a hang. Ends it too, with a ``reason``, once its budget has no room for another
    epoch, its storage fails, or ``lost`` says that it is another process's.

    In a ``with`` statement it watches until the end of the block.
    """

    def __init__(
        self,
        pool: SlotPool,
        resources: ResourceSpec,
        stop_file: Path,
        lost: Callable[[], str | None],
    ) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._pool, self._stop_file, self._lost = pool, stop_file, lost
        self._timeout_s, self._epoch_s = resources.slot_start_timeout_s, resources.epoch_timeout_s
        self._began_at, self._ready = time.monotonic(), False
        self._ended = threading.Event()
        self.error: str | None = None
        self.reason: str | None = None

    def __enter__(self) -> Watchdog:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        # A thread that still calls Ray while it shuts down would take the process with it.
        self._ended.set()
        self.join(JOIN_PATIENCE_S)

    def run(self) -> None:
        try:
            self._watch()
        except (ray.exceptions.RayError, ConnectionError) as error:
            self.reason = f"Ray is lost: {type(error).__name__}: {one_line(error)[:200]}"
            self._stop_file.touch()

    def _watch(self) -> None:
        asked_at, looked_at = -math.inf, time.monotonic()
        while not self._ended.wait(POLL_S) and not self._stop_file.exists():
            now = time.monotonic()
            if now - looked_at > STALL_S:  # this process was stopped, its time does not count
                self._began_at += now - looked_at
            looked_at = now
            if now - asked_at < HEALTH_POLL_S:
                continue
            health: SlotHealth = self._pool.dispatcher("health")
            asked_at = looked_at = time.monotonic()
            self.error = self._problem(health)
            self.reason = self._lost() or health.over
            if self.error or self.reason:
                self._stop_file.touch()
        if self._stop_file.exists():
            self._pool.dispatcher("stop")

    def _problem(self, health: SlotHealth) -> str | None:
        """What keeps the trials from being trained, if anything does."""
        limit = f"resources.slot_start_timeout_s={self._timeout_s:g}"
        self._ready = self._ready or health.ready
        if not self._ready and time.monotonic() - self._began_at > self._timeout_s:
            return (
                f"a slot must start within {limit}; none did. Fix: free the cluster, ask for less, "
                "or --set resources.slot_start_timeout_s=SECONDS"
            )
        if not self._pool.alive() and open_trials(state_of(self._stop_file.parent)):
            last = (self._pool.errors or ["no reason given"])[-1]
            return f"every slot ended before its trials did; the last one: {last}"
        if self._ready and health.silent_s > self._epoch_s + self._timeout_s:
            return (
                f"a slot that lost its nodes must start again within {limit}; none has been heard "
                f"of for {health.silent_s:.0f} s, an epoch's time included. Fix: the same command "
                "goes on once the cluster has nodes again"
            )
        return None


@contextmanager
def stop_on_signals(stop_file: Path) -> Iterator[None]:
    """Ctrl-C, SIGTERM or the end of the terminal asks for a clean stop; another, later one ends the
    process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    asked_at: list[float] = []

    def ask(number: int, frame: object) -> None:
        # One Ctrl-C often arrives twice: from the terminal and from the parent that waits.
        if asked_at and time.monotonic() - asked_at[0] > SECOND_SIGNAL_S:
            os._exit(130)
        asked_at.append(time.monotonic())
        stop_file.touch()

    asking = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    heeded = [number for number in asking if signal.getsignal(number) != signal.SIG_IGN]  # nohup
    before = {number: signal.signal(number, ask) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fit_with_ray_train(slot: str, dispatcher: str, resources: ResourceSpec, folder: Path) -> None:
    """Run Ray Train until the dispatcher lets the slot go. Raises ``UserError`` where a node holds
    other versions than this process, and Ray Train's own errors."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from trainables.worker.entry import serve_if_fit

    config = SlotConfig(
        dispatcher=dispatcher,
        slot=slot,
        full_workers=resources.num_workers,
        threads_per_worker=max(1, int(resources.cpus_per_worker)),
        versions=installed(),
    )
    workers: int | tuple[int, int] = resources.num_workers
    if resources.elastic:  # Ray Train starts with what today's nodes hold
        workers = resources.least_workers, resources.num_workers
        # What it believes of the nodes is up to 20 s old; it asks again when this is over.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
    asks = worker_asks(resources)
    if attach.is_ours():  # another's nodes may announce no memory
        asks["memory"] = mark_of(slot)
    result = TorchTrainer(
        serve_if_fit,
        train_loop_config={"slot": config},
        scaling_config=ScalingConfig(
            num_workers=workers,
            # It would resize in the middle of an epoch, which would be lost: a slot that may
            # grow is told so by the dispatcher, between two.
            elastic_resize_monitor_interval_s=NEVER_S,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=asks,
        ),
        run_config=RunConfig(
            name=slot,
            storage_path=str(folder),
            # Which trial is to blame for a broken group is for the dispatcher to count.
            failure_config=FailureConfig(max_failures=-1),
            worker_runtime_env=worker_environment(resources),
        ),
    ).fit()
    if result.return_value:
        raise UserError(*result.return_value.splitlines())


def mark_of(slot: str) -> int:
    """Bytes of memory, next to none, that the bundles of this life of a slot ask for and of no
    other: Ray Train gives its placement groups no names."""
    index, _, life = slot.rpartition("-")[2].partition(".")
    return 1 + int(index) * (1 + MAX_RESTARTS_PER_SLOT) + int(life)


def worker_environment(resources: ResourceSpec) -> dict[str, dict[str, str]]:
    """The workers' runtime environment: on a CPU, freed memory stays with the process."""
    return {"env_vars": {} if resources.gpus_per_worker else dict(FREED_MEMORY_KEPT)}
