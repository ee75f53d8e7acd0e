"""One candidate screened: frozen features of train and val, a linear probe and neighbours on them.

What a Ray task calls, and what anybody may call without Ray. A candidate that fails, or that does
not answer in time, is an answer with a reason; only storage that fails is raised.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import torch

from trainables.config import DataSpec, FrozenSpeed, Screened, Screening
from trainables.data.build import prepare
from trainables.data.store import ImageStore, Rows, stratified_order, train_indices
from trainables.errors import UserError, one_line, storage_error
from trainables.evaluate.frozen import FrozenBackbone, frozen_features
from trainables.evaluate.linear import (
    fit_linear_probe,
    judging_rows,
    linear_predictions,
    neighbour_predictions,
)
from trainables.storage.waiting import in_background

SETUP_LIMIT_S = 1800.0  # to fetch the weights, build the model and measure it
# Of what its own measured speed promises that the passes take. Others may share the device, and
# the measurement is of a few batches.
PASS_FACTOR, LEAST_PASS_S = 20.0, 300.0
POLL_S = 1.0
LEAVE_S = 5.0  # for an answer to be on its way before its process ends


class TookTooLong(RuntimeError):
    """A candidate hangs, or is far slower than its first batches."""


class TimeLimit:
    """By when work must be done; moved on by whoever does it, as more is known of it."""

    def __init__(self) -> None:
        self.allow(SETUP_LIMIT_S, "to be built and measured")

    def allow(self, seconds: float, what: str) -> None:
        """``seconds`` from now on, for ``what``."""
        self.text = f"it took more than {seconds:.0f} s {what}"
        self._ends_at = time.monotonic() + seconds

    def allow_passes(self, speed: FrozenSpeed, images: int) -> None:
        """Time for one pass over so many ``images``, by a ``speed`` that was measured."""
        seconds = max(LEAST_PASS_S, PASS_FACTOR * images * speed.seconds_per_image)
        self.allow(seconds, f"for {images} images, {1e3 * speed.seconds_per_image:.3g} ms each")

    def lift(self) -> None:
        """What is left to do is arithmetic of ours, which ends."""
        self._ends_at = float("inf")

    def hold(self, call: Callable[[], Screened]) -> Screened:
        """What ``call`` returns or raises. Raises :class:`TookTooLong` where the limit passes
        before that; the call goes on in its thread, unheard."""
        future = in_background(call)
        while not future.done():
            left_s = self._ends_at - time.monotonic()
            if left_s <= 0:
                raise TookTooLong(self.text)
            try:
                return future.result(min(left_s, POLL_S))
            except TimeoutError:
                continue  # the limit may have moved on, or it is an error of the call
        return future.result()


def on_worker(asked: Screening, *, gpu: bool, threads: int, measures_only: bool) -> Screened:
    """:func:`screen`, or :func:`measure`, on this process's GPU or on ``threads`` of its CPU. The
    process of a candidate that hangs ends once its answer is on its way."""
    if not gpu:
        torch.set_num_threads(threads)
    carry_out = measure if measures_only else screen
    return carry_out(asked, "cuda" if gpu else "cpu", on_hang=_leave)


def _leave() -> None:
    """A thread that hangs cannot be ended but with its process; Ray begins again whatever task
    this process may have by then."""
    timer = threading.Timer(LEAVE_S, os._exit, [1])
    timer.daemon = True
    timer.start()


def measure(
    asked: Screening, device: str = "cpu", *, on_hang: Callable[[], None] | None = None
) -> Screened:
    """How fast the candidate is, without a pass over the images. ``on_hang`` is called where it
    does not answer in time."""

    def call(store: ImageStore, limit: TimeLimit) -> Screened:
        return Screened(
            label=asked.label, speed=FrozenBackbone(asked.backbone, store, device).speed()
        )

    return _in_time(asked, call, on_hang)


def screen(
    asked: Screening, device: str = "cpu", *, on_hang: Callable[[], None] | None = None
) -> Screened:
    """The candidate's probes. The same call again finds its features on disk. ``on_hang`` is
    called where it does not answer in time."""
    began = time.perf_counter()
    found = _in_time(asked, lambda store, limit: _screen(asked, store, device, limit), on_hang)
    return replace(found, seconds=time.perf_counter() - began)


def _in_time(
    asked: Screening,
    call: Callable[[ImageStore, TimeLimit], Screened],
    on_hang: Callable[[], None] | None,
) -> Screened:
    try:
        store = _store(asked.data, asked.remote)
        limit = TimeLimit()
        return limit.hold(lambda: call(store, limit))
    except TookTooLong as error:
        if on_hang is not None:
            on_hang()
        return _failed(asked, error)
    except Exception as error:
        return _failed(asked, error)


def _failed(asked: Screening, error: Exception) -> Screened:
    """Whatever a foreign model raises is its own line; a broken disk is everybody's."""
    broken = storage_error(error)
    if broken is not None:
        raise broken from error
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return Screened(label=asked.label, reason=f"{kind}{one_line(error)[:300]}")


@cache  # of a worker that screens several candidates
def _store(data: DataSpec, remote: str | None) -> ImageStore:
    return prepare(data, remote=remote)


def _screen(asked: Screening, store: ImageStore, device: str, limit: TimeLimit) -> Screened:
    frozen = FrozenBackbone(asked.backbone, store, device)
    key = frozen.identity()
    order = train_order(store, asked.data, asked.train_images)
    rows = np.sort(order)
    val_rows = np.arange(store.info.counts["val"], dtype=np.int64)
    images = len(rows) + len(val_rows)

    def measured() -> FrozenSpeed:
        speed = frozen.speed()
        limit.allow_passes(speed, images)
        return speed

    val = frozen_features(frozen, "val", val_rows, key, measured)
    speed = val.made_by.speed
    assert speed is not None
    limit.allow_passes(speed, images)
    train = frozen_features(frozen, "train", rows, key)
    limit.lift()
    labels, val_labels = store.labels("train")[rows], store.labels("val")
    classes = len(store.info.class_names)
    probe = fit_linear_probe(
        train.values, labels, classes=classes, judging=judging_rows(order), device=device
    )
    correct = linear_predictions(probe, val.values) == val_labels
    neighbours = neighbour_predictions(
        train.values, labels, val.values, classes=classes, device=device
    )
    passes = (train.made_by, val.made_by)
    group_images, group_right = None, None
    if (groups := store.groups("val")) is not None:
        _, codes = np.unique(groups, return_inverse=True)
        group_images = tuple(np.bincount(codes).tolist())
        group_right = tuple(np.bincount(codes, weights=correct).astype(int).tolist())
    return Screened(
        label=asked.label,
        speed=speed,
        correct=np.packbits(correct).tobytes().hex(),
        val_images=len(correct),
        group_images=group_images,
        group_right=group_right,
        linear_top1=float(correct.mean()),
        neighbours_top1=float((neighbours == val_labels).mean()),
        strength=probe.strength,
        width=train.values.shape[1],
        train_images=len(rows),
        images_per_second=images / sum(one.seconds for one in passes),
        cached=frozen.setup_s == 0.0,
    )


def train_order(store: ImageStore, data: DataSpec, images: int | None) -> Rows:
    """Row numbers of train to learn from: those that ``data`` trains on, or the first ``images`` of
    them, in an order of which every prefix is stratified."""
    allowed = train_indices(store, data)
    labels, digests = store.labels("train")[allowed], store.digests("train")[allowed]
    order = allowed[stratified_order(labels, digests, seed=data.split_seed, salt="screen")]
    return order if images is None else order[:images]
