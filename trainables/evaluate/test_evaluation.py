"""What a final says once the sealed test is open: its score, image by image, and its probes.

Per-image correctness of a final on the test split, as an Arrow file beside its run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc

from trainables.config import Assignment
from trainables.data.build import prepare
from trainables.data.store import PixelStore
from trainables.evaluate import probe_trial
from trainables.finetune import evaluate_split, resumed
from trainables.train.loop import World, evaluate
from trainables.train.trial import Trial


def write_correct(path: Path, correct: npt.NDArray[np.bool_]) -> None:
    """Write one bool column ``correct`` (N,), in the split's order; seen whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"correct": pa.array(correct, pa.bool_())})
    half = path.with_suffix(".part")
    with pa.OSFile(str(half), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    half.rename(path)


PROBE_IMAGES = 500


@dataclass(frozen=True)
class Examined:
    """``detail`` is JSON-ready; ``correct`` has one bool an image of the test split: (N,)."""

    detail: dict[str, Any]
    correct: npt.NDArray[np.bool_]


def examine(
    assignment: Assignment,
    checkpoint: str,
    world: World = World(),  # noqa: B008 - frozen
    *,
    store: PixelStore | None = None,
    correct_file: Path | None = None,
) -> Examined:
    """Evaluate the model in ``checkpoint`` on the test split.

    All ranks call it together. ``detail["test"]`` holds ``top1``, ``top5`` (absent under 5
    classes), ``loss`` in nats and ``n`` images. Rank 0 adds ``detail["probes"]``, taken on the
    first ``PROBE_IMAGES`` images, and writes ``correct`` to ``correct_file`` when given.
    """
    opened = store or prepare(assignment.data, remote=assignment.remote)
    trial = Trial(resumed(assignment, checkpoint), world, opened)
    pixels, learner = trial.pixels("test"), trial.learner
    scores = evaluate(learner.evaluated, pixels, learner.transform, world=world, bf16=learner.bf16)
    predicted = evaluate_split(assignment, checkpoint, "test", world, store=opened)
    correct = predicted == opened.split("test").labels
    if correct_file is not None and world.rank == 0:
        write_correct(correct_file, correct)
    detail: dict[str, Any] = {"test": {**scores, "n": len(correct)}}
    if world.rank == 0:
        detail["probes"] = probe_trial(
            assignment,
            checkpoint,
            split="test",
            limit=PROBE_IMAGES,
            device=world.device,
            store=opened,
        )
    return Examined(detail, correct)
