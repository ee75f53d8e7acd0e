"""Ray, attached or started for as long as this process needs it, and the nodes of its cluster."""

from __future__ import annotations

import logging
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from orchestrator import process
from orchestrator.ray_cluster import token
from orchestrator.ray_cluster.capacity import (
    ClusterCapacity,
    Node,
    alive_nodes,
    cluster_capacity,
    local_totals,
    running_capacity,
)
from trainables.errors import ClusterLost, StorageError, UserError, one_line, raise_if_any
from trainables.versions import differences, installed

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 3.0
# Ray's servers speak HTTP/2 (RFC 9113, section 3.4): who is greeted like this answers at once with
# a frame of settings, and so do gRPC's.
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
SETTINGS_FRAME, FRAME_HEADER_BYTES = 4, 9
EXIT_PATIENCE_S = 2.0
VERSIONS_TIMEOUT_S = 30.0  # a node starts a process to answer: a second where it is idle
SLOT_THREAD = "slot-"  # how the name of a thread begins that keeps a slot
# Where Ray looks for it: see get_ray_address_file in its ray/_common/utils.py.
CURRENT_CLUSTER = (
    Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")
    / "ray/ray_current_cluster"
)
LONGEST_ADDRESS = 200  # characters

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
    "REPORTER_UPDATE_INTERVAL_MS": "3600000",
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",  # above it, it lists the log files ...
    "LOG_NAME_UPDATE_INTERVAL_S": "3600",  # ... this seldom: nobody follows them
    # Nobody takes this machine away; a watcher a slot is a process to start for nothing.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # A Ray of our own that has died does not come back: leave, the ledger has everything.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
}
# A Ray of our own is for this process alone. With this Ray's servers listen on 127.0.0.1, as they
# do on macOS and Windows; it is read when ray is imported.
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def known_address() -> str | None:
    """The cluster that Ray would attach to: ``RAY_ADDRESS``, or one started on this machine.

    ``None`` where there is none, or where ``RAY_ADDRESS=local`` asks for one of one's own.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address == "local":
        return None
    if address and address != "auto":
        return address
    recorded = _recorded_address()
    return recorded if recorded and answers(recorded) else None


def _recorded_address() -> str | None:
    """The address in Ray's record of the cluster on this machine, if this user wrote it: the folder
    is shared, and whoever is attached to is sent the token of the user's clusters."""
    file = CURRENT_CLUSTER
    try:
        number = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(number, encoding="utf-8", errors="replace") as record:
        facts = os.fstat(record.fileno())
        others_write = facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid() or others_write:
            log.warning(
                f"warning: {file} is not this user's alone, so that it is not followed. "
                "Fix: RAY_ADDRESS names a cluster that you trust"
            )
            return None
        return record.read(LONGEST_ADDRESS).strip() or None


def address_mistakes(address: str | None) -> list[str]:
    """Why no run can be carried out at ``address``, as :func:`known_address` names it: within
    seconds, also where something accepts connections and says nothing."""
    if address is None or answers(address):
        return []
    return [
        f"RAY_ADDRESS must name a running cluster; no Ray answers at {address!r} within "
        f"{CONNECT_TIMEOUT_S:g} s. Fix: start it, or unset RAY_ADDRESS to run on this machine"
    ]


_is_ours = False


