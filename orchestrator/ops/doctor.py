"""``orchestrator doctor``: what this machine and each node of the cluster have, and what is wrong.

The nodes are asked all at once, with a bound. ``inspect_node``, ``inspect_from_head`` and
``remove_probe`` run there: they travel by value and import what they need there, so that a node
that lacks it can say so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.ray_cluster import attach
from orchestrator.ray_cluster.capacity import Node, alive_nodes, local_totals
from orchestrator.ray_cluster.token import token_file, token_warnings
from trainables.config import BackboneSpec, DataSpec
from trainables.errors import collected, one_line
from trainables.storage.object_storage import is_remote
from trainables.versions import differences, installed

TORCH_TIMEOUT_S = 60.0
STORAGE_PATIENCE_S = 5.0
HTTP_TIMEOUT_S = 5.0
NODE_TIMEOUT_S = 90.0  # torch is loaded where there are GPUs, for the first time perhaps
HEAD_TIMEOUT_S = 60.0
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
AUTH = {True: "token", False: "disabled", None: "missing"}  # whether it asks for a token
PINS = Path(__file__).parents[2] / "constraints.txt"  # beside a checkout, not in a wheel

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """A node; ``gpus`` is what it announces to Ray. ``None`` where it does not say."""

    node: str
    head: bool
    gpus: float
    torch_gpus: int | None
    versions: Mapping[str, str | None] | None
    answers: bool


@dataclass(frozen=True, kw_only=True)
class Findings:
    """``facts`` of this machine and of the cluster, by the names that they are printed under;
    ``nodes`` is ``None`` without a cluster. ``problems`` keep a run from its end, ``warnings`` may;
    one line each."""

    facts: Mapping[str, object]
    versions: Mapping[str, str | None]
    nodes: list[NodeFacts] | None
    warnings: list[str]
    problems: list[str]

    def as_dict(self) -> dict[str, Any]:
        """``doctor --json``, schema 1."""
        document = asdict(self)
        if self.nodes is None:
            del document["nodes"]
        return {**document.pop("facts"), **document}


@dataclass(frozen=True, kw_only=True)
class NodeAnswer:
    """What a node says: whether its probe is in the storage, the GPUs that torch sees there and,
    of the head, the HTTP status that a stranger gets from its dashboard."""

    wrote: bool = False
    torch_gpus: int | None = None
    dashboard_status: int | None = None
    problems: tuple[str, ...] = ()


def inspect_node(
    name: str, *, storage: str, probe: str, gpus: float, backbones: Sequence[Mapping[str, Any]]
) -> NodeAnswer:
    """Storage, GPUs and weights as this node has them.

    A file ``probe`` is left in ``storage``, with the node's ``name`` in it, for the head to read.
    """
    try:
        from trainables.backbones import check_weights
        from trainables.config import BackboneSpec
        from trainables.storage import object_storage
    except ImportError as error:
        return NodeAnswer(
            problems=(
                f"every node must hold this project and what it needs; node {name} does not "
                f"({error}). Fix: put it into the image, or run as a job with --working-dir",
            )
        )
    problems: list[str] = []
    try:
        place = probe_place(storage, probe)
        object_storage.write_bytes(place, name.encode(), patience_s=STORAGE_PATIENCE_S)
    except (OSError, RuntimeError) as error:
        problems.append(
            f"every node must write to --storage; node {name} cannot write to {storage} "
            f"({' '.join(str(error).split())}). Fix: mount it there and let Ray's user write, or "
            "--storage s3://BUCKET/PREFIX with credentials on every node"
        )
    wrote, visible = not problems, torch_gpus() if gpus else None
    problems += gpu_mistakes(f"node {name}", gpus, visible)
    for backbone in backbones:
        problems += [f"node {name}: {line}" for line in check_weights(BackboneSpec(**backbone))]
    return NodeAnswer(torch_gpus=visible, wrote=wrote, problems=tuple(problems))


def gpu_mistakes(where: str, announced: float, visible: int | None) -> list[str]:
    """One line where torch sees fewer GPUs than are announced."""
    if (visible or 0) >= announced:
        return []
    return [
        f"torch must see all GPUs; {where} announces {announced:g}, torch sees {visible or 'none'} "
        "there. Fix: run nvidia-smi there, use an image with a CUDA build of torch, or start "
        f"that node with --num-gpus={visible or 0}"
    ]


def probe_place(storage: str, probe: str) -> str:
    """Where a probe for ``storage`` lies: in the nearest folder that there is already."""
    if not storage.startswith("file://"):
        return f"{storage}/{probe}"
    return f"file://{existing(Path(storage.removeprefix('file://'))) / probe}"


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def torch_gpus() -> int | None:
    """GPUs that torch sees on this node, hidden from this task or not; ``None``: it cannot say."""
    environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    try:
        process = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TORCH_TIMEOUT_S
        )
        return int(process.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


def inspect_from_head(
    *, storage: str, probes: Mapping[str, str], tracking_uri: str, dashboard: str | None
) -> NodeAnswer:
    """What only the head can tell, of the tracking server too; ``probes`` name the node that wrote
    each."""
    from orchestrator.tracking.store import check
    from trainables.storage import object_storage

    problems = []
    for probe, name in probes.items():
        content = ""
        with suppress(OSError, RuntimeError):
            content = object_storage.read_bytes(probe_place(storage, probe)).decode()
        if content != name:
            problems.append(
                f"every node must share --storage; the head does not see what node {name} wrote "
                f"to {storage}. Fix: a folder mounted on all nodes, or --storage s3://BUCKET/PREFIX"
            )
    problems += [f"from the head: {line}" for line in check(tracking_uri)]
    status = http_status(dashboard) if dashboard else None
    return NodeAnswer(dashboard_status=status, problems=tuple(problems))


def http_status(dashboard: str) -> int | None:
    """The HTTP status that a request without a token gets; ``None`` where nothing answers."""
    try:
        url = f"http://{dashboard}/api/version"
        with urllib.request.urlopen(url, timeout=HTTP_TIMEOUT_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refusal:
        return refusal.code
    except OSError:
        return None


def remove_probe(*, storage: str, probe: str) -> None:
    """On each node, because a folder that is not shared is cleaned by nobody else."""
    from trainables.storage import object_storage

    object_storage.delete_file(probe_place(storage, probe))


def examine_cluster(
    storage: str, tracking_uri: str, backbones: Sequence[BackboneSpec], problems: list[str]
) -> tuple[dict[str, str | None], list[NodeFacts]]:
    """Of the attached cluster its dashboard, whether that asks for a token, and the nodes; what is
    wrong is added to ``problems``, one line each."""
    uri = storage if is_remote(storage) else f"file://{Path(storage).absolute()}"
    shared = {"storage": uri.rstrip("/")}
    everyone = alive_nodes()
    unasked: dict[Node, dict[str, Any]] = {node: {} for node in everyone}
    versions = _ask(installed, unasked, attach.VERSIONS_TIMEOUT_S, problems)
    for node, node_versions in versions.items():
        problems += differences(installed(), node_versions, node.name)
    probes = {node: f".doctor-{uuid.uuid4().hex[:8]}" for node in versions}
    specs = [asdict(backbone) for backbone in backbones]
    arguments = {
        node: {**shared, "name": node.name, "probe": probe, "gpus": node.gpus, "backbones": specs}
        for node, probe in probes.items()
    }
    answers = _ask(inspect_node, arguments, NODE_TIMEOUT_S, problems)
    written = {probes[node]: node.name for node, answer in answers.items() if answer.wrote}
    dashboard = attach.dashboard()
    question = {"probes": written, "tracking_uri": tracking_uri, "dashboard": dashboard}
    try:
        head = {node: {**shared, **question} for node in answers if node.is_head}
        heads = _ask(inspect_from_head, head, HEAD_TIMEOUT_S, problems)
    finally:
        leftovers = {node: {**shared, "probe": probes[node]} for node in answers}
        attach.ask_each(leftovers, remove_probe, timeout_s=HEAD_TIMEOUT_S)
    status = next((answer.dashboard_status for answer in heads.values()), None)
    asks_token = None if status is None else status in (401, 403)
    problems += auth_mistakes(dashboard, asks_token)
    nodes = [
        NodeFacts(
            node=node.name,
            head=node.is_head,
            gpus=node.gpus,
            torch_gpus=answers[node].torch_gpus if node in answers else None,
            versions=versions.get(node),
            answers=node in answers,
        )
        for node in everyone
    ]
    return {"dashboard": dashboard, "auth": AUTH[asks_token]}, nodes


def _ask(
    question: Callable[..., Answer],
    asked: Mapping[Node, Mapping[str, Any]],
    timeout_s: float,
    problems: list[str],
) -> dict[Node, Answer]:
    """The answers of those nodes that answer; the others are ``problems``, as is what they name."""
    answers = {}
    for node, answer in attach.ask_each(asked, question, timeout_s=timeout_s).items():
        if isinstance(answer, Exception):
            problems.append(
                f"node {node.name} does not do what it is asked: {one_line(answer)[:200]}. Fix: "
                "look at its raylet.log, or take the node out of the cluster"
            )
        else:
            answers[node] = answer
            problems += getattr(answer, "problems", ())
    return answers


def auth_mistakes(dashboard: str | None, asks_token: bool | None) -> list[str]:
    """What is wrong with who may use the cluster; ``asks_token`` is ``None`` where its dashboard
    does not answer."""
    if dashboard is None or asks_token is None:
        return []
    problems = []
    host, mode = dashboard.rpartition(":")[0], os.environ.get("RAY_AUTH_MODE", "").lower()
    if not asks_token and host not in LOOPBACK:
        problems.append(
            f"a dashboard without tokens must be on loopback; {dashboard} runs anyone's code. "
            "Fix: start the head with RAY_AUTH_MODE=token, or --dashboard-host=127.0.0.1"
        )
    if mode == "token" and not asks_token:
        problems.append(
            "client and cluster must agree on tokens; RAY_AUTH_MODE is token here, the cluster "
            "asks for none. Fix: start head and nodes with RAY_AUTH_MODE=token"
        )
    return problems


def examine(
    storage: str, tracking_uri: str | None, backbones: Sequence[BackboneSpec], *, local: bool
) -> Findings:
    """This machine and, unless ``local``, the cluster that Ray knows of, node by node."""
    from orchestrator.launch.validation import storage_mistakes
    from orchestrator.ledger.session import environment
    from orchestrator.tracking import store
    from trainables.backbones import check_weights
    from trainables.data.store import default_folder

    machine, total = environment(), local_totals()
    uri = tracking_uri or store.default_uri(storage)
    address, folder = None if local else attach.known_address(), default_folder(DataSpec())
    problems = storage_mistakes(storage)
    problems += store.can_record(uri) or store.age_mistakes(uri)
    problems += [line for backbone in backbones for line in check_weights(backbone)]
    if total["GPU"]:
        problems += gpu_mistakes("this machine", total["GPU"], torch_gpus())
    warnings = token_warnings() + pin_mistakes(PINS)  # attaching takes the token's rights away
    facts = {
        "python": machine.python,
        "platform": machine.platform,
        "processor": machine.processor,
        "cpus": int(total["CPU"]),
        "gpus": int(total["GPU"]),
        "memory_gb": machine.memory_gb,
        "cluster": address,
        "token_file": None if (file := token_file()) is None else str(file),
        "tracking": uri,
        "storage": storage if is_remote(storage) else str(Path(storage).absolute()),
        "storage_free_gb": None if is_remote(storage) else _free_gb(Path(storage)),
        "data_folder": str(folder),
        "data_free_gb": _free_gb(folder),
    }
    nodes: list[NodeFacts] | None = None
    if address is not None:
        cluster, nodes = {"dashboard": None, "auth": AUTH[None]}, []
        with collected(problems), attach.attached(namespace="doctor"):
            cluster, nodes = examine_cluster(storage, uri, backbones, problems)
        facts |= cluster
    return Findings(
        facts=facts,
        versions=machine.versions,
        nodes=nodes,
        warnings=warnings,
        problems=list(dict.fromkeys(problems)),
    )


def pin_mistakes(pins: Path) -> list[str]:
    """What is installed here in another version than the one this project was tested with."""
    if not pins.is_file():
        return []
    warnings = []
    for line in pins.read_text(encoding="utf-8").splitlines():
        name, _, pinned = line.partition("==")
        with suppress(metadata.PackageNotFoundError):  # of the tests, or of another platform
            if pinned and (here := metadata.version(name).partition("+")[0]) != pinned:
                warnings.append(
                    f"{name} is {here} here; this project was tested with {pinned}. "
                    f"Fix: pip install -c {pins.name} {name}"
                )
    return warnings


def _free_gb(folder: Path) -> float:
    return round(shutil.disk_usage(existing(folder.absolute())).free / 1e9, 1)
