"""A real training step of each backbone on this machine, in a process with a bound.

Its own process, because torch and timm take seconds to import and this one may still have none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import trainables
from orchestrator import spaces
from orchestrator.spec import RunSpec, SweepSpec, with_axes
from trainables.backbones import describe
from trainables.recipe import stable_hash

TIMEOUT_S = 60.0
SECONDS_PER_BACKBONE = 1.0
MOST_VARIANTS = 3  # of a searched geometry, the most common ones

Row = dict[str, Any]


def measure(
    spec: RunSpec, images: Mapping[str, Mapping[str, Any]], *, timeout_s: float = TIMEOUT_S
) -> dict[str, list[Row]]:
    """By family, a row of :func:`trainables.measure.measure` for every trial whose backbone was
    measured; families that did not fit into ``timeout_s`` have none.

    ``images`` has each family's ``height``, ``width`` (pixels) and ``classes``.
    """
    resources = spec.sweeps[0].resources
    variants = {sweep.family: _variants(sweep) for sweep in spec.sweeps}
    asked = {
        label: _asked(one, images[family])
        for family, found in variants.items()
        for label, (one, _) in found.items()
    }
    request = {
        "device": "cuda" if resources.gpus_per_worker else "cpu",
        "threads": max(1, int(resources.cpus_per_worker)),
        "seconds": SECONDS_PER_BACKBONE,
        "backbones": asked,
    }
    rows = {row.pop("label"): row for row in _run(request, timeout_s)}
    return {
        family: [
            rows[label]
            for label, (_, count) in found.items()
            if label in rows
            for _ in range(count)
        ]
        for family, found in variants.items()
    }


def _asked(sweep: SweepSpec, images: Mapping[str, Any]) -> dict[str, Any]:
    """The sweep's backbone as it would be built, without fetching its weights."""
    side = {name: images[name] for name in ("height", "width")}
    stem = describe(sweep.backbone, **side).stem or sweep.backbone.stem
    fresh = replace(sweep.backbone, weights="none", stem=stem)
    assignment = replace(sweep, backbone=fresh).assignment(0)
    return {**side, "classes": images["classes"], "assignment": assignment.as_dict()}


def _variants(sweep: SweepSpec) -> dict[str, tuple[SweepSpec, int]]:
    """Label -> the sweep with a backbone that its trials draw, and how many of them do."""
    geometry = {path: one for path, one in sweep.space.items() if path.startswith("backbone.")}
    found: dict[str, tuple[SweepSpec, int]] = {}
    for index in range(sweep.trials):
        drawn = spaces.sample(geometry, seed=sweep.seed, index=index, family=sweep.family)
        one = replace(with_axes(sweep, drawn), space={})
        label = f"{sweep.family}-{stable_hash(asdict(one.backbone))}"
        found[label] = (one, found[label][1] + 1 if label in found else 1)
    common = sorted(found.items(), key=lambda item: -item[1][1])
    return dict(common[:MOST_VARIANTS])


def _run(request: Mapping[str, Any], timeout_s: float) -> list[Row]:
    root = str(Path(trainables.__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", "trainables.measure"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    with process:
        try:
            out, _ = process.communicate(json.dumps(request), timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
        except BaseException:
            process.kill()
            raise
    whole = out[: out.rfind("\n") + 1]
    return [json.loads(line) for line in whole.splitlines()]
