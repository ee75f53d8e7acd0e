"""Fine-tune one recipe on one backbone: a generator of epochs that knows nothing of slots."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from trainables.config import Assignment, EpochReport
from trainables.data.build import prepare
from trainables.data.store import ImageStore
from trainables.errors import Diverged, OutOfMemory, Preempted, raise_if_any
from trainables.evaluate.probes import shift_consistency
from trainables.train.loop import World
from trainables.train.trial import Trial

__all__ = ["EpochReport", "World", "fine_tune"]


def fine_tune(
    assignment: Assignment,
    world: World = World(),  # noqa: B008 - frozen
    *,
    store: ImageStore | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[EpochReport]:
    """Train epoch by epoch: each ``next()`` trains one, evaluates, saves when due, reports.

    ``close()`` ends it early and frees its memory. Resumes from ``assignment.checkpoint``, also
    in the middle of an epoch. With ``world.size`` > 1 every rank runs it in lockstep under an
    initialised ``torch.distributed``, and all yield the same metrics. ``store`` is prepared
    from ``assignment.data`` when not given. ``should_stop`` is asked between steps: once true, a
    checkpoint is written and ``Preempted`` raised. Raises ``UserError`` for mistakes in the
    assignment, ``Diverged`` and ``OutOfMemory`` with the recipe named. On a CPU it is
    faster in a process with ``config.FREED_MEMORY_KEPT`` in its environment.
    """
    raise_if_any(assignment.recipe.mistakes())
    trial = Trial(assignment, world, store or prepare(assignment.data, remote=assignment.remote))
    first = True
    while trial.progress.epoch < assignment.epochs:
        try:
            finished = trial.train(should_stop)
            if not finished:
                folder = trial.save()
                raise Preempted(f"{assignment.trial_id} was asked to stop", checkpoint=folder)
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
    axes = ", ".join(
        f"{name}={value}"
        for name, value in assignment.recipe.as_dict().items()
        if value != defaults.get(name) or name in ("optimizer", "learning_rate")
    )
    return f"{assignment.backbone.family}/{assignment.backbone.scale}: {axes}"
