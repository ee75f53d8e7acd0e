"""A run that began with the defaults of another version goes on with those.

What a command leaves open follows the version's defaults: the number of epochs, the side of the
images, the set of augmentations. The number of epochs follows from the images and the budget too,
so a run that has begun keeps it. A run's name stays with its spec, so the same command typed again
by a later version has to mean what it meant.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from orchestrator.launch.length import at_length
from orchestrator.ledger import replication, session
from orchestrator.spec.candidates import default_label
from orchestrator.spec.overrides import apply_sets
from orchestrator.spec.run import RunSpec
from trainables.storage import object_storage
from trainables.storage.object_storage import is_remote

log = logging.getLogger(__name__)


def continued(spec: RunSpec, texts: Sequence[str]) -> RunSpec:
    """``spec``, or where its run began by earlier defaults, the run's own sweeps with what the
    command sets by ``texts`` (``PATH=VALUE``). Raises ``StorageError``, and ``UserError`` as
    :func:`apply_sets` does."""
    if is_remote(spec.storage):
        if object_storage.mistakes(spec.storage.rstrip("/")):
            return spec  # which validation refuses, with the reason
        replication.pull(spec.storage, spec.name)
    state = session.state_of(spec.folder.resolve())
    began = state.spec
    if not state.begun:
        return spec
    typed, spec = spec, _with_labels_of(began, spec)
    candidates = [sweep.candidate for sweep in spec.sweeps]
    if candidates != [sweep.candidate for sweep in began.sweeps]:
        return spec
    if began.defaults == spec.defaults:
        return _with_length_of(began, spec, texts)
    log.info(f"{spec.name} began with earlier defaults: what the command leaves open stays as then")
    # ``texts`` name candidates as they are typed now.
    began_as_typed = [
        replace(then, label=now.label) for then, now in zip(began.sweeps, typed.sweeps, strict=True)
    ]
    sweeps = tuple(
        replace(then, label=now.label, warm_start=now.warm_start)
        for then, now in zip(apply_sets(began_as_typed, texts), spec.sweeps, strict=True)
    )
    return replace(spec, sweeps=sweeps, defaults=began.defaults)


def _with_labels_of(began: RunSpec, spec: RunSpec) -> RunSpec:
    """``spec`` with its timm model labelled as in its run, which began when there was one at most
    and it was labelled timm."""
    if len(began.sweeps) != len(spec.sweeps):
        return spec
    sweeps = tuple(
        replace(now, label=None)
        if then.label is None and now.label == default_label(then.backbone.model or "")
        else now
        for then, now in zip(began.sweeps, spec.sweeps, strict=True)
    )
    return replace(spec, sweeps=sweeps)


def _with_length_of(began: RunSpec, spec: RunSpec, texts: Sequence[str]) -> RunSpec:
    """``spec`` at the length that its run has, where both leave it to the same least steps: images
    are not counted again, and another budget does not make another run."""
    then, now = began.sweeps[0].scheduler, spec.sweeps[0].scheduler
    if now.least_steps is None or then.least_steps != now.least_steps:
        return spec
    return at_length(spec, then.max_epochs, texts)