@contextmanager
def attached(namespace: str) -> Iterator[ClusterCapacity]:
    """A Ray for the length of a run; yields what the cluster can ever hold.

    Raises :class:`UserError` when ``RAY_ADDRESS`` does not answer, within seconds, and when it
    lets this process not in; ``ClusterLost`` for Ray's own errors within the block.
    """
    address = known_address()
    if address is None:
        os.environ.update(LOOPBACK_ONLY)
    token.make_private(create=address is None)
    import ray

    quiet = {"namespace": namespace, "log_to_driver": False, "logging_level": "ERROR"}
    raise_if_any(address_mistakes(address))
    if address is None:
        _start(ray.init, quiet)
    else:
        try:
            ray.init(address=address, **quiet)
        except (ray.exceptions.AuthenticationError, ConnectionError, RuntimeError) as error:
            why, mode = one_line(error)[:200], os.environ.get("RAY_AUTH_MODE", "not set")
            raise UserError(
                f"a cluster must let this process in; {address} does not ({why}). Fix: "
                f"RAY_AUTH_MODE (here {mode}) and the token in ~/.ray/auth_token as on the head, "
                "and the head's versions of Python and Ray"
            ) from None
    global _is_ours
    _is_ours, head = address is None, ray.get_runtime_context().gcs_address
    try:
        yield cluster_capacity()
    except Exception as error:
        if isinstance(error, UserError | StorageError) or not _shows_loss(error, head):
            raise
        why = f"{type(error).__name__}: {one_line(error)[:200]}"
        raise ClusterLost(f"Ray is lost ({why})") from error
    finally:
        _is_ours = False
        if not slots_at_work():
            _leave(ours=address is None)


def _start(init: Callable[..., object], quiet: Mapping[str, object]) -> None:
    """Start a Ray of our own with ``ray.init``: on as many cores as this process may use, below a
    folder whose sockets have paths short enough, with a token where it can be written, without the
    user's files in place of libraries."""
    for name, value in FRUGAL.items():
        os.environ.setdefault(name, value)
    if not process.has_usable_home() and not os.environ.get("RAY_AUTH_TOKEN"):
        os.environ.setdefault("RAY_AUTH_TOKEN_PATH", str(process.private_file("auth_token")))
    folder = process.socket_folder()
    if folder is not None:
        fix = "export RAY_TMPDIR=FOLDER, one with a short path"
        raise_if_any(process.folder_mistakes(folder, "Ray's temporary folder", fix))
        folder.mkdir(mode=0o700, exist_ok=True)
        os.environ["RAY_TMPDIR"] = str(folder)
    # Ray tells its workers to look for modules in the directory that it was started from.
    shadowing, here = process.shadowing_names(Path.cwd()), str(process.ROOT)
    if shadowing:
        log.info(f"{', '.join(shadowing)} in this folder: a library has that name, and is used")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        dict.fromkeys([*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), here])
    )
    totals = local_totals()
    # The dashboard's State API would free the resources of a slot whose controller was killed;
    # it takes ten processes and 2 % of a core: the slots give them back themselves.
    with chdir("/") if shadowing else nullcontext():
        init(
            address="local",
            include_dashboard=False,
            num_cpus=int(totals["CPU"]),
            num_gpus=int(totals["GPU"]),
            **quiet,
        )


def is_ours() -> bool:
    """Whether the attached Ray was started by this process, for its run alone."""
    return _is_ours


def _shows_loss(error: BaseException, head: str) -> bool:
    """Whether an error is Ray's own, or its head at ``head`` is gone. One that code of ours raised
    in another process is no loss."""
    import ray

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ray.exceptions.RayTaskError):
            return False
        if isinstance(cause, ray.exceptions.RayError | ConnectionError):
            return True
        cause = cause.__cause__ or cause.__context__
    return not answers(head)


