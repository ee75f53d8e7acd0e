"""All probes of a finished model in one call.

What is probed while a model learns: a few numbers after every epoch, on validation images.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from trainables.backbones import Geometry
from trainables.config import SHIFT_IMAGES, Assignment
from trainables.data.build import prepare
from trainables.data.store import PixelStore
from trainables.evaluate.attention import attention_distances
from trainables.evaluate.behaviour import (
    DIRECTIONS,
    SHARES,
    agreement,
    calibration,
    occlude,
    shifted_predictions,
)
from trainables.evaluate.speed import conditions, summary, timed
from trainables.train.augmentation import InputTransform
from trainables.train.learner import Learner
from trainables.train.loop import World, from_rank_zero
from trainables.train.step import autocast
from trainables.train.trial import Trial

BATCH = 256
ATTENTION_IMAGES = 128  # as many as Dosovitskiy et al. 2021 average over
SPEED_CALLS = {1: 50, 256: 10}  # by batch size
SPEED_BUDGET_S = 5.0  # of each batch size


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A finished model: ``module`` maps what ``transform`` makes of stored pixels to logits."""

    module: nn.Module
    transform: InputTransform
    geometry: Geometry
    device: torch.device
    bf16: bool = False

    @classmethod
    def of(cls, learner: Learner) -> Subject:
        """What ``learner`` has learned so far: the moving average where its recipe keeps one."""
        return cls(
            module=learner.evaluated,
            transform=learner.transform,
            geometry=learner.backbone.geometry,
            device=learner.device,
            bf16=learner.bf16,
        )

    def inputs(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """Stored pixels (B, H, W, C) uint8 as the model takes them: (B, 3, S, S) float32."""
        pixels = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
        return self.transform(pixels)

    def logits(self, inputs: Tensor) -> Tensor:
        """Logits (B, classes) float32 of (B, 3, S, S)."""
        with autocast(self.device, self.bf16):
            result: Tensor = self.module(inputs)
        return result.float()


def probe_trial(
    assignment: Assignment,
    checkpoint: str,
    *,
    split: str = "val",
    limit: int = 1000,
    device: str = "cpu",
    store: PixelStore | None = None,
) -> dict[str, Any]:
    """:func:`probe` the model in ``checkpoint`` on the first ``limit`` images of ``split``.

    The moving average's weights where the recipe keeps one. Rows of a store are in the order of
    their digest, hence the first ones are a fair sample. ``test`` is the caller's to open. Raises
    ``UserError`` where the checkpoint is of another trial.
    """
    opened = store or prepare(assignment.data, remote=assignment.remote)
    resumed = Assignment.from_dict({**assignment.as_dict(), "checkpoint": checkpoint})
    subject = Subject.of(Trial(resumed, World(device=device), opened).learner)
    part = opened.split(split)
    return {"split": split, **probe(subject, part.images[:limit], part.labels[:limit])}


@torch.inference_mode()
def probe(
    subject: Subject, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]
) -> dict[str, Any]:
    """Everything about a finished model that accuracy does not say, JSON-ready.

    ``images`` is (N, H, W, C) uint8 as stored, ``labels`` (N,) int64. Returns ``images`` (N),
    ``top1``, ``image_size``, ``shift`` (offsets in pixels of the model's input, from 0 to the patch
    or to an eighth of the side where that is more, so that families have offsets in common),
    ``calibration``, ``occlusion``, ``speed``, and for transformers ``attention_distance_px`` by
    layer and head. Shares lie in [0, 1]. Raises ``ValueError`` without images.
    """
    if not len(labels):
        raise ValueError("probes need an image at least; got 0")
    subject.module.eval()
    side, patch = subject.transform.image_size, subject.geometry.patch
    offsets = range(1 + min(side - 1, max(patch or 1, side // 8)))
    truth = torch.from_numpy(np.array(labels)).to(subject.device)
    probabilities, moved, hidden = _predictions(subject, images, offsets)
    straight = probabilities.argmax(1)
    found = {
        "images": len(labels),
        "image_size": side,
        "top1": (straight == truth).double().mean().item(),
        "shift": {
            "padding": "reflect",
            "offsets_px": list(offsets),
            "consistency": {k: agreement(moved[k], straight) for k in DIRECTIONS},
            "top1": {k: agreement(moved[k], truth) for k in DIRECTIONS},
        },
        "occlusion": {
            "shares": list(SHARES),
            "top1": (hidden == truth).double().mean(1).tolist(),
        },
        "calibration": calibration(probabilities, truth),
        "speed": _speed(subject),
    }
    distances = attention_distances(
        subject.module, subject.inputs(images[:ATTENTION_IMAGES]), patch=patch
    )
    return {**found, "attention_distance_px": distances} if distances else found


def _predictions(
    subject: Subject, images: npt.NDArray[np.uint8], offsets: Sequence[int]
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Probabilities (N, classes), classes under shifts (offsets, ways, N) by direction, and under
    occlusion (shares, N)."""
    plain, moved, hidden = [], [], []
    for rows, inputs in batches(subject, images):
        plain.append(subject.logits(inputs).softmax(1))
        moved.append(shifted_predictions(subject.logits, inputs, offsets))
        hidden.append(
            torch.stack([subject.logits(occlude(inputs, rows, s)).argmax(1) for s in SHARES])
        )
    joined = {name: torch.cat([part[name] for part in moved], 2) for name in DIRECTIONS}
    return torch.cat(plain), joined, torch.cat(hidden, 1)


def batches(subject: Subject, images: npt.NDArray[np.uint8]) -> Iterator[tuple[Tensor, Tensor]]:
    """Numbers (B,) and model inputs (B, 3, S, S) of stored ``images``, in order."""
    for start in range(0, len(images), BATCH):
        inputs = subject.inputs(images[start : start + BATCH])
        yield torch.arange(start, start + len(inputs), device=subject.device), inputs


def _speed(subject: Subject) -> dict[str, Any]:
    side, device = subject.transform.image_size, subject.device
    found = conditions(device, bf16=subject.bf16)
    for size, n in SPEED_CALLS.items():
        batch = torch.randn(size, 3, side, side, device=device)
        if subject.transform.channels_last:
            batch = batch.contiguous(memory_format=torch.channels_last)
        run = partial(subject.logits, batch)
        seconds = timed(run, device=device, n=n, budget_s=SPEED_BUDGET_S)
        found[f"batch_{size}"] = summary(seconds, size)
    return found


@torch.inference_mode()
def shift_consistency(trial: Trial, offsets_px: Sequence[int]) -> dict[str, float]:
    """``shift_consistency_Npx`` for every offset N: the share of validation images that keep
    their predicted class when moved by N pixels along an axis, mean over both axes.

    The first ``SHIFT_IMAGES`` images, a fair sample because a store is in the order of digests.
    ``probe_seconds`` is what it took. Rank 0 looks for all workers.
    """
    found: dict[str, float] = {}
    if trial.world.rank == 0:
        began = time.perf_counter()
        subject = Subject.of(trial.learner)
        subject.module.eval()
        images = trial.store.split("val").images[:SHIFT_IMAGES]
        axes = {"axis": DIRECTIONS["axis"]}
        moved = torch.cat(
            [
                shifted_predictions(subject.logits, inputs, (0, *offsets_px), axes)["axis"]
                for _, inputs in batches(subject, images)
            ],
            dim=2,
        )  # (1 + offsets, ways, N)
        shares = agreement(moved[1:], moved[0, 0])
        found = {
            f"shift_consistency_{offset}px": share
            for offset, share in zip(offsets_px, shares, strict=True)
        }
        found["probe_seconds"] = time.perf_counter() - began
    return from_rank_zero(found, trial.world)
