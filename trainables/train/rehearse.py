"""python -m trainables.train.rehearse < REQUEST: whether each backbone takes one training step.

REQUEST is one JSON object: label -> :class:`~trainables.train.requests.Rehearsal`. The first line
of the answer says how many ``gpus`` torch sees. Then the shapes of all models of timm are tried,
which takes seconds; where one does not fit, no step is taken. Else each model is built as a worker
builds it and takes one step on the CPU, on noise, with the assignment's batch. A
:class:`~trainables.train.requests.Rehearsed` follows for each that was tried to its end.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch

from trainables.backbones import build, weights
from trainables.config import NAMED_WEIGHTS, Assignment, DataSpec
from trainables.errors import UserError, one_line
from trainables.train.loop import World
from trainables.train.measure import NEVER, noise
from trainables.train.requests import Rehearsal, Rehearsed
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


def try_shapes(assignment: Assignment, *, height: int, width: int, classes: int) -> bool:
    """See that a timm model takes the assignment's batch and gives one score a class.

    On the meta device, which holds no values: seconds for the largest model. Raises ``UserError``
    for an output that is not (B, classes), as an encoder's tokens are, and what the model raises of
    images of that size. ``False`` where nothing was seen, because the family is another one or the
    device cannot do what the model does; a step says then.
    """
    backbone, images = assignment.backbone, assignment.recipe.batch_size_per_worker
    if backbone.family != "timm":
        return False
    try:
        with torch.device("meta"):
            built = build(backbone, num_classes=classes, height=height, width=width, load=False)
            side = built.geometry.image_size
            logits = built.module.train()(torch.empty(images, 3, side, side))
    except Exception as error:  # each model fails in its own way
        if isinstance(error, NotImplementedError) or "meta" in str(error).lower():
            return False
        raise
    shape = tuple(getattr(logits, "shape", ()))
    if shape != (images, classes):
        raise UserError(
            f"a backbone must give one score a class; the output of timm:{backbone.model} for "
            f"{images} images has the shape {shape}. Fix: a classifier of timm"
        )
    return True


def tried(label: str, attempt: Callable[..., object], asked: Rehearsal) -> Rehearsed:
    """Whether ``attempt`` fails, and by whose fault."""
    try:
        attempt(asked.assignment, height=asked.height, width=asked.width, classes=asked.classes)
    except MemoryError:
        return Rehearsed(label=label, skipped="this machine has not enough memory for it")
    except UserError as error:
        return Rehearsed(label=label, mistake=one_line(error))
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)[:300]}"
        return Rehearsed(label=label, error=reason)
    return Rehearsed(label=label)


def answers(request: Mapping[str, Rehearsal]) -> Iterator[Rehearsed]:
    """The lines after the first one."""
    shapes = [tried(label, try_shapes, asked) for label, asked in request.items()]
    # A step may take minutes, and there is something to mend already.
    if any(row != Rehearsed(label=row.label) for row in shapes):
        yield from shapes
        return
    notes, logger = Notes(), logging.getLogger(weights.__name__)
    logger.addHandler(notes)
    logger.setLevel(logging.INFO)
    for label, asked in request.items():
        notes.lines = []
        row = tried(label, take_step, asked) if asked.step else Rehearsed(label=label)
        yield replace(row, notes=tuple(dict.fromkeys(notes.lines)))


def main() -> None:
    """Read a request from stdin, print its lines."""
    plain = json.load(sys.stdin)
    request = {label: Rehearsal.from_dict(values) for label, values in plain.items()}
    torch.set_num_threads(1)
    print(json.dumps({"gpus": torch.cuda.device_count()}), flush=True)
    for row in answers(request):
        print(json.dumps(row.as_dict()), flush=True)


if __name__ == "__main__":
    main()
