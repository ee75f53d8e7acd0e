"""What precision, memory layout and compilation do to the speed of a step: part of benchmarks.step.

Each way trains an epoch of ``fine_tune`` in turn, round after round, the same model on the same
images at one batch size. ``ratio`` is images/s over those of the first way in the same round.
Compiling takes the first epoch's seconds less those of a later one, evaluation included; it pays
once it has trained ``pays_after_images``, where it is faster at all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from benchmarks.common import spread
from trainables.config import Assignment
from trainables.data.store import ImageStore
from trainables.finetune import fine_tune
from trainables.train.loop import World

Way = Mapping[str, Any]  # what it sets in the recipe

PLAIN: Way = {"precision": "fp32", "channels_last": False, "compile": False}
BF16: Way = {**PLAIN, "precision": "bf16"}
WAYS: Mapping[str, Mapping[str, Way]] = {
    "cuda": {
        "fp32": PLAIN,
        "bf16": BF16,
        "bf16_channels_last": {**BF16, "channels_last": True},
        "bf16_compiled": {**BF16, "compile": True},
        "bf16_channels_last_compiled": {**BF16, "channels_last": True, "compile": True},
    },
    # A CPU's default stays the first of these.
    "cpu": {"fp32": PLAIN, "fp32_channels_last": {**PLAIN, "channels_last": True}, "bf16": BF16},
}


class Rival:
    """One way: a trial that trains an epoch whenever it is asked."""

    def __init__(
        self, assignment: Assignment, way: Way, store: ImageStore, device: torch.device
    ) -> None:
        recipe = replace(assignment.recipe, **way)
        self.compiled = bool(recipe.compile)
        self._epochs = fine_tune(
            replace(assignment, recipe=recipe), World(device=str(device)), store=store
        )
        started = time.perf_counter()
        next(self._epochs)
        self.first_seconds = time.perf_counter() - started
        self.seconds: list[float] = []
        self.speeds: list[float] = []

    def train(self) -> None:
        """An epoch, on record."""
        started = time.perf_counter()
        self.speeds.append(next(self._epochs).metrics["images_per_second"])
        self.seconds.append(time.perf_counter() - started)

    def close(self) -> None:
        """End the trial and free its memory."""
        self._epochs.close()  # type: ignore[attr-defined]


def measure_ways(
    assignment: Assignment, store: ImageStore, device: torch.device, *, rounds: int
) -> dict[str, Any]:
    """By way: ``images_per_second`` and ``ratio`` with their spread, and of a compiled model
    ``compile_seconds`` and ``pays_after_images`` (``None``: never)."""
    rivals = {
        name: Rival(assignment, way, store, device) for name, way in WAYS[device.type].items()
    }
    for _ in range(rounds):
        for rival in rivals.values():
            rival.train()
    first = next(iter(rivals.values()))
    measured: dict[str, Any] = {}
    for name, rival in rivals.items():
        ratios = [own / plain for own, plain in zip(rival.speeds, first.speeds, strict=True)]
        measured[name] = {"images_per_second": spread(rival.speeds), "ratio": spread(ratios)}
        if rival.compiled:
            eager = rivals[name.removesuffix("_compiled")]
            measured[name] |= _compiled(rival, eager)
        rival.close()
    return measured


def _compiled(rival: Rival, eager: Rival) -> dict[str, float | None]:
    seconds = rival.first_seconds - statistics.median(rival.seconds)
    own, other = (statistics.median(one.speeds) for one in (rival, eager))
    saved = 1 / other - 1 / own  # seconds an image
    return {
        "compile_seconds": seconds,
        "pays_after_images": seconds / saved if saved > 0 else None,
    }


def line_of(measured: Mapping[str, Any]) -> str:
    """All ways in a line: ``fp32 1.00, bf16 1.83, ...``."""
    return ", ".join(f"{name} {row['ratio']['median']:.2f}" for name, row in measured.items())
