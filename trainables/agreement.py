"""Whether an exported model says what the run's own evaluation says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from trainables.assignment import Assignment
from trainables.backbones.timm_classifier import Classifier
from trainables.data import PixelStore, prepare
from trainables.finetune import resumed
from trainables.loop import World, predict
from trainables.trial_state import Trial

IMAGES = 500


def agreement(
    assignment: Assignment, checkpoint: str, folder: Path, *, store: PixelStore | None = None
) -> tuple[int, int]:
    """Of how many validation images: the same class by ``checkpoint`` and by ``folder``.

    Looks at the first ``IMAGES``, on the CPU. Raises ``UserError`` as restoring a trial does.
    """
    trial = Trial(resumed(assignment, checkpoint), World(), store or prepare(assignment.data))
    pixels, learner = trial.pixels("val"), trial.learner
    few = replace(pixels, images=pixels.images[:IMAGES], labels=pixels.labels[:IMAGES])
    ours = torch.cat(
        [
            logits.argmax(1)
            for logits, _ in predict(
                learner.evaluated, few, learner.look, world=World(), bf16=learner.bf16
            )
        ]
    )
    theirs = Classifier(folder).predict(few.images.numpy())["probabilities"].argmax(1)
    return int((ours.numpy() == theirs).sum()), len(theirs)
