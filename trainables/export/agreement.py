"""Whether an exported model says what the run's own evaluation says."""

from __future__ import annotations

from pathlib import Path

from trainables.config import Assignment
from trainables.data.build import prepare
from trainables.data.store import PixelStore
from trainables.export.timm_classifier import Classifier
from trainables.finetune import evaluate_split

IMAGES = 500


def agreement(
    assignment: Assignment, checkpoint: str, folder: Path, *, store: PixelStore | None = None
) -> tuple[int, int]:
    """Of how many validation images: the same class by ``checkpoint`` and by ``folder``.

    Looks at the first ``IMAGES``, on the CPU. Raises ``UserError`` as restoring a trial does.
    """
    opened = store or prepare(assignment.data, remote=assignment.remote)
    ours = evaluate_split(assignment, checkpoint, "val", store=opened, limit=IMAGES)
    images = opened.split("val").images[:IMAGES]
    theirs = Classifier(folder).predict(images)["probabilities"].argmax(1)
    return int((ours == theirs).sum()), len(theirs)
