"""What a cluster can ever hold: resources, how they are cut into nodes, and slots.

Ray keeps no record of what may still be started: its autoscalers read that from the cluster file
that the head was started with or, on Kubernetes, from the ``RayCluster`` resource, and so does
:func:`cluster_capacity`, on the head.
"""

from __future__ import annotations

import json
import logging
import math
import os
import ssl
import subprocess
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.spec.limits import ResourceSpec
from orchestrator.spec.run import RunSpec

Resources = Mapping[str, float]

HEAD = "node:__internal_head__"  # a resource that the head node alone has
CONFIG_PATIENCE_S = 30.0
CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # of the pod, in Kubernetes

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class NodeKind:
    """``most`` nodes of equal ``resources``. ``scaled``: an autoscaler starts and stops them."""

    name: str
    resources: Resources
    most: int = 1
    scaled: bool = False

    def __str__(self) -> str:
        amounts = [f"{self.resources[n]:g} {n}" for n in ("CPU", "GPU") if self.resources.get(n)]
        return f"{self.most} {self.name} of {' + '.join(amounts) or 'no CPU or GPU'}"


class ClusterCapacity(dict[str, float]):
    """The most of each resource there can be at once, and the ``kinds`` of nodes that hold it.

    Of those that are scaled no more than ``most_scaled`` run at once; ``None``: as many as their
    kinds allow.
    """

    def __init__(self, kinds: Sequence[NodeKind], most_scaled: int | None = None) -> None:
        self.kinds, self.most_scaled = tuple(kinds), most_scaled
        for name in sorted({name for kind in kinds for name in kind.resources}):
            self[name] = self._most([kind.resources.get(name, 0.0) for kind in kinds])

    def workers(self, worker: Resources) -> int:
        """Workers that fit at once, each of which reserves ``worker`` on one node."""
        amounts = [(name, amount) for name, amount in worker.items() if amount > 0]
        on_one_node = [
            min(math.floor(kind.resources.get(n, 0.0) / amount + 1e-9) for n, amount in amounts)
            for kind in self.kinds
        ]
        return int(self._most(on_one_node))

    def _most(self, values: Sequence[float]) -> float:
        """The largest sum of ``values``, each of one node of a kind, in the order of ``kinds``."""
        left = math.inf if self.most_scaled is None else self.most_scaled
        total = 0.0
        for value, kind in sorted(zip(values, self.kinds, strict=True), key=lambda pair: -pair[0]):
            count = min(kind.most, left) if kind.scaled else kind.most
            left -= count if kind.scaled else 0
            total += count * value
        return total


def limits_of_cluster_file(config: Mapping[str, Any]) -> ClusterCapacity:
    """What may be started beside the head, by a file as ``ray up`` takes it."""
    types = config.get("available_node_types", {})
    most_of_all = sum(int(kind.get("max_workers", 0)) for kind in types.values())
    most_nodes = int(config.get("max_workers", most_of_all))
    kinds = [
        NodeKind(
            name=name,
            resources={n: float(amount) for n, amount in kind.get("resources", {}).items()},
            most=min(int(kind.get("max_workers", most_nodes)), most_nodes),
            scaled=True,
        )
        for name, kind in types.items()
        if name != config.get("head_node_type")
    ]
    return ClusterCapacity(kinds, most_nodes)


def limits_of_ray_cluster(resource: Mapping[str, Any]) -> ClusterCapacity | None:
    """CPUs and GPUs that may be started beside the head, by a ``RayCluster``; ``None`` where it is
    not scaled."""
    spec = resource["spec"]
    if not spec.get("enableInTreeAutoscaling"):
        return None
    groups = spec.get("workerGroupSpecs", [])
    return ClusterCapacity(
        [
            NodeKind(
                name=group["groupName"],
                resources=_pod_resources(group),
                most=int(group.get("maxReplicas", 0)) * int(group.get("numOfHosts", 1)),
                scaled=True,
            )
            for group in groups
        ]
    )


def as_capacity(resources: Resources) -> ClusterCapacity:
    """``resources`` itself, or where it is not cut into nodes, one node of it."""
    if isinstance(resources, ClusterCapacity):
        return resources
    return running_capacity([resources])


