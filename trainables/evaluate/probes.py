"""What accuracy does not say about a model: all probes in one call, and speed of inference.

While a model learns, a few numbers after every epoch, on validation images.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainables.config import SHIFT_IMAGES
from trainables.evaluate.behaviour import (
    DIRECTIONS,
    SHARES,
    agreement,
    attention_distances,
    calibration,
    occlude,
    shifted_predictions,
)
from trainables.train.loop import TrainedModel, from_rank_zero
from trainables.train.trial import Trial
from trainables.versions import processor

BATCH = 256
ATTENTION_IMAGES = 128  # as many as Dosovitskiy et al. 2021 average over
SPEED_CALLS = {1: 50, 256: 10}  # by batch size
SPEED_BUDGET_S = 5.0  # of each batch size
WARM_UP_CALLS = 2

Probes = dict[str, Any]  # JSON by probe


@torch.inference_mode()
def probe(
    model: TrainedModel,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    *,
    logits: Tensor | None = None,
) -> Probes:
    """Everything about a trained model that accuracy does not say, JSON-ready.

    ``images`` is (N, H, W, C) uint8 as stored, ``labels`` (N,) int64, and ``logits`` (N, classes)
    what the model predicts for them (``None``: predicted here). Returns ``images`` (N),
    ``top1``, ``image_size``, ``shift`` (offsets in pixels of the model's input, from 0 to the patch
    or to an eighth of the side where that is more, so that families have offsets in common),
    ``calibration``, ``occlusion``, ``speed``, and for transformers ``attention_distance_px`` by
    layer and head. Shares lie in [0, 1]. Raises ``ValueError`` without images.
    """
    if not len(labels):
        raise ValueError("probes need an image at least; got 0")
    model.module.eval()
    side, patch = model.transform.image_size, model.geometry.patch
    offsets = range(1 + min(side - 1, max(patch or 1, side // 8)))
    truth = torch.from_numpy(np.array(labels)).to(model.device)
    if logits is None:
        logits = torch.cat([model.logits(inputs) for _, inputs in batches(model, images)])
    logits = logits.to(model.device)
    unmoved, moved, hidden = logits.argmax(1), [], []  # (N,)
    for rows, inputs in batches(model, images):
        moved.append(shifted_predictions(model.logits, inputs, offsets, unmoved[rows]))
        hidden.append(
            torch.stack([model.logits(occlude(inputs, rows, s)).argmax(1) for s in SHARES])
        )
    # (offsets, ways, N) by direction
    shifted = {name: torch.cat([part[name] for part in moved], 2) for name in DIRECTIONS}
    occluded = torch.cat(hidden, 1)  # (shares, N)
    measured = {
        "images": len(labels),
        "image_size": side,
        "top1": (unmoved == truth).double().mean().item(),
        "shift": {
            "padding": "reflect",
            "offsets_px": list(offsets),
            "consistency": {k: agreement(shifted[k], unmoved) for k in DIRECTIONS},
            "top1": {k: agreement(shifted[k], truth) for k in DIRECTIONS},
        },
        "occlusion": {
            "shares": list(SHARES),
            "top1": (occluded == truth).double().mean(1).tolist(),
        },
        "calibration": calibration(logits.softmax(1), truth),
        "speed": _speed(model),
    }
    _, inputs = next(batches(model, images[:ATTENTION_IMAGES]))
    distances = attention_distances(model.module, inputs, patch=patch)
    return {**measured, "attention_distance_px": distances} if distances else measured


def batches(model: TrainedModel, images: npt.NDArray[np.uint8]) -> Iterator[tuple[Tensor, Tensor]]:
    """Numbers (B,) and model inputs (B, 3, S, S) of stored ``images``, in order."""
    for start in range(0, len(images), BATCH):
        pixels = torch.from_numpy(np.ascontiguousarray(images[start : start + BATCH]))
        rows = torch.arange(start, start + len(pixels), device=model.device)
        yield rows, model.inputs(pixels)


@torch.inference_mode()
def shift_consistency(trial: Trial, offsets_px: Sequence[int]) -> dict[str, float]:
    """``shift_consistency_Npx`` for every offset N: the share of validation images that keep
    their predicted class when moved by N pixels along an axis, mean over both axes.

    The first ``SHIFT_IMAGES`` images, a fair sample because a store is in the order of digests.
    ``probe_seconds`` is what it took. Rank 0 measures for all workers.
    """
    shares: dict[str, float] = {}
    if trial.world.rank == 0:
        began = time.perf_counter()
        model = trial.learner.trained
        model.module.eval()
        images = trial.store.split("val").images[:SHIFT_IMAGES]
        axes = {"axis": DIRECTIONS["axis"]}
        moved = torch.cat(
            [
                shifted_predictions(model.logits, inputs, (0, *offsets_px), directions=axes)["axis"]
                for _, inputs in batches(model, images)
            ],
            dim=2,
        )  # (1 + offsets, ways, N)
        kept = agreement(moved[1:], moved[0, 0])
        shares = {f"shift_consistency_{px}px": k for px, k in zip(offsets_px, kept, strict=True)}
        shares["probe_seconds"] = time.perf_counter() - began
    return from_rank_zero(shares, trial.world)


def _speed(model: TrainedModel) -> Probes:
    """Latency and throughput by batch size, and what a timing depends on beside the model."""
    side, device = model.transform.image_size, model.device
    cuda = device.type == "cuda"
    measured: Probes = {
        "device": torch.cuda.get_device_name(device) if cuda else processor(),
        "precision": "bf16" if model.bf16 else "fp32",
    }
    if device.type == "cpu":
        measured["threads"] = torch.get_num_threads()
    for size, n in SPEED_CALLS.items():
        batch = torch.randn(size, 3, side, side, device=device)
        if model.transform.channels_last:
            batch = batch.contiguous(memory_format=torch.channels_last)
        run = partial(model.logits, batch)
        seconds = timed(run, device=device, n=n, budget_s=SPEED_BUDGET_S)
        measured[f"batch_{size}"] = summary(seconds, size)
    return measured


def timed(
    run: Callable[[], object], *, device: torch.device, n: int, budget_s: float = float("inf")
) -> list[float]:
    """Seconds of ``n`` calls of ``run``, after warm-up; fewer, but 3 at least, beyond ``budget_s``.

    An accelerator is waited for before and after each call.
    """

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(WARM_UP_CALLS):
        run()
    seconds: list[float] = []
    while len(seconds) < n and (len(seconds) < 3 or sum(seconds) < budget_s):
        wait()
        started = time.perf_counter()
        run()
        wait()
        seconds.append(time.perf_counter() - started)
    return seconds


def summary(seconds: list[float], images: int) -> dict[str, float | int]:
    """Median, quartiles and throughput of calls that took ``seconds`` for ``images`` images each.

    ``latency_ms`` with its quartiles ``latency_ms_low`` and ``latency_ms_high``,
    ``images_per_second`` at the median, and ``n`` calls. Needs two calls.
    """
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {
        "latency_ms": 1e3 * middle,
        "latency_ms_low": 1e3 * low,
        "latency_ms_high": 1e3 * high,
        "images_per_second": images / middle,
        "n": len(seconds),
    }
