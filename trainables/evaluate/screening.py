"""One candidate screened: frozen features of train and val, a linear probe and neighbours on them.

What a Ray task calls, and what anybody may call without Ray. A candidate that fails is an answer
with a reason; only storage that fails is raised.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache

import numpy as np
import torch

from trainables.config import DataSpec, FrozenSpeed, Screened, Screening
from trainables.data.build import prepare
from trainables.data.store import ImageStore, Rows, stratified_order, train_indices
from trainables.errors import one_line, storage_error
from trainables.evaluate.frozen import FrozenBackbone, frozen_features
from trainables.evaluate.linear import (
    fit_linear_probe,
    judging_rows,
    linear_predictions,
    neighbour_predictions,
)


def on_worker(asked: Screening, *, gpu: bool, threads: int, measures_only: bool) -> Screened:
    """:func:`screen`, or :func:`measure`, on this process's GPU or on ``threads`` of its CPU."""
    if not gpu:
        torch.set_num_threads(threads)
    return (measure if measures_only else screen)(asked, "cuda" if gpu else "cpu")


def measure(asked: Screening, device: str = "cpu") -> Screened:
    """How fast the candidate is, without a pass over the images."""
    try:
        frozen = FrozenBackbone(asked.backbone, _store(asked.data, asked.remote), device)
        _ = frozen.model
        return Screened(label=asked.label, speed=frozen.speed())
    except Exception as error:
        return _failed(asked, error)


def screen(asked: Screening, device: str = "cpu") -> Screened:
    """The candidate's probes. The same call again finds its features on disk."""
    began = time.perf_counter()
    try:
        return _screen(asked, device, began)
    except Exception as error:
        return replace(_failed(asked, error), seconds=time.perf_counter() - began)


def _failed(asked: Screening, error: Exception) -> Screened:
    """Whatever a foreign model raises is its own line; a broken disk is everybody's."""
    broken = storage_error(error)
    if broken is not None:
        raise broken from error
    return Screened(label=asked.label, reason=f"{type(error).__name__}: {one_line(error)[:300]}")


@cache  # of a worker that screens several candidates
def _store(data: DataSpec, remote: str | None) -> ImageStore:
    return prepare(data, remote=remote)


def _screen(asked: Screening, device: str, began: float) -> Screened:
    store = _store(asked.data, asked.remote)
    frozen = FrozenBackbone(asked.backbone, store, device)
    key = frozen.identity()
    order = train_order(store, asked.data, asked.train_images)
    rows = np.sort(order)
    val_rows = np.arange(store.info.counts["val"], dtype=np.int64)
    val = frozen_features(frozen, "val", val_rows, key, lambda: {"speed": frozen.speed().as_dict()})
    train = frozen_features(frozen, "train", rows, key)
    labels, val_labels = store.labels("train")[rows], store.labels("val")
    classes = len(store.info.class_names)
    probe = fit_linear_probe(
        train.values, labels, classes=classes, judging=judging_rows(order), device=device
    )
    correct = linear_predictions(probe, val.values) == val_labels
    neighbours = neighbour_predictions(
        train.values, labels, val.values, classes=classes, device=device
    )
    passes = (train.facts, val.facts)
    return Screened(
        label=asked.label,
        speed=FrozenSpeed.from_dict(val.facts["speed"]),
        correct=np.packbits(correct).tobytes().hex(),
        val_images=len(correct),
        linear_top1=float(correct.mean()),
        neighbours_top1=float((neighbours == val_labels).mean()),
        strength=probe.strength,
        width=train.values.shape[1],
        train_images=len(rows),
        images_per_second=(len(rows) + len(val_rows)) / sum(one["seconds"] for one in passes),
        seconds=time.perf_counter() - began,
        cached=frozen.setup_s == 0.0,
    )


def train_order(store: ImageStore, data: DataSpec, images: int | None) -> Rows:
    """Row numbers of train to learn from: those that ``data`` trains on, or the first ``images`` of
    them, in an order of which every prefix is stratified."""
    allowed = train_indices(store, data)
    labels, digests = store.labels("train")[allowed], store.digests("train")[allowed]
    order = allowed[stratified_order(labels, digests, seed=data.split_seed, salt="screen")]
    return order if images is None else order[:images]
