"""Before a run begins: every backbone of it is built and takes one training step on this CPU.

A model that cannot be adapted, fails in its forward pass, or meets a batch of one image with batch
normalisation would fail every trial, minutes later and on a cluster that costs money, and use the
run's name up. In a process of its own, with a bound: torch and timm take seconds to import. The
shapes of timm's models come first, without values, so that a model that does not fit is refused in
seconds however large it is.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from orchestrator import process
from orchestrator.ledger import session
from orchestrator.spec.run import RunSpec, SweepSpec
from trainables.config import NAMED_WEIGHTS, Assignment, DatasetFacts, Recipe
from trainables.errors import raise_if_any
from trainables.train.requests import Rehearsal, Rehearsed

TIMEOUT_S = 180.0
MOST_IMAGES = 2  # of a step: one image is another case than two, three are none
MOST_REHEARSED = 8  # assignments a sweep, of a searched backbone
ONE_VALUE = "more than 1 value per channel"  # in torch's error

log = logging.getLogger(__name__)


def refuse_broken(
    spec: RunSpec,
    images: Mapping[str, DatasetFacts],
    *,
    gpus: float | None = None,
    timeout_s: float = TIMEOUT_S,
    for_plan: bool = False,
) -> None:
    """Raise ``UserError`` with a line for each backbone that takes no training step, and where
    torch does not see the ``gpus`` that this machine lists. ``images`` are by candidate.
    For a plan, which waits for no step, only weights of the user's take one, and of timm's models
    the shapes are tried.

    A run that has begun was rehearsed then. What does not end in time, or has no memory here, is a
    warning: a worker may have more.
    """
    if session.state_of(spec.folder).begun:
        return
    request: dict[str, Rehearsal] = {}
    sweeps: dict[str, tuple[SweepSpec, Assignment]] = {}
    for sweep in spec.sweeps:
        for assignment in assignments_of(sweep):
            backbone = assignment.backbone
            takes_step = not for_plan or backbone.weights not in NAMED_WEIGHTS
            if not takes_step and backbone.family != "timm":
                continue
            label = f"{sweep.candidate}-{len(request)}"
            facts = images[sweep.candidate]
            request[label] = Rehearsal(
                assignment=assignment,
                height=facts.height,
                width=facts.width,
                classes=len(facts.class_names),
                step=takes_step,
            )
            sweeps[label] = sweep, assignment
    if not request:
        return
    names = ", ".join(dict.fromkeys(sweep.candidate for sweep, _ in sweeps.values()))
    what = "one training step" if any(asked.step for asked in request.values()) else "the shapes"
    log.info(f"{what} of {names} on this CPU, to see that it can be trained")
    seen_gpus, rows = _answers(request, timeout_s)
    silent = dict.fromkeys(request, "it took too long, or more memory than there is")
    mistakes = []
    needs_gpus = spec.sweeps[0].resources.gpus_per_worker
    if needs_gpus and gpus and seen_gpus is not None and seen_gpus < gpus:
        mistakes.append(
            f"torch must see all GPUs; this machine lists {gpus:g}, torch sees {seen_gpus}. "
            "Fix: a CUDA build of torch, its driver, or CUDA_VISIBLE_DEVICES"
        )
    for row in rows:
        sweep, assignment = sweeps[row.label]
        del silent[row.label]
        for note in row.notes:
            log.info(note)
        if row.mistake:
            mistakes.append(row.mistake)
        elif row.error:
            mistakes.append(_mistake(sweep, assignment, row.error))
        elif row.skipped:
            silent[row.label] = row.skipped
    raise_if_any(mistakes)
    for label, reason in silent.items():
        log.warning(f"warning: {sweeps[label][0].candidate} could not be tried here: {reason}")


def _answers(
    request: Mapping[str, Rehearsal], timeout_s: float
) -> tuple[int | None, list[Rehearsed]]:
    """How many GPUs torch sees, ``None`` where it had no time to say, and what was tried."""
    lines = process.ask_module(
        "trainables.train.rehearse",
        {label: asked.as_dict() for label, asked in request.items()},
        timeout_s=timeout_s,
        CUDA_MODULE_LOADING="LAZY",
    )
    seen_gpus = lines[0]["gpus"] if lines else None
    return seen_gpus, [Rehearsed.from_dict(line) for line in lines[1:]]


def assignments_of(sweep: SweepSpec) -> Iterator[Assignment]:
    """One for each backbone of the sweep, with the smallest micro-batch that its recipes have."""
    if sweep.grid:
        assignments = [sweep.assignment(index) for index in range(sweep.trials)]
    else:
        variants = sweep.variants("backbone.")
        assignments = [replace(variant, space={}).assignment(0) for variant in variants]
    recipes = [variant.recipe for variant in sweep.variants("recipe.")]
    by_backbone = {each.backbone: each for each in reversed(assignments)}
    for assignment in list(reversed(by_backbone.values()))[:MOST_REHEARSED]:
        of_grid = [each.recipe for each in assignments] if sweep.grid else []
        yield replace(assignment, recipe=_small(assignment.recipe, [*recipes, *of_grid], sweep))


def _small(recipe: Recipe, others: Sequence[Recipe], sweep: SweepSpec) -> Recipe:
    """``recipe`` with a batch of as few images as any step of the sweep has, two at most."""
    images = min(r.batch_size_per_worker // r.accumulation_steps for r in (recipe, *others))
    # The CPU stands in for a GPU, whose half precision and compiler are another matter.
    precision = "fp32" if sweep.resources.gpus_per_worker else recipe.precision
    return replace(
        recipe,
        batch_size_per_worker=max(1, min(MOST_IMAGES, images)),
        accumulation_steps=1,
        precision=precision,
        compile=False,
    )


def _mistake(sweep: SweepSpec, assignment: Assignment, error: str) -> str:
    backbone, recipe = assignment.backbone, assignment.recipe
    fix = "another model, image size or recipe"
    if ONE_VALUE in error:
        fix = (
            "two images or more in each micro-batch: --set recipe.batch_size_per_worker=N, or "
            "fewer recipe.accumulation_steps"
        )
    scale = "" if backbone.family == "timm" else f", scale {backbone.scale},"
    return (
        f"a backbone must take a training step before a run starts; {sweep.candidate}{scale} "
        f"with {recipe.batch_size_per_worker} images at a time does not: "
        f"{error.rstrip('.')}. Fix: {fix}"
    )
