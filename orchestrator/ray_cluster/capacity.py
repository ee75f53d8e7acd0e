"""What a cluster can ever hold: resources, and how they are cut into nodes. No ray.

What the autoscaler of the attached cluster may start: read where it reads it, on the head.

Ray keeps the maxima in no place of its own: its autoscalers read them from the cluster file that
the head was started with or, on Kubernetes, from the ``RayCluster`` resource.
"""

from __future__ import annotations

import json
import logging
import math
import os
import ssl
import urllib.request
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
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # of the pod, in Kubernetes

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
    if "KUBERNETES_SERVICE_HOST" in os.environ and (ACCOUNT / "namespace").exists():
        namespace = (ACCOUNT / "namespace").read_text().strip()
        return _ray_cluster(os.environ.get("RAY_CLUSTER_NAME"), namespace)
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
    """What the ``RayCluster`` of this name allows. The pod of the head may read it where KubeRay
    runs the autoscaler beside it."""
    if not name:
        return None
    host, port = (os.environ[f"KUBERNETES_SERVICE_{part}"] for part in ("HOST", "PORT"))
    version = os.environ.get("KUBERAY_CRD_VER", "v1")
    try:
        token = (ACCOUNT / "token").read_text()
        request = urllib.request.Request(
            f"https://{f'[{host}]' if ':' in host else host}:{port}/apis/ray.io/{version}"
            f"/namespaces/{namespace}/rayclusters/{name}",
            headers={"Authorization": f"Bearer {token}"},
        )
        trusted = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
        with urllib.request.urlopen(request, timeout=CONFIG_PATIENCE_S, context=trusted) as answer:
            return of_ray_cluster(json.load(answer))
    except (OSError, ValueError, KeyError) as error:
        log.warning("the RayCluster %s cannot be read (%s): today's nodes count", name, error)
        return None


def of_ray_cluster(resource: Mapping[str, Any]) -> dict[str, Any] | None:
    """A cluster file's form of a ``RayCluster`` (CPUs and GPUs); ``None`` where it is not
    scaled."""
    spec = resource["spec"]
    if not spec.get("enableInTreeAutoscaling"):
        return None
    types = {
        group["groupName"]: {
            "resources": _pod_resources(group),
            "max_workers": int(group.get("maxReplicas", 0)) * int(group.get("numOfHosts", 1)),
        }
        for group in spec.get("workerGroupSpecs", [])
    }
    return {"available_node_types": types}


def _pod_resources(group: Mapping[str, Any]) -> dict[str, float]:
    """CPUs and GPUs that Ray announces for a pod: as its start parameters say, else what its
    first container may use."""
    parameters = group.get("rayStartParams") or {}
    wanted = group["template"]["spec"]["containers"][0].get("resources") or {}
    held = {**(wanted.get("requests") or {}), **(wanted.get("limits") or {})}
    gpus = [amount for name, amount in held.items() if name.endswith("/gpu")]
    cpu = parameters.get("num-cpus", held.get("cpu", 0))
    gpu = parameters.get("num-gpus", sum(map(_quantity, gpus)))
    return {"CPU": math.ceil(_quantity(cpu)), "GPU": _quantity(gpu)}


def _quantity(amount: str | float) -> float:
    """A Kubernetes quantity of processors: ``500m`` is half of one."""
    text = str(amount)
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)
