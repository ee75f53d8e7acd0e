"""python -m trainables.train.measure < REQUEST: what an epoch of each backbone costs here.

REQUEST is a :class:`~trainables.train.requests.MeasurementRequest`. Prints a
:class:`~trainables.train.requests.Measurement` per backbone, a JSON line, as soon as it is known;
and where the recipe leaves open whether the model is compiled, another one with what it costs then
in place of the first, if a full trial takes long enough for that to be worth a try. The steps are
those of training, on noise of the right size: nothing is read, and what is written is gone
afterwards.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainables.config import Assignment, DatasetFacts, DataSpec
from trainables.data.store import ImageStore, Split
from trainables.errors import one_line
from trainables.train.loop import World
from trainables.train.requests import CompiledCosts, Measurement, MeasurementRequest, StepCosts
from trainables.train.trial import Trial

VAL_IMAGES = 128
FEWEST_STEPS, MOST_STEPS = 3, 50
# A full trial's steps that take less have nothing to gain: compiling takes about that long.
SHORTEST_COMPILED_S = 60.0
NEVER = 1_000_000  # epochs: further than any measurement goes


@dataclass(frozen=True)
class Noise(ImageStore):
    """Random images in memory, in place of a dataset."""

    parts: Mapping[str, Split]

    def split(self, name: str) -> Split:
        """The images (N, H, W, 3) and labels (N,) of ``train`` or ``val``."""
        return self.parts[name]

    def digests(self, name: str) -> npt.NDArray[np.uint64]:
        """Row numbers (N,), in place of digests."""
        return np.arange(len(self.parts[name].labels), dtype=np.uint64)


def noise(*, train: int, height: int, width: int, classes: int) -> Noise:
    """``train`` random images (N, H, W, 3) and ``VAL_IMAGES`` to evaluate."""
    generator, parts = np.random.default_rng(0), {}
    for name, count in (("train", train), ("val", VAL_IMAGES)):
        images = generator.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
        parts[name] = Split(images=images, labels=generator.integers(0, classes, count))
    info = DatasetFacts(
        class_names=tuple(map(str, range(classes))),
        height=height,
        width=width,
        content_hash=f"noise-{height}-{width}-{train}",
    )
    return Noise(info, Path(), parts)


def measure(
    assignment: Assignment, *, height: int, width: int, classes: int, device: str, seconds: float
) -> StepCosts:
    """Measure epochs of one step each on one worker, ``seconds`` of them after a first one."""
    batch = assignment.recipe.batch_size_per_worker
    store = noise(train=batch, height=height, width=width, classes=classes)
    with tempfile.TemporaryDirectory() as folder:
        cold = _trial(assignment, store, device, folder).setup_seconds
        trial = _trial(assignment, store, device, folder)
        with saved_for_backward(trial) as activations:
            trial.train(lambda: False)
        trial.finish_epoch()
        reports = _reports(trial, seconds)
        checkpoint, facts = trial.save(), trial.facts()
        tensors, module = trial.learner.tensors(), trial.learner.module
        assert checkpoint is not None
        return StepCosts(
            train_seconds_per_image=statistics.median(map(_step_seconds, reports)) / batch,
            eval_seconds_per_image=statistics.median(r["eval_seconds"] for r in reports)
            / VAL_IMAGES,
            n=len(reports),
            first_setup_seconds=cold,
            setup_seconds=trial.setup_seconds,
            checkpoint_seconds=trial.clock.seconds["checkpoint"],
            checkpoint_bytes=sum(file.stat().st_size for file in Path(checkpoint).iterdir()),
            params_m=facts["params_m"],
            gflops_per_image=facts["gflops_per_image"],
            memory={
                "parameters": _bytes(tensors["model"].values()),
                "gradients": _bytes(p for p in module.parameters() if p.requires_grad),
                "optimizer": _bytes(tensors["optimizer"].values()),
                "average": _bytes(tensors.get("ema", {}).values()),
                "activations": sum(activations.values()),
            },
        )


def measure_compiled(
    assignment: Assignment, *, height: int, width: int, classes: int, device: str, seconds: float
) -> CompiledCosts:
    """Compile the model, which this process has not done before, and measure the steps after that
    as :func:`measure` does."""
    compiled = replace(assignment, recipe=replace(assignment.recipe, compile=True))
    batch = compiled.recipe.batch_size_per_worker
    store = noise(train=batch, height=height, width=width, classes=classes)
    with tempfile.TemporaryDirectory() as folder:
        trial = _trial(compiled, store, device, folder)
        started = time.perf_counter()
        trial.train(lambda: False)
        trial.finish_epoch()
        first = time.perf_counter() - started
        reports = _reports(trial, seconds)
    steady = statistics.median(map(_step_seconds, reports))
    evaluated = statistics.median(report["eval_seconds"] for report in reports)
    return CompiledCosts(
        compile_seconds=max(0.0, first - steady - evaluated),
        train_seconds_per_image=steady / batch,
    )


def _trial(assignment: Assignment, store: ImageStore, device: str, folder: str) -> Trial:
    on_its_own = replace(
        assignment,
        data=DataSpec(),
        epochs=NEVER,
        checkpoint=None,
        checkpoint_folder=folder,
        checkpoint_every_epochs=NEVER,
    )
    trial, recipe = Trial(on_its_own, World(device=device), store, load=False), assignment.recipe
    # What costs most counts: the whole network, where only its head learns at first.
    trial.progress.epoch = recipe.head_epochs if recipe.freeze == "head_then_full" else 0
    return trial


def _reports(trial: Trial, seconds: float) -> list[dict[str, float]]:
    """Metrics of epochs of one step, for that long."""
    reports: list[dict[str, float]] = []
    while len(reports) < FEWEST_STEPS or (
        len(reports) < MOST_STEPS and sum(map(_step_seconds, reports)) < seconds
    ):
        trial.train(lambda: False)
        reports.append(trial.finish_epoch()[0])
    return reports


def _step_seconds(report: Mapping[str, float]) -> float:
    return report["train_seconds"] + report["data_seconds"]


@contextmanager
def saved_for_backward(trial: Trial) -> Iterator[dict[int, int]]:
    """Bytes that the forward pass keeps for the backward one, by address; no parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in trial.learner.module.parameters()}
    stored: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            stored[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield stored


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def measurements(request: MeasurementRequest) -> Iterator[Measurement]:
    """One for each backbone, and another where it is compiled too: the last one is complete."""
    for label, backbone in request.backbones.items():
        assignment = backbone.assignment
        size = {"height": backbone.height, "width": backbone.width, "classes": backbone.classes}
        try:
            costs = measure(assignment, **size, device=request.device, seconds=request.seconds)
        except Exception as error:  # the plan goes on with an estimate, and says why
            reason = f"{type(error).__name__}: {one_line(error)[:200]}"
            yield Measurement(label=label, error=reason)
            continue
        yield Measurement(label=label, costs=costs)
        trial_s = backbone.trial_images * costs.train_seconds_per_image
        if assignment.recipe.compile is None and trial_s >= SHORTEST_COMPILED_S:
            with suppress(Exception):  # a model that cannot be compiled trains without
                compiled = measure_compiled(
                    assignment, **size, device=request.device, seconds=request.seconds
                )
                yield Measurement(label=label, costs=costs, compiled=compiled)


def main() -> None:
    """Read a request from stdin, print JSON lines for each backbone as it is measured."""
    request = MeasurementRequest.from_dict(json.load(sys.stdin))
    torch.set_num_threads(request.threads)
    for measurement in measurements(request):
        print(json.dumps(measurement.as_dict()), flush=True)


if __name__ == "__main__":
    main()
