"""python -m trainables.train.rehearse < REQUEST: whether each backbone takes one training step.

REQUEST is one JSON object: label -> ``{"assignment": …, "height": pixels, "width": pixels,
"classes": n, "step": whether it trains}``. The first line of the answer says how many ``gpus``
torch sees. Then the shapes of all models of timm are tried, which takes seconds; where one does not
fit, no step is taken. Else each model is built as a worker builds it and takes one step on the CPU,
on noise, with the assignment's batch. A JSON line for each that was tried to its end has its
``label``, an ``error`` where it failed, or the ``mistake`` of the user that is why, and ``notes``
of what the reading of a file of weights has to say.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

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


def failure_of(attempt: Callable[..., object], **asked: Any) -> dict[str, str]:
    """Why ``attempt`` fails, by whose fault it is; empty where it does not."""
    try:
        attempt(**asked)
    except MemoryError:
        return {"skipped": "this machine has not enough memory for it"}
    except UserError as error:
        return {"mistake": one_line(error)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {one_line(error)[:300]}"}
    return {}


def answers(request: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The lines after the first one."""
    asked = {
        label: {**row, "assignment": Assignment.from_dict(row["assignment"])}
        for label, row in request.items()
    }
    steps = {label: row.pop("step") for label, row in asked.items()}
    failures = {label: failure_of(try_shapes, **row) for label, row in asked.items()}
    if any(failures.values()):  # a step may take minutes, and there is something to mend already
        yield from ({"label": label, **failure} for label, failure in failures.items())
        return
    notes, logger = Notes(), logging.getLogger(weights.__name__)
    logger.addHandler(notes)
    logger.setLevel(logging.INFO)
    for label, row in asked.items():
        notes.lines = []
        failure = failure_of(take_step, **row) if steps[label] else {}
        yield {"label": label, **failure, "notes": list(dict.fromkeys(notes.lines))}


def main() -> None:
    """Read a request from stdin, print its lines."""
    request = json.load(sys.stdin)
    torch.set_num_threads(1)
    print(json.dumps({"gpus": torch.cuda.device_count()}), flush=True)
    for row in answers(request):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