def slots_at_work() -> bool:
    """Whether a slot's thread did not leave in the time that it was given. While one calls Ray,
    Ray must not be shut down: the call would end this process, with an exit code of Ray's own."""
    return any(thread.name.startswith(SLOT_THREAD) for thread in threading.enumerate())


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
    """Whether one of Ray's servers answers at ``HOST:PORT``, not just a port that is open; ``True``
    for an address without a port, and for one that speaks TLS, of which only the port is tried."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return True
    place, answer = (host.strip("[]") or "127.0.0.1", int(port)), b""
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    try:
        with socket.create_connection(place, CONNECT_TIMEOUT_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") not in ("0", ""):
                return True
            connection.sendall(GREETING)
            while len(answer) < FRAME_HEADER_BYTES:
                connection.settimeout(max(0.01, deadline - time.monotonic()))
                part = connection.recv(FRAME_HEADER_BYTES - len(answer))
                if not part:
                    return False
                answer += part
    except (OSError, OverflowError, UnicodeError):
        return False
    return answer[3] == SETTINGS_FRAME


def gone(nodes: Sequence[str]) -> list[str]:
    """Those of ``nodes`` (their ids) that are no longer there: Ray says so, or nobody answers.

    Ray itself notices within half a minute; a worker group may be up again by then.
    """
    addresses = {node.id: node.address for node in alive_nodes()}
    return [
        node
        for node in dict.fromkeys(nodes)
        if node not in addresses or not answers(addresses[node])
    ]


def remove_groups_of(mark_bytes: int) -> int:
    """Give back the placement groups whose bundles ask for so many bytes of memory; how many."""
    import ray
    from ray.util.placement_group import PlacementGroup

    groups = [
        group
        for group in ray.util.placement_group_table().values()
        if group["state"] != "REMOVED"
        and any(bundle.get("memory") == mark_bytes for bundle in group["bundles"].values())
    ]
    for group in groups:
        identity = ray.PlacementGroupID(bytes.fromhex(group["placement_group_id"]))
        ray.util.remove_placement_group(PlacementGroup(identity))
    return len(groups)


def fitting(worker: Mapping[str, float]) -> int:
    """Workers that today's nodes hold when each asks for ``worker``."""
    return running_capacity([node.resources for node in alive_nodes()]).workers(worker)


def ask_each(
    asked: Mapping[Node, Mapping[str, Any]], question: Callable[..., Any], *, timeout_s: float
) -> dict[Node, Any]:
    """What ``question`` returns on each node for the arguments ``asked`` of it, all at once.

    In place of an answer stands the exception that the question raised there, or a
    ``TimeoutError`` for a node that said nothing within ``timeout_s`` seconds.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not asked:
        return {}
    # By value, so that a node that lacks this project can still tell what it holds.
    module = sys.modules[question.__module__]
    ray.cloudpickle.register_pickle_by_value(module)
    try:
        task = ray.remote(question)
        waiting = {
            task.options(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
            ).remote(**arguments): node
            for node, arguments in asked.items()
        }
    finally:
        ray.cloudpickle.unregister_pickle_by_value(module)
    ready, silent = ray.wait(list(waiting), num_returns=len(waiting), timeout=timeout_s)
    by_node: dict[Node, Any] = {}
    for answer in ready:
        try:
            by_node[waiting[answer]] = ray.get(answer)
        except ray.exceptions.RayError as error:
            by_node[waiting[answer]] = getattr(error, "cause", None) or error
    for answer in silent:
        ray.cancel(answer, force=True)
        by_node[waiting[answer]] = TimeoutError(f"no answer within {timeout_s:g} s")
    return by_node


def dashboard() -> str | None:
    """``HOST:PORT`` of the cluster's dashboard as its head tells it; ``None`` without one."""
    import ray

    context = ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level="ERROR")
    address: str | None = context.address_info["webui_url"]
    return address or None


def refuse_other_versions() -> None:
    """Raise ``UserError`` with a line for each library that a node holds in another version than
    this process. A node that does not answer is only named: its workers check themselves."""
    mistakes = []
    questions: dict[Node, dict[str, Any]] = {node: {} for node in alive_nodes()}
    for node, answer in ask_each(questions, installed, timeout_s=VERSIONS_TIMEOUT_S).items():
        if isinstance(answer, Exception):
            why = one_line(answer)[:200]
            log.warning(f"warning: node {node.name} did not tell its versions: {why}")
        else:
            mistakes += differences(installed(), answer, node.name)
    raise_if_any(mistakes)
