"""Versions and processor that a process would train with, and where two machines differ in their
versions. Imports none of the libraries.

Standard library only: it is asked of nodes that may hold nothing of this project.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

# Of these the same must be on every node: they compute, or carry what is computed between nodes.
LIBRARIES = ("torch", "torchvision", "timm", "ray", "pyarrow", "numpy", "safetensors")

Versions = Mapping[str, str | None]


def installed() -> dict[str, str | None]:
    """Version of Python and of each library here; ``None`` for one that is missing."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def processor() -> str:
    """The name of this machine's processor, or of its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def differences(wanted: Versions, installed_there: Versions, node: str) -> list[str]:
    """One line for each version that ``node`` has (``installed_there``) and that is not ``wanted``.

    What follows a ``+`` names a build (``+cpu``), and may differ from node to node.
    """
    lines = []
    for name, version in wanted.items():
        here = installed_there.get(name)
        if _release(here) != _release(version):
            has = f"{name} {here}" if here else f"no {name}"
            pin = f"pip install {name}=={_release(version)} there, or " if name != "python" else ""
            lines.append(
                f"every node must hold the driver's versions; node {node} has {has}, the driver "
                f"{name} {version or 'missing'}. Fix: {pin}one image for all nodes"
            )
    return lines


def _release(version: str | None) -> str | None:
    return version.partition("+")[0] if version else None
