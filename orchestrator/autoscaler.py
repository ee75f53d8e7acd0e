"""What the autoscaler of the attached cluster may start: read where it reads it, on the head.

Ray keeps the maxima in no place of its own: its autoscalers read them from the cluster file that
the head was started with or, on Kubernetes, from the ``RayCluster`` resource.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from orchestrator.room import HEAD, Room, running_room, scaled_room

CONFIG_PATIENCE_S = 30.0
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

log = logging.getLogger(__name__)


def room() -> Room:
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
