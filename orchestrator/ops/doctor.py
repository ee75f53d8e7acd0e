"""The cluster's part of ``orchestrator doctor``: every node asked at once, with a bound.

What ``orchestrator doctor`` has a node look at; these functions run on the node.

They travel by value and import what they need there, so that a node that lacks it can say so.

What ``orchestrator doctor`` looks at on this machine, and what it makes of the cluster.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from orchestrator.ray_cluster import attach, nodes
from orchestrator.ray_cluster.nodes import Node
from trainables.config import BackboneSpec, DataSpec
from trainables.errors import UserError, one_line
from trainables.storage.object_storage import is_remote
from trainables.versions import differences, installed

TORCH_TIMEOUT_S = 60.0
STORAGE_PATIENCE_S = 5.0
HTTP_TIMEOUT_S = 5.0


def look(
    name: str, *, storage: str, probe: str, gpus: float, backbones: list[dict[str, Any]]
) -> dict[str, Any]:
    """Storage, GPUs and weights as this node has them; ``problems`` are one line each.

    A file ``probe`` is left in ``storage``, with the node's ``name`` in it, for the head to read;
    ``made`` names the folders that had to be made for it.
    """
    told: dict[str, Any] = {"torch_gpus": None, "wrote": False, "made": [], "problems": []}
    try:
        from trainables.backbones import check_weights
        from trainables.config import BackboneSpec
        from trainables.storage import object_storage
    except ImportError as error:
        told["problems"].append(
            f"every node must hold this project and what it needs; node {name} does not "
            f"({error}). Fix: put it into the image, or run as a job with --working-dir"
        )
        return told
    try:
        told["made"] = make_folder(storage)
        object_storage.write_bytes(
            f"{storage}/{probe}", name.encode(), patience_s=STORAGE_PATIENCE_S
        )
        told["wrote"] = True
    except (OSError, RuntimeError) as error:
        told["problems"].append(
            f"every node must write to --storage; node {name} cannot write to {storage} "
            f"({' '.join(str(error).split())}). Fix: mount it there and let Ray's user write, or "
            "--storage s3://BUCKET/PREFIX with credentials on every node"
        )
    if gpus:
        told["torch_gpus"] = torch_gpus()
        told["problems"] += gpu_mistakes(f"node {name}", gpus, told["torch_gpus"])
    for backbone in backbones:
        missing = check_weights(BackboneSpec(**backbone))
        told["problems"] += [f"node {name}: {line}" for line in missing]
    return told


def gpu_mistakes(where: str, announced: float, seen: int | None) -> list[str]:
    """One line where torch sees fewer GPUs than are announced."""
    if (seen or 0) >= announced:
        return []
    return [
        f"torch must see all GPUs; {where} announces {announced:g}, torch sees {seen or 'none'} "
        "there. Fix: run nvidia-smi there, use an image with a CUDA build of torch, or start "
        f"that node with --num-gpus={seen or 0}"
    ]


def make_folder(storage: str) -> list[str]:
    """Make a local ``storage`` folder; those folders that were not there, the innermost first."""
    if not storage.startswith("file://"):
        return []
    place = Path(storage.removeprefix("file://"))
    missing = [str(one) for one in (place, *place.parents) if not one.exists()]
    place.mkdir(parents=True, exist_ok=True)
    return missing


def torch_gpus() -> int | None:
    """GPUs that torch sees on this node, hidden from this task or not; ``None``: it cannot say."""
    environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TORCH_TIMEOUT_S
        )
        return int(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


def look_from_head(
    *, storage: str, probes: dict[str, str], tracking_uri: str, dashboard: str | None
) -> dict[str, Any]:
    """What only the head can tell: which ``probes`` (file -> node) it reads, whether the tracking
    server answers it, and how its dashboard answers a stranger (an HTTP status)."""
    from orchestrator.tracking.store import check
    from trainables.storage import object_storage

    unseen = []
    for probe, name in probes.items():
        try:
            read = object_storage.read_bytes(f"{storage}/{probe}").decode()
        except (OSError, RuntimeError):
            read = ""
        if read != name:
            unseen.append(name)
    return {
        "unseen": unseen,
        "tracking": check(tracking_uri),
        "dashboard_status": status_of(dashboard) if dashboard else None,
    }


def status_of(dashboard: str) -> int | None:
    """The HTTP status that a request without a token gets; ``None`` where nothing answers."""
    try:
        url = f"http://{dashboard}/api/version"
        with urllib.request.urlopen(url, timeout=HTTP_TIMEOUT_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refusal:
        return refusal.code
    except OSError:
        return None


def clear(*, storage: str, probes: list[str], made: list[str]) -> None:
    """Remove the probes, and the folders that were made for them where they are empty."""
    from trainables.storage import object_storage

    for probe in probes:
        object_storage.delete_file(f"{storage}/{probe}")
    for folder in made:
        try:
            Path(folder).rmdir()
        except OSError:
            return


NODE_TIMEOUT_S = 90.0  # torch is loaded where there are GPUs, for the first time perhaps
HEAD_TIMEOUT_S = 60.0
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
STATE = {True: "token", False: "disabled", None: "missing"}


def examine_cluster(
    *, storage: str, tracking_uri: str, backbones: Sequence[BackboneSpec]
) -> dict[str, Any]:
    """Attach to the cluster that Ray knows of, look, let go: ``nodes``, ``dashboard``, ``auth``
    and ``problems``, each of these one line."""
    try:
        with attach.attached(namespace="doctor"):
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
            look,
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
                dict.fromkeys(head, asked), look_from_head, timeout_s=HEAD_TIMEOUT_S
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
            nodes.ask_each(asked, clear, timeout_s=HEAD_TIMEOUT_S)


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


PINS = Path(__file__).parents[1] / "constraints.txt"  # beside a checkout, not in a wheel


def examine(
    storage: str, tracking_uri: str | None, backbones: Sequence[BackboneSpec], *, local: bool
) -> dict[str, Any]:
    """Facts as JSON. ``problems`` keep a run from its end, ``warnings`` may; one line each.

    The cluster that Ray knows of is looked at node by node, unless ``local``.
    """
    from orchestrator.launch import plan
    from orchestrator.launch.validation import storage_mistakes
    from orchestrator.ledger.session import environment
    from orchestrator.ray_cluster import attach
    from orchestrator.tracking import store
    from orchestrator.tracking.store import age_mistakes
    from trainables.backbones import check_weights
    from trainables.data.store import default_folder

    machine, total = environment(), plan.local_totals()
    uri = tracking_uri or store.default_uri(storage)
    address, folder = None if local else attach.known_address(), default_folder(DataSpec())
    problems = storage_mistakes(storage)
    problems += store.check(uri) or age_mistakes(uri)
    problems += [line for one in backbones for line in check_weights(one)]
    if total["GPU"]:
        problems += gpu_mistakes("this machine", total["GPU"], torch_gpus())
    facts = {
        "python": machine.python,
        "platform": machine.platform,
        "processor": machine.processor,
        "cpus": int(total["CPU"]),
        "gpus": int(total["GPU"]),
        "memory_gb": machine.memory_gb,
        "cluster": address,
        "tracking": uri,
        "storage": storage if is_remote(storage) else str(Path(storage).absolute()),
        "storage_free_gb": None if is_remote(storage) else _free_gb(Path(storage)),
        "data_folder": str(folder),
        "data_free_gb": _free_gb(folder),
        "versions": machine.versions,
        "warnings": pin_mistakes(PINS),
    }
    if address is not None:
        found = examine_cluster(storage=storage, tracking_uri=uri, backbones=backbones)
        problems += found.pop("problems")
        facts |= found
    return {**facts, "problems": list(dict.fromkeys(problems))}


def pin_mistakes(pins: Path) -> list[str]:
    """What is installed here in another version than the one this project was tested with."""
    if not pins.is_file():
        return []
    found = []
    for line in pins.read_text(encoding="utf-8").splitlines():
        name, _, pinned = line.partition("==")
        if not pinned or name.startswith("#"):
            continue
        try:
            here = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            continue  # of the tests, or of another platform
        if here != pinned:
            found.append(
                f"{name} is {here} here; this project was tested with {pinned}. "
                f"Fix: pip install -c {pins.name} {name}"
            )
    return found


def _free_gb(folder: Path) -> float:
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return round(shutil.disk_usage(place).free / 1e9, 1)
