"""python -m trainables.train.rehearse < REQUEST: whether each backbone takes one training step.

REQUEST is one JSON object: label -> ``{"assignment": …, "height": pixels, "width": pixels,
"classes": n}``. The model is built as a worker builds it and takes one step on the CPU, on noise,
with the assignment's batch. Prints a JSON line for each: its ``label``, and an ``error`` where it
does not, or the ``mistake`` of the user that is why, and ``notes`` of what the reading of a file of
weights has to say. The first line says how many ``gpus`` torch sees.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace

import torch

from trainables.backbones import build, weights
from trainables.config import NAMED_WEIGHTS, Assignment, DataSpec
from trainables.errors import UserError, one_line
from trainables.train.loop import World
from trainables.train.measure import NEVER, noise
from trainables.train.trial import Trial


def take_step(assignment: Assignment, *, height: int, width: int, classes: int) -> None:
    """Build the assignment's model and train it on one batch of noise; raises what a worker would.

    The whole network learns, also where only its head does at first. Nothing is downloaded: weights
    of the hub are drawn, for the model and the side that they are published for.
    """
    recipe = assignment.recipe
    store = noise(train=recipe.batch_size_per_worker, height=height, width=width, classes=classes)
    with tempfile.TemporaryDirectory() as folder:
        alone = replace(
            assignment,
            data=DataSpec(),
            epochs=NEVER,
            checkpoint=None,
            checkpoint_folder=folder,
            remote=None,
        )
        load = assignment.backbone.weights not in NAMED_WEIGHTS
        trial = Trial(alone, World(device="cpu"), store, load=load)
        trial.progress.epoch = recipe.head_epochs if recipe.freeze == "head_then_full" else 0
        trial.train(lambda: False)


class Notes(logging.Handler):
    """Keeps what is logged, for the process that has asked."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """One line more."""
        self.lines.append(record.getMessage())


def require_classifier(assignment: Assignment, *, height: int, width: int, classes: int) -> None:
    """Raise ``UserError`` for a timm model whose output is not (B, classes): an encoder's tokens.

    On the meta device, which holds no values. What fails there is for the step itself to say.
    """
    backbone, images = assignment.backbone, assignment.recipe.batch_size_per_worker
    if backbone.family != "timm":
        return
    shape = None
    with suppress(Exception), torch.device("meta"):
        built = build(backbone, num_classes=classes, height=height, width=width, load=False)
        side = built.geometry.image_size
        logits = built.module.train()(torch.empty(images, 3, side, side))
        shape = tuple(getattr(logits, "shape", ()))
    if shape not in (None, (images, classes)):
        raise UserError(
            f"a backbone must give one score a class; the output of timm:{backbone.model} for "
            f"{images} images has the shape {shape}. Fix: a classifier of timm"
        )


def main() -> None:
    """Read a request from stdin, print its lines."""
    request = json.load(sys.stdin)
    notes, logger = Notes(), logging.getLogger(weights.__name__)
    logger.addHandler(notes)
    logger.setLevel(logging.INFO)
    torch.set_num_threads(1)
    print(json.dumps({"gpus": torch.cuda.device_count()}), flush=True)
    for label, backbone in request.items():
        assignment = Assignment.from_dict(backbone.pop("assignment"))
        row: dict[str, object] = {"label": label}
        notes.lines = []
        try:
            require_classifier(assignment, **backbone)
            take_step(assignment, **backbone)
        except MemoryError:
            row["skipped"] = "this machine has not enough memory for it"
        except UserError as error:
            row["mistake"] = one_line(error)
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {one_line(error)[:300]}"
        row["notes"] = list(dict.fromkeys(notes.lines))
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
