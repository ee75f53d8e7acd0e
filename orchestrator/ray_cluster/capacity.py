"""What a cluster can ever hold: resources, and how they are cut into nodes. No ray.

What the autoscaler of the attached cluster may start: read where it reads it, on the head.

Ray keeps the maxima in no place of its own: its autoscalers read them from the cluster file that
the head was started with or, on Kubernetes, from the ``RayCluster`` resource.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Resources = Mapping[str, float]

HEAD = "node:__internal_head__"  # a resource that the head node alone has


@dataclass(frozen=True, kw_only=True)
class NodeKind:
    """``most`` nodes of equal ``resources``. ``scaled``: an autoscaler starts and stops them."""

    name: str
    resources: Resources
    most: int = 1
    scaled: bool = False

    def __str__(self) -> str:
        held = [f"{self.resources[n]:g} {n}" for n in ("CPU", "GPU") if self.resources.get(n)]
        return f"{self.most} {self.name} of {' + '.join(held) or 'no CPU or GPU'}"


def _amount_of(name: str) -> Callable[[NodeKind], float]:
    return lambda kind: kind.resources.get(name, 0.0)


class ClusterCapacity(Mapping[str, float]):
    """The most of each resource there can be at once, and the ``kinds`` of nodes that hold it.

    Of those that are scaled no more than ``most_scaled`` run at once; ``None``: as many as their
    kinds allow.
    """

    def __init__(self, kinds: Sequence[NodeKind], most_scaled: int | None = None) -> None:
        self.kinds, self._most_scaled = tuple(kinds), most_scaled
        names = {name for kind in self.kinds for name in kind.resources}
        self._totals = {name: self._most(_amount_of(name)) for name in sorted(names)}

    def __getitem__(self, name: str) -> float:
        return self._totals[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._totals)

    def __len__(self) -> int:
        return len(self._totals)

    def workers(self, asked: Resources) -> int:
        """Workers that fit at once when each of them asks for ``asked`` on one node."""
        return int(self._most(lambda kind: _times(kind.resources, asked)))

    def _most(self, value: Callable[[NodeKind], float]) -> float:
        left = math.inf if self._most_scaled is None else self._most_scaled
        total = 0.0
        for kind in sorted(self.kinds, key=value, reverse=True):
            count = min(kind.most, left) if kind.scaled else kind.most
            left -= count if kind.scaled else 0
            total += count * value(kind)
        return total


def room_of(there: Resources) -> ClusterCapacity:
    """``there`` itself, or where it is not cut into nodes, one node of it."""
    return (
        there
        if isinstance(there, ClusterCapacity)
        else ClusterCapacity([NodeKind(name="node", resources=there)])
    )


def scaled_room(
    running: Sequence[Resources], head: Resources, config: Mapping[str, Any]
) -> ClusterCapacity:
    """What an autoscaler's ``config`` allows beside the ``head``; what is ``running`` where that
    holds more, since somebody added nodes by hand. ``config`` is in the form of Ray's cluster
    files, which KubeRay's own autoscaler derives from its resource as well."""
    types = config.get("available_node_types", {})
    most = int(config.get("max_workers", sum(int(t.get("max_workers", 0)) for t in types.values())))
    kinds = [
        NodeKind(
            name=name,
            resources={key: float(value) for key, value in one.get("resources", {}).items()},
            most=min(int(one.get("max_workers", most)), most),
            scaled=True,
        )
        for name, one in types.items()
        if name != config.get("head_node_type")
    ]
    allowed = ClusterCapacity([NodeKind(name="head", resources=head), *kinds], most)
    today = running_room(running)
    by_hand = any(today.get(name, 0.0) > allowed.get(name, 0.0) for name in ("CPU", "GPU"))
    return today if by_hand else allowed


def running_room(running: Sequence[Resources]) -> ClusterCapacity:
    """The nodes that are there, and no others."""
    return ClusterCapacity([NodeKind(name="node", resources=one) for one in running])


def _times(there: Resources, asked: Resources) -> float:
    return min(
        math.floor(there.get(name, 0.0) / amount + 1e-9)
        for name, amount in asked.items()
        if amount > 0
    )


CONFIG_PATIENCE_S = 30.0
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

log = logging.getLogger(__name__)


def room() -> ClusterCapacity:
    """The most that the cluster can ever hold; what it holds today where nothing scales it."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    running = [node["Resources"] for node in nodes]
    heads = [node for node in nodes if HEAD in node["Resources"]]
    config = None
    if heads:
        context = ray.get_runtime_context()
        address = context.gcs_address
        if heads[0]["NodeID"] == context.get_node_id():
            config = config_here(address)
        else:
            there = ray.remote(num_cpus=0, resources={HEAD: 0.001})(config_here)
            config = ray.get(there.remote(address), timeout=CONFIG_PATIENCE_S)
    if config is None:
        return running_room(running)
    return scaled_room(running, heads[0]["Resources"], config)


def config_here(gcs_address: str) -> dict[str, Any] | None:
    """The configuration of the autoscaler beside this process, in the form of a cluster file;
    ``None`` where there is none. Only the head has it."""
    path = _cluster_file(gcs_address)
    if path is not None:
        import yaml

        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    if "KUBERNETES_SERVICE_HOST" in os.environ and NAMESPACE_FILE.exists():
        return _ray_cluster(os.environ.get("RAY_CLUSTER_NAME"), NAMESPACE_FILE.read_text().strip())
    return None


def _cluster_file(gcs_address: str) -> Path | None:
    """The file that the head's monitor process was given. The port tells Rays of one machine
    apart; its name may be another for this process."""
    import psutil  # Ray brings it along

    port = gcs_address.rpartition(":")[2]
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        told = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
        ours = told.get("--gcs-address", "").rpartition(":")[2] == port
        if ours and "--autoscaling-config" in told:
            return Path(told["--autoscaling-config"]).expanduser()
    return None


def _ray_cluster(name: str | None, namespace: str) -> dict[str, Any] | None:
    """What Ray's autoscaler for Kubernetes makes of its ``RayCluster``. The pod of the head may
    read it where KubeRay runs the autoscaler beside it."""
    if not name:
        return None
    try:
        from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient

        resource = KubernetesHttpApiClient(namespace).get(f"rayclusters/{name}")
    except Exception as error:
        log.warning("the RayCluster %s cannot be read (%s): today's nodes count", name, error)
        return None
    return of_ray_cluster(resource)


def of_ray_cluster(resource: dict[str, Any]) -> dict[str, Any] | None:
    """A cluster file's form of a ``RayCluster``; ``None`` where it is not scaled."""
    from ray.autoscaler._private.kuberay import autoscaling_config

    if not resource["spec"].get("enableInTreeAutoscaling"):
        return None
    return dict(autoscaling_config._derive_autoscaling_config_from_ray_cr(resource))
