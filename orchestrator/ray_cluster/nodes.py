"""The nodes of the cluster that this process is attached to, all asked the same at once."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.ray_cluster.attach import answers
from orchestrator.ray_cluster.capacity import HEAD, running_room
from trainables.errors import one_line, raise_if_any
from trainables.versions import differences, installed

log = logging.getLogger(__name__)

VERSIONS_TIMEOUT_S = 30.0  # a node starts a process to answer: a second where it is idle


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node that is alive; ``gpus`` is what it announces to Ray."""

    id: str
    name: str
    gpus: float
    is_head: bool


def alive() -> list[Node]:
    """The nodes of the cluster that are alive, the head first."""
    found = [
        Node(
            id=one["NodeID"],
            name=f"{one['NodeManagerHostname']} ({one['NodeManagerAddress']}, {one['NodeID'][:6]})",
            gpus=one["Resources"].get("GPU", 0.0),
            is_head=HEAD in one["Resources"],
        )
        for one in ray.nodes()
        if one["Alive"]
    ]
    return sorted(found, key=lambda node: not node.is_head)


def gone(nodes: Sequence[str]) -> list[str]:
    """Those of ``nodes`` (their ids) that are no longer there: Ray says so, or nobody answers.

    Ray itself notices within half a minute; a worker group may be up again by then.
    """
    standing = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    return [
        node_id
        for node_id in dict.fromkeys(nodes)
        if (node := standing.get(node_id)) is None
        or not answers(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}")
    ]


def fitting(worker: Mapping[str, float]) -> int:
    """Workers that today's nodes hold when each asks for ``worker``."""
    running = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return running_room(running).workers(worker)


def ask_all(
    nodes: Iterable[Node], question: Callable[..., Any], *, timeout_s: float
) -> dict[Node, Any]:
    """:func:`ask_each` with a question that is the same for all."""
    return ask_each({node: {} for node in nodes}, question, timeout_s=timeout_s)


def ask_each(
    asked: Mapping[Node, Mapping[str, Any]], question: Callable[..., Any], *, timeout_s: float
) -> dict[Node, Any]:
    """What ``question`` returns on each node for the arguments ``asked`` of it, all at once.

    In place of an answer stands the exception that the question raised there, or a
    ``TimeoutError`` for a node that said nothing within ``timeout_s`` seconds.
    """
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
    told, silent = ray.wait(list(waiting), num_returns=len(waiting), timeout=timeout_s)
    answers: dict[Node, Any] = {}
    for answer in told:
        try:
            answers[waiting[answer]] = ray.get(answer)
        except ray.exceptions.RayError as error:
            answers[waiting[answer]] = getattr(error, "cause", None) or error
    for answer in silent:
        ray.cancel(answer, force=True)
        answers[waiting[answer]] = TimeoutError(f"no answer within {timeout_s:g} s")
    return answers


def dashboard() -> str | None:
    """``HOST:PORT`` of the cluster's dashboard as its head tells it; ``None`` without one."""
    there = ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level="ERROR")
    address: str | None = there.address_info["webui_url"]
    return address or None


def refuse_other_versions() -> None:
    """Raise ``UserError`` with a line for each library that a node holds in another version than
    this process. A node that does not answer is only named: its workers check themselves."""
    here, mistakes = installed(), []
    answers = ask_all(alive(), installed, timeout_s=VERSIONS_TIMEOUT_S)
    for node, answer in answers.items():
        if isinstance(answer, Exception):
            why = one_line(answer)[:200]
            log.warning(f"warning: node {node.name} did not tell its versions: {why}")
        else:
            mistakes += differences(here, answer, node.name)
    raise_if_any(mistakes)
