"""Fine-tune one recipe on one backbone: a generator of epochs that knows nothing of slots."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from trainables.config import Assignment, EpochReport
from trainables.data.build import prepare
from trainables.data.store import PixelStore
from trainables.errors import Diverged, OutOfMemory, Preempted, raise_if_any
from trainables.evaluate.probes import shift_consistency
from trainables.train.loop import World, predict
from trainables.train.trial import Trial

__all__ = ["EpochReport", "World", "evaluate_split", "fine_tune"]


def fine_tune(
    assignment: Assignment,
    world: World = World(),  # noqa: B008 - frozen
    *,
    store: PixelStore | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[EpochReport]:
    """Train epoch by epoch: each ``next()`` trains one, evaluates, saves when due, reports.

    ``close()`` ends it early and frees its memory. Resumes from ``assignment.checkpoint``, also
    in the middle of an epoch. With ``world.size`` > 1 every rank runs it in lockstep under an
    initialised ``torch.distributed``, and all yield the same metrics. ``store`` is prepared
    from ``assignment.data`` when not given. ``should_stop`` is asked between steps: once true, a
    checkpoint is written and ``Preempted`` raised. Raises ``UserError`` for mistakes in the
    assignment, ``Diverged`` and ``OutOfMemory`` with the recipe named. On a
    CPU it is faster in a process with ``config.FREED_MEMORY_KEPT`` in its environment.
    """
    raise_if_any(assignment.recipe.mistakes())
    trial = Trial(assignment, world, store or prepare(assignment.data, remote=assignment.remote))
    first = True
    while trial.progress.epoch < assignment.epochs:
        try:
            finished = trial.train(should_stop)
            if not finished:
                folder = trial.save()
                raise Preempted(f"{assignment.trial_id} was told to stop", checkpoint=folder)
            metrics, folder = trial.finish_epoch()
            if assignment.shift_offsets_px:
                metrics |= shift_consistency(trial, assignment.shift_offsets_px)
        except (Diverged, OutOfMemory) as error:
            epoch = trial.progress.epoch + 1
            message = f"{assignment.trial_id}, epoch {epoch}: {error}; {recipe_line(assignment)}"
            raise type(error)(message) from error
        detail = trial.facts() if first else {}
        if trial.learner.notes:
            detail["notes"] = list(trial.learner.notes)
            trial.learner.notes.clear()
        first = False
        yield EpochReport(trial.progress.epoch, metrics, folder, detail)


def recipe_line(assignment: Assignment) -> str:
    """The backbone and every axis of the recipe that differs from its default, in one line."""
    defaults = type(assignment.recipe)().as_dict()
    changed = {
        k: v
        for k, v in assignment.recipe.as_dict().items()
        if v != defaults[k] or k in ("optimizer", "learning_rate")
    }
    spec = assignment.backbone
    axes = ", ".join(f"{key}={value}" for key, value in changed.items())
    return f"{spec.family}/{spec.scale}: {axes}"


def evaluate_split(
    assignment: Assignment,
    checkpoint: str,
    split: str,
    world: World = World(),  # noqa: B008 - frozen
    *,
    store: PixelStore | None = None,
    limit: int | None = None,
) -> npt.NDArray[np.int64]:
    """Predicted class of every image of ``split``, or of the first ``limit``, (N,), by the model
    in ``checkpoint``.

    The moving average's weights where the recipe keeps one. With several workers each
    predicts a shard and all return the whole.
    """
    opened = store or prepare(assignment.data, remote=assignment.remote)
    trial = Trial(resumed(assignment, checkpoint), world, opened)
    pixels = trial.pixels(split)
    some = replace(pixels, images=pixels.images[:limit], labels=pixels.labels[:limit])
    parts = [
        logits.argmax(1).cpu()
        for logits, _ in predict(
            trial.learner.evaluated,
            some,
            trial.learner.look,
            world=world,
            bf16=trial.learner.bf16,
        )
    ]
    mine = torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)
    if world.size > 1:
        shards: list[Any] = [None] * world.size
        dist.all_gather_object(shards, mine)
        mine = torch.cat(shards)
    result: npt.NDArray[np.int64] = mine.numpy()
    return result


def resumed(assignment: Assignment, checkpoint: str) -> Assignment:
    """The same assignment, to be restored from ``checkpoint``."""
    return Assignment.from_dict({**assignment.as_dict(), "checkpoint": checkpoint})
