"""Ray, attached or started: what there is, and how long this process holds it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from orchestrator.ray_cluster import capacity
from orchestrator.ray_cluster.capacity import ClusterCapacity, running_room
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
        return recorded if _answers(recorded) else None
    return None


@contextmanager
def attached(namespace: str) -> Iterator[ClusterCapacity]:
    """A Ray for the length of a run; yields what the cluster can ever hold.

    Raises :class:`UserError` when ``RAY_ADDRESS`` does not answer, within seconds, and when it
    lets this process not in.
    """
    import ray

    address = known_address()
    if address is not None and not _answers(address):
        raise UserError(
            f"RAY_ADDRESS must name a running cluster; nothing answers at {address!r} within "
            f"{CONNECT_TIMEOUT_S:g} s. Fix: start it, or unset RAY_ADDRESS to run on this machine"
        )
    if address is not None:
        _attach(address, namespace)
    else:
        for name, value in FRUGAL.items():
            os.environ.setdefault(name, value)
        ray.init(
            address="local",
            namespace=namespace,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
        _stop_helpers()
    try:
        yield capacity.room()
    finally:
        if not slots_at_work():
            _leave()


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


def _leave() -> None:
    """Shut Ray down; of a Ray of our own nothing stays. Now and then a process of it hangs in its
    own exit, after its raylet has struck it off the list of those to kill."""
    import psutil  # Ray brings it along
    import ray

    node, helpers = _own_node(), []
    with suppress(psutil.NoSuchProcess):
        for raylet in node.all_processes["raylet"] if node is not None else ():
            helpers += psutil.Process(raylet.process.pid).children(recursive=True)
    ray.shutdown()
    for helper in psutil.wait_procs(helpers, timeout=EXIT_PATIENCE_S)[1]:
        with suppress(psutil.NoSuchProcess):
            helper.kill()


def _stop_helpers() -> None:
    """Of a Ray of our own, processes that serve nobody and take about 1 % of a core each: what
    hands output on to drivers, the autoscaler of a cluster that never grows, the dashboard."""
    node = _own_node()
    node.kill_log_monitor()
    node.kill_monitor()
    node.kill_dashboard()


def is_our_own() -> bool:
    """Whether this process has started the Ray that it is attached to, which ends with it."""
    return _own_node() is not None


def _own_node() -> Any:
    from ray._private import worker

    node = worker._global_node
    return node if node is not None and node.is_head() else None


def gone(nodes: Sequence[str]) -> list[str]:
    """Those of ``nodes`` (their ids) that are no longer there: Ray says so, or nobody answers.

    Ray itself notices within half a minute; a worker group may be up again by then.
    """
    import ray

    known = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    return [node for node in dict.fromkeys(nodes) if not _stands(known.get(node))]


def fitting(worker: Mapping[str, float]) -> int:
    """Workers that today's nodes hold when each asks for ``worker``."""
    import ray

    running = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return running_room(running).workers(worker)


def _stands(node: Mapping[str, Any] | None) -> bool:
    return node is not None and _answers(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}")


def _answers(address: str) -> bool:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return True
    try:
        with socket.create_connection((host or "127.0.0.1", int(port)), CONNECT_TIMEOUT_S):
            return True
    except OSError:
        return False
