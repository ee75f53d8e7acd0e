"""Frozen features of a backbone: one forward pass over images, kept beside the store.

The side is the backbone's own; in bfloat16 on a GPU that computes in it. Beside the features stand
how many images a second the pass took and the latency of a single image, measured on its device.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainables.backbones import build
from trainables.backbones.families import member_of
from trainables.backbones.hub import cached_file, pinned
from trainables.backbones.weights import weights_file
from trainables.config import HUB_WEIGHTS, BackboneSpec, FrozenSpeed, Recipe
from trainables.data.batches import load_pixels
from trainables.data.features import (
    FeaturePass,
    Features,
    features_file,
    read_features,
    write_features,
)
from trainables.data.store import ImageStore, Rows
from trainables.errors import OutOfMemory, UserError
from trainables.evaluate.speed import timed
from trainables.storage.digests import digest_of
from trainables.train.loop import TrainedModel, eval_batch, has_bf16, on_device
from trainables.versions import installed, processor

SEED = 0  # of the random parts of a backbone from scratch
LATENCY_CALLS, LATENCY_S = 20, 2.0
SMALLEST_BATCH = 8  # below it a backbone that does not fit is given up
VERSIONED = ("torch", "timm")  # whose versions features depend on


class FrozenBackbone:
    """A backbone without its classifier on a device, built when it is first needed.

    ``features`` maps stored pixels to (B, D) float32. Raises ``UserError`` for weights that do not
    fit, and where the backbone gives no vector for an image.
    """

    def __init__(self, spec: BackboneSpec, store: ImageStore, device: str) -> None:
        self.spec, self.store, self.device = spec, store, torch.device(device)
        self.setup_s = 0.0
        self._model: TrainedModel | None = None

    @property
    def precision(self) -> str:
        """``bf16`` on a GPU that computes in it, else ``fp32``."""
        return "bf16" if self.device.type == "cuda" and has_bf16(self.device) else "fp32"

    @property
    def device_name(self) -> str:
        """The device's, as a person knows it."""
        cuda = self.device.type == "cuda"
        return torch.cuda.get_device_name(self.device) if cuda else processor() or "cpu"

    @property
    def model(self) -> TrainedModel:
        """The backbone in evaluation mode, its classifier an identity. Raises ``UserError`` for one
        that has no classifier."""
        if self._model is None:
            began = time.perf_counter()
            torch.manual_seed(SEED)
            info = self.store.info
            backbone = build(
                self.spec,
                num_classes=len(info.class_names),
                height=info.height,
                width=info.width,
            )
            if not hasattr(backbone.module, "reset_classifier"):
                raise UserError(
                    f"a backbone must have a classifier above its features; {self.spec.model} has "
                    "none, it is an encoder. Fix: a classifier of timm"
                )
            backbone.module.reset_classifier(0)  # type: ignore[operator]
            backbone.module.eval()
            self._model = on_device(backbone, Recipe(precision=self.precision), self.device)
            self.setup_s = time.perf_counter() - began
        return self._model

    def identity(self) -> dict[str, Any]:
        """What the features depend on beside model and images. Weights of the hub that are not in
        the cache yet are fetched for it."""
        versions = installed()
        return {
            "weights": self._weights_digest(),
            "side": self.spec.image_size,
            "patch": self.spec.patch,
            "stem": self.spec.stem,
            "precision": self.precision,
            "device": self.device_name,
            "versions": {name: versions.get(name) for name in VERSIONED},
        }

    def _weights_digest(self) -> str:
        spec = self.spec
        if spec.weights == "none":
            return f"seed {SEED}"
        if spec.weights not in HUB_WEIGHTS:
            return digest_of(weights_file(spec.weights))
        member = member_of(spec)
        if member.hub is None:
            raise UserError(
                f"no weights were published for {member.model}. Fix: timm:{member.model}=PATH"
            )
        cached = partial(cached_file, member.hub, pinned(member.hub, spec.hub_pins))
        file: Path | None = cached()
        if file is None:
            _ = self.model  # timm downloads
            file = cached()
        return member.hub if file is None else digest_of(file)

    @torch.inference_mode()
    def features(self, pixels: Tensor) -> Tensor:
        """(B, H, W, C) uint8 -> (B, D) float32. Raises ``UserError`` where that is no vector."""
        vectors = self.model.logits(self.model.inputs(pixels))
        if vectors.ndim != 2:
            raise UserError(
                f"{self.model.geometry.model} gives features of shape {tuple(vectors.shape[1:])} "
                "for an image, not a vector. Fix: leave it out"
            )
        return vectors

    def speed(self) -> FrozenSpeed:
        """Measured now, on pixels of the validation split."""
        model, images = self.model, self.store.split("val").images
        size = min(len(images), eval_batch(model.transform.image_size), 32)
        batch = torch.from_numpy(np.ascontiguousarray(images[np.arange(size)]))
        clock = partial(timed, device=self.device)
        single = clock(lambda: self.features(batch[:1]), n=LATENCY_CALLS, budget_s=LATENCY_S)
        whole = clock(lambda: self.features(batch), n=3, budget_s=LATENCY_S)
        cuda = self.device.type == "cuda"
        return FrozenSpeed(
            device=self.device_name,
            precision=self.precision,
            setup_s=self.setup_s,
            latency_ms=1e3 * statistics.median(single),
            seconds_per_image=statistics.median(whole) / size,
            params_m=sum(p.numel() for p in model.module.parameters()) / 1e6,
            threads=None if cuda else torch.get_num_threads(),
        )


def frozen_features(
    frozen: FrozenBackbone,
    split: str,
    rows: Rows,
    key: Mapping[str, Any],
    measure: Callable[[], FrozenSpeed] | None = None,
) -> Features:
    """Features of ``rows`` (N,) of a split, from the cache or by one pass, which is then kept with
    the speed that ``measure`` gives before it. ``key`` is the backbone's
    :meth:`FrozenBackbone.identity`.

    Raises ``OutOfMemory`` where not even a small batch fits on the device, and ``UserError`` where
    a feature is not finite.
    """
    path = features_file(frozen.store, _name(frozen.spec), {**key, "rows": len(rows)}, split)
    known = read_features(path, rows)
    if known is not None:
        return known
    size = eval_batch(frozen.model.transform.image_size)
    speed = measure() if measure else None
    while True:
        try:
            began = time.perf_counter()
            values = _pass(frozen, split, rows, size)
            break
        except torch.OutOfMemoryError as error:
            size //= 2
            if size < SMALLEST_BATCH:
                raise OutOfMemory(f"no room for {2 * size} images at once") from error
            torch.cuda.empty_cache()
    seconds = time.perf_counter() - began
    if not np.isfinite(values).all():
        raise UserError(f"{_name(frozen.spec)} gives features that are not finite")
    made = Features(
        values=values,
        rows=rows,
        made_by=FeaturePass(seconds=seconds, images_per_second=len(rows) / seconds, speed=speed),
    )
    write_features(path, made)
    return made


def _pass(frozen: FrozenBackbone, split: str, rows: Rows, size: int) -> Any:
    pixels = load_pixels(frozen.store, split, frozen.device)
    blocks = torch.split(torch.from_numpy(rows), size)
    parts = [
        frozen.features(images[positions.to(images.device)]).cpu()
        for _, images, positions in pixels.cut_all(blocks)
    ]
    return torch.cat(parts).numpy()


def _name(spec: BackboneSpec) -> str:
    return spec.model or f"{spec.family}-{spec.scale}"
