"""The cluster's part of ``orchestrator doctor``: every node asked at once, with a bound."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator import cluster, doctor_node, nodes
from orchestrator.nodes import Node
from trainables.assignment import BackboneSpec
from trainables.errors import UserError, one_line
from trainables.installed import differences, installed
from trainables.storage import is_remote

NODE_TIMEOUT_S = 90.0  # torch is loaded where there are GPUs, for the first time perhaps
HEAD_TIMEOUT_S = 60.0
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
STATE = {True: "token", False: "disabled", None: "missing"}


def examine(
    *, storage: str, tracking_uri: str, backbones: Sequence[BackboneSpec]
) -> dict[str, Any]:
    """Attach to the cluster that Ray knows of, look, let go: ``nodes``, ``dashboard``, ``auth``
    and ``problems``, each of these one line."""
    try:
        with cluster.attached(namespace="doctor"):
            return _Examination(storage, tracking_uri, list(backbones)).result()
    except UserError as error:
        return {"nodes": [], "problems": list(error.mistakes)}


class _Examination:
    """Of the attached cluster."""

    def __init__(self, storage: str, tracking_uri: str, backbones: list[BackboneSpec]) -> None:
        uri = storage if is_remote(storage) else f"file://{Path(storage).absolute()}"
        self._storage = uri.rstrip("/")
        self._tracking_uri, self._backbones = tracking_uri, backbones
        self._nodes = nodes.alive()
        self._problems: list[str] = []

    def result(self) -> dict[str, Any]:
        versions = self._versions()
        seen = self._look(list(versions))
        told = [
            {
                "node": node.name,
                "head": node.is_head,
                "gpus": node.gpus,
                "torch_gpus": seen.get(node, {}).get("torch_gpus"),
                "versions": versions.get(node),
                "answers": node in seen,
            }
            for node in self._nodes
        ]
        dashboard = self._head(seen)
        return {"nodes": told, **dashboard, "problems": self._problems}

    def _versions(self) -> dict[Node, dict[str, str | None]]:
        """Of the nodes that answer."""
        mine = installed()
        answers = nodes.ask_all(self._nodes, installed, timeout_s=nodes.VERSIONS_TIMEOUT_S)
        found = {node: said for node, said in answers.items() if isinstance(said, dict)}
        for node, said in answers.items():
            if node in found:
                self._problems += differences(mine, said, node.name)
            else:
                self._silent(node, said)
        return found

    def _silent(self, node: Node, why: Exception) -> None:
        self._problems.append(
            f"node {node.name} does not do what it is asked: {one_line(why)[:200]}. Fix: look at "
            "its raylet.log, or take the node out of the cluster"
        )

    def _look(self, able: list[Node]) -> dict[Node, dict[str, Any]]:
        self._probes = {node: f".doctor-{uuid.uuid4().hex[:8]}" for node in able}
        answers = nodes.ask_each(
            {
                node: {
                    "name": node.name,
                    "storage": self._storage,
                    "probe": self._probes[node],
                    "gpus": node.gpus,
                    "backbones": [asdict(one) for one in self._backbones],
                }
                for node in able
            },
            doctor_node.look,
            timeout_s=NODE_TIMEOUT_S,
        )
        found = {node: said for node, said in answers.items() if isinstance(said, dict)}
        for node, said in answers.items():
            if node in found:
                self._problems += said["problems"]
            else:
                self._silent(node, said)
        return found

    def _head(self, seen: dict[Node, dict[str, Any]]) -> dict[str, Any]:
        """What the head sees of storage, tracking and its dashboard."""
        head = [node for node in seen if node.is_head]
        dashboard = nodes.dashboard()
        wrote = {self._probes[node]: node.name for node, said in seen.items() if said["wrote"]}
        asked = {
            "storage": self._storage,
            "probes": wrote,
            "tracking_uri": self._tracking_uri,
            "dashboard": dashboard,
        }
        try:
            answers = nodes.ask_each(
                dict.fromkeys(head, asked), doctor_node.look_from_head, timeout_s=HEAD_TIMEOUT_S
            )
        finally:
            self._clear(seen)
        status = None
        for node, said in answers.items():
            if not isinstance(said, dict):
                self._silent(node, said)
                continue
            status = said["dashboard_status"]
            self._problems += [_not_shared(name, self._storage) for name in said["unseen"]]
            self._problems += [f"from the head: {line}" for line in said["tracking"]]
        token = None if status is None else status in (401, 403)
        self._problems += auth_mistakes(dashboard, token)
        return {"dashboard": dashboard, "auth": STATE[token]}

    def _clear(self, seen: dict[Node, dict[str, Any]]) -> None:
        """On each node, because a folder that is not shared is cleared by nobody else; folders
        once all probes in them are gone."""
        rounds: list[dict[Node, dict[str, Any]]] = [
            {node: {"probes": [self._probes[node]], "made": []} for node in seen},
            {node: {"probes": [], "made": said["made"]} for node, said in seen.items()},
        ]
        for one in rounds:
            asked = {
                node: {**what, "storage": self._storage}
                for node, what in one.items()
                if what["probes"] or what["made"]
            }
            nodes.ask_each(asked, doctor_node.clear, timeout_s=HEAD_TIMEOUT_S)


def auth_mistakes(dashboard: str | None, token: bool | None) -> list[str]:
    """What is wrong with who may use the cluster; ``token``: whether it asks for one, ``None``
    where its dashboard does not answer."""
    if dashboard is None or token is None:
        return []
    found = []
    host, mine = dashboard.rpartition(":")[0], os.environ.get("RAY_AUTH_MODE", "").lower()
    if not token and host not in LOOPBACK:
        found.append(
            f"a dashboard without tokens must be on loopback; {dashboard} runs anyone's code. "
            "Fix: start the head with RAY_AUTH_MODE=token, or --dashboard-host=127.0.0.1"
        )
    if mine == "token" and not token:
        found.append(
            "client and cluster must agree on tokens; RAY_AUTH_MODE is token here, the cluster "
            "asks for none. Fix: start head and nodes with RAY_AUTH_MODE=token"
        )
    return found


def _not_shared(node: str, storage: str) -> str:
    return (
        f"every node must share --storage; the head does not see what node {node} wrote to "
        f"{storage}. Fix: a folder mounted on all nodes, or --storage s3://BUCKET/PREFIX"
    )
