"""What ``orchestrator doctor`` has a node look at; these functions run on the node.

They travel by value and import what they need there, so that a node that lacks it can say so.
"""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

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
        from trainables import storage as files
        from trainables.assignment import BackboneSpec
        from trainables.backbones import check_weights
    except ImportError as error:
        told["problems"].append(
            f"every node must hold this project and what it needs; node {name} does not "
            f"({error}). Fix: put it into the image, or run as a job with --working-dir"
        )
        return told
    try:
        told["made"] = make_folder(storage)
        files.write_bytes(f"{storage}/{probe}", name.encode(), patience_s=STORAGE_PATIENCE_S)
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
    from orchestrator.tracking_store import check
    from trainables import storage as files

    unseen = []
    for probe, name in probes.items():
        try:
            read = files.read_bytes(f"{storage}/{probe}").decode()
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
    from trainables import storage as files

    for probe in probes:
        files.delete_file(f"{storage}/{probe}")
    for folder in made:
        try:
            Path(folder).rmdir()
        except OSError:
            return
