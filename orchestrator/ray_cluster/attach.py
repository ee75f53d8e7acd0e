"""Ray, attached or started: what there is, and how long this process holds it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from orchestrator.ray_cluster import capacity
from orchestrator.ray_cluster.capacity import ClusterCapacity
from trainables.errors import UserError, one_line

CONNECT_TIMEOUT_S = 3.0
EXIT_PATIENCE_S = 2.0
SLOT_THREAD = "slot-"  # how the name of a thread begins that keeps a slot
CURRENT_CLUSTER = Path("/tmp/ray/ray_current_cluster")

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Thin trials and Train's helpers are many small processes on purpose: no warning about them.
os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")
# A Ray of our own shares its cores with what it trains, and ends with it: nobody scrapes it.
FRUGAL = {
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_memory_monitor_refresh_ms": "1000",
    "RAY_raylet_report_resources_period_milliseconds": "500",
    "RAY_raylet_check_gc_period_milliseconds": "1000",
    "RAY_kill_idle_workers_interval_ms": "1000",
    # Nobody takes this machine away; a watcher a slot is a process to start for nothing.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # A Ray of our own that has died does not come back: leave, the ledger has everything.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
}


def known_address() -> str | None:
    """The cluster that Ray would attach to: ``RAY_ADDRESS``, or one started on this machine.

    ``None`` where there is none, or where ``RAY_ADDRESS=local`` asks for one of one's own.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address == "local":
        return None
    if address and address != "auto":
        return address
    if CURRENT_CLUSTER.exists() and (recorded := CURRENT_CLUSTER.read_text().strip()):
        return recorded if answers(recorded) else None
    return None


@contextmanager
def attached(namespace: str) -> Iterator[ClusterCapacity]:
    """A Ray for the length of a run; yields what the cluster can ever hold.

    Raises :class:`UserError` when ``RAY_ADDRESS`` does not answer, within seconds, and when it
    lets this process not in.
    """
    import ray

    address = known_address()
    if address is not None and not answers(address):
        raise UserError(
            f"RAY_ADDRESS must name a running cluster; nothing answers at {address!r} within "
            f"{CONNECT_TIMEOUT_S:g} s. Fix: start it, or unset RAY_ADDRESS to run on this machine"
        )
    if address is not None:
        _attach(address, namespace)
    else:
        for name, value in FRUGAL.items():
            os.environ.setdefault(name, value)
        # The dashboard's State API would free the resources of a slot whose controller was killed;
        # it takes ten processes and 2 % of a core, and such a Ray ends with this process.
        ray.init(
            address="local",
            namespace=namespace,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    try:
        yield capacity.room()
    finally:
        if not slots_at_work():
            _leave(ours=address is None)


def slots_at_work() -> bool:
    """Whether a slot's thread did not leave in the time that it was given. While one calls Ray,
    Ray must not be shut down: the call would end this process, with an exit code of Ray's own."""
    return any(thread.name.startswith(SLOT_THREAD) for thread in threading.enumerate())


def _attach(address: str, namespace: str) -> None:
    import ray

    try:
        ray.init(address=address, namespace=namespace, log_to_driver=False, logging_level="ERROR")
    except (ray.exceptions.AuthenticationError, ConnectionError, RuntimeError) as error:
        why, mode = one_line(error)[:200], os.environ.get("RAY_AUTH_MODE", "not set")
        raise UserError(
            f"a cluster must let this process in; {address} does not ({why}). Fix: RAY_AUTH_MODE "
            f"(here {mode}) and the token in ~/.ray/auth_token as on the head, and the head's "
            "versions of Python and Ray"
        ) from None


def _leave(*, ours: bool) -> None:
    """Shut Ray down; of a Ray of our own nothing stays. Now and then a process of it hangs in its
    own exit, after its raylet has struck it off the list of those to kill."""
    import psutil  # Ray brings it along
    import ray

    helpers: list[psutil.Process] = []
    if ours:
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process().children():
                helpers += child.children(recursive=True) if child.name() == "raylet" else []
    ray.shutdown()
    for helper in psutil.wait_procs(helpers, timeout=EXIT_PATIENCE_S)[1]:
        with suppress(psutil.NoSuchProcess):
            helper.kill()


def answers(address: str) -> bool:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return True
    try:
        with socket.create_connection((host or "127.0.0.1", int(port)), CONNECT_TIMEOUT_S):
            return True
    except OSError:
        return False