def running_capacity(running: Sequence[Resources]) -> ClusterCapacity:
    """The nodes that are there, and no others."""
    return ClusterCapacity([NodeKind(name="node", resources=resources) for resources in running])


def scaled_capacity(
    running: Sequence[Resources], head: Resources, limits: ClusterCapacity
) -> ClusterCapacity:
    """What an autoscaler's ``limits`` allow beside the ``head``; what is ``running`` where that
    holds more, since somebody added nodes by hand."""
    kinds = [NodeKind(name="head", resources=head), *limits.kinds]
    allowed, today = ClusterCapacity(kinds, limits.most_scaled), running_capacity(running)
    by_hand = any(today.get(name, 0.0) > allowed.get(name, 0.0) for name in ("CPU", "GPU"))
    return today if by_hand else allowed


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node that is alive; ``address`` is its raylet's ``HOST:PORT``, ``resources`` what it
    announces to Ray."""

    id: str
    name: str
    address: str
    is_head: bool
    resources: Resources = field(compare=False)

    @property
    def gpus(self) -> float:
        """How many it announces."""
        return self.resources.get("GPU", 0.0)


def alive_nodes() -> list[Node]:
    """The nodes of the cluster that are alive, the head first."""
    import ray

    nodes = [
        Node(
            id=node["NodeID"],
            name=f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, "
            f"{node['NodeID'][:6]})",
            address=f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}",
            is_head=HEAD in node["Resources"],
            resources=node["Resources"],
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted(nodes, key=lambda node: not node.is_head)


def cluster_capacity() -> ClusterCapacity:
    """The most that the attached cluster can ever hold; what it holds today where nothing scales
    it."""
    import ray

    nodes = alive_nodes()
    running = [node.resources for node in nodes]
    head = next((node for node in nodes if node.is_head), None)
    if head is None:
        return running_capacity(running)
    context = ray.get_runtime_context()
    if head.id == context.get_node_id():
        limits = limits_here(context.gcs_address)
    else:
        on_head = ray.remote(num_cpus=0, resources={HEAD: 0.001})(limits_here)
        limits = ray.get(on_head.remote(context.gcs_address), timeout=CONFIG_PATIENCE_S)
    if limits is None:
        return running_capacity(running)
    return scaled_capacity(running, head.resources, limits)


def limits_here(gcs_address: str) -> ClusterCapacity | None:
    """Those of the autoscaler beside this process, on the head; ``None`` where there is none."""
    path = _cluster_file(gcs_address)
    if path is not None:
        import yaml

        return limits_of_cluster_file(yaml.safe_load(path.read_text(encoding="utf-8")))
    if "KUBERNETES_SERVICE_HOST" in os.environ and (ACCOUNT / "namespace").exists():
        return _kubernetes_limits((ACCOUNT / "namespace").read_text().strip())
    return None


def _cluster_file(gcs_address: str) -> Path | None:
    """The file that the head's monitor process was given. The port tells Rays of one machine
    apart; its name may be another for this process."""
    import psutil  # Ray brings it along

    port = gcs_address.rpartition(":")[2]
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        flags = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
        same_cluster = flags.get("--gcs-address", "").rpartition(":")[2] == port
        if same_cluster and "--autoscaling-config" in flags:
            return Path(flags["--autoscaling-config"]).expanduser()
    return None


def _kubernetes_limits(namespace: str) -> ClusterCapacity | None:
    """Those of this pod's ``RayCluster``. The pod of the head may read it where KubeRay runs the
    autoscaler beside it."""
    name = os.environ.get("RAY_CLUSTER_NAME")
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
            return limits_of_ray_cluster(json.load(answer))
    except (OSError, ValueError, KeyError) as error:
        log.warning("the RayCluster %s cannot be read (%s): today's nodes count", name, error)
        return None


def _pod_resources(group: Mapping[str, Any]) -> dict[str, float]:
    """CPUs and GPUs that Ray announces for a pod: as its start parameters say, else what its
    first container may use."""
    parameters = group.get("rayStartParams") or {}
    container = group["template"]["spec"]["containers"][0].get("resources") or {}
    usable = {**(container.get("requests") or {}), **(container.get("limits") or {})}
    gpus = sum(_quantity(amount) for name, amount in usable.items() if name.endswith("/gpu"))
    cpu = _quantity(parameters.get("num-cpus", usable.get("cpu", 0)))
    return {"CPU": math.ceil(cpu), "GPU": _quantity(parameters.get("num-gpus", gpus))}


def _quantity(amount: str | float) -> float:
    """A Kubernetes quantity of processors: ``500m`` is half of one."""
    text = str(amount)
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def local_totals() -> dict[str, float]:
    """CPUs and GPUs that processes of ours may use here; a Ray of our own is told so."""
    gpus, visible = 0, os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        gpus = sum(device.strip() not in ("", "-1") for device in visible.split(","))
    else:
        with suppress(OSError, subprocess.SubprocessError):
            listed = subprocess.run(
                ["nvidia-smi", "-L"], capture_output=True, timeout=5, check=False
            )
            gpus = sum(line.startswith(b"GPU ") for line in listed.stdout.splitlines())
    return {"CPU": float(usable_cores()), "GPU": float(gpus)}


def usable_cores(cgroups: Path = CGROUPS, own: Path = OWN_CGROUP) -> int:
    """Cores of this process: no more than its affinity mask has (``taskset``, Slurm), and than each
    control group above it allows (containers, systemd), rounded down, at least one."""
    cores = float(len(os.sched_getaffinity(0)))
    folders = []
    with suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "cpu", "cpu,cpuacct", "cpuacct,cpu"):
                base = cgroups / controllers
                place = base / path.lstrip("/")
                folders += [place, *(p for p in place.parents if p.is_relative_to(base))]
    # Within a container the path may be one of the host's: then its own group is at the top.
    for folder in dict.fromkeys([*folders, cgroups, cgroups / "cpu"]):
        cores = min(cores, _allowed_cores(folder))
    return max(1, math.floor(cores + 1e-9))


def _allowed_cores(folder: Path) -> float:
    """What a control group of version 2 or 1 allows; infinite where it has no limit."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, _, period = (folder / "cpu.max").read_text().partition(" ")
        return math.inf if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota_us = int((folder / "cpu.cfs_quota_us").read_text())
        return (
            quota_us / int((folder / "cpu.cfs_period_us").read_text()) if quota_us > 0 else math.inf
        )
    return math.inf


def worker_asks(resources: ResourceSpec) -> dict[str, float]:
    """What one worker takes, on one node."""
    return {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}


def capacity_mistakes(resources: ResourceSpec, totals: Resources) -> list[str]:
    """Why the smallest slot can never be placed, a line for each resource that is short.

    ``totals`` is a :class:`ClusterCapacity`, or what one machine has.
    """
    least, per_worker = resources.least_workers, worker_asks(resources)
    mistakes = [
        f"a slot must fit the cluster: {least} workers ask for {least * n:g} {kind}, there is "
        f"{totals.get(kind, 0.0):g}. Fix: lower --workers or --{kind.lower()}s-per-worker"
        for kind, n in per_worker.items()
        if least * n > totals.get(kind, 0.0)
    ]
    cluster = as_capacity(totals)
    workers = cluster.workers(per_worker)
    if not mistakes and workers < least:
        asks = " + ".join(f"{n:g} {kind}" for kind, n in per_worker.items() if n)
        mistakes.append(
            f"a worker must fit a node, {least} of them the cluster: a worker asks for {asks}; "
            f"there is room for {workers} ({', '.join(map(str, cluster.kinds))}). "
            "Fix: lower --workers, --gpus-per-worker or --cpus-per-worker"
        )
    return mistakes


def capacity(resources: ResourceSpec, totals: Resources) -> int:
    """Slots that the cluster can ever have at once, and no more than ``max_slots``: of full size,
    and one more of what is left where that is enough for a smaller one."""
    full, rest = divmod(as_capacity(totals).workers(worker_asks(resources)), resources.num_workers)
    slots = full + (rest >= resources.least_workers)
    return min(slots, resources.max_slots) if resources.max_slots else slots


def slots_of(spec: RunSpec, trials: int, totals: Resources) -> int:
    """Slots that a run of so many search trials will have."""
    most = max(trials, spec.final_seeds * spec.searches * len(spec.sweeps))
    return min(most, capacity(spec.sweeps[0].resources, totals))
