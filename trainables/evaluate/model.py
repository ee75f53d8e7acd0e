"""From a checkpoint to a model, and what it predicts: for test evaluation, probes, export."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainables.backbones import build
from trainables.config import Assignment, DatasetFacts
from trainables.data.batches import load_pixels, shard
from trainables.data.build import prepare
from trainables.data.store import ImageStore
from trainables.errors import UserError
from trainables.evaluate.probes import fit_temperature, probe
from trainables.metrics import metric_of
from trainables.storage import trial_files
from trainables.train import checkpoint as checkpoints
from trainables.train.loop import TrainedModel, World, from_every_rank, on_device, predict, score

PROBE_IMAGES = 500


def load_model(
    assignment: Assignment, checkpoint: Path, dataset: DatasetFacts, device: str = "cpu"
) -> TrainedModel:
    """The model in ``checkpoint`` for images as ``dataset`` stores them.

    The moving average's weights where the recipe keeps one. Raises ``UserError`` where the
    checkpoint is damaged, or of another model.
    """
    recipe = assignment.recipe
    tensors = checkpoints.read_tensors(checkpoint, "model" if recipe.ema_decay is None else "ema")
    backbone = build(
        assignment.backbone,
        num_classes=len(dataset.class_names),
        height=dataset.height,
        width=dataset.width,
        load=False,
    )
    try:
        backbone.module.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(
            f"{checkpoint} holds no {backbone.geometry.model} ({str(error).splitlines()[0]}). "
            "Fix: name a trial whose checkpoint is whole"
        ) from error
    backbone.module.eval()
    return on_device(backbone, recipe, torch.device(device))


def model_of(
    assignment: Assignment, checkpoint: str, store: ImageStore, device: str = "cpu"
) -> TrainedModel:
    """:func:`load_model` for the images of ``store``; raises ``UserError`` also where the
    checkpoint is of another trial."""
    identity = checkpoints.identity(assignment, store.info.content_hash)
    checkpoints.read_state(Path(checkpoint), identity)
    return load_model(assignment, Path(checkpoint), store.info, device)


def evaluate_split(
    assignment: Assignment,
    checkpoint: str,
    split: str,
    world: World = World(),  # noqa: B008 - frozen
    *,
    store: ImageStore | None = None,
    limit: int | None = None,
) -> npt.NDArray[np.int64]:
    """Predicted class of every image of ``split``, or of the first ``limit``, (N,), by the model
    in ``checkpoint``. With several workers each predicts a shard and all return the whole."""
    opened = store or prepare(assignment.data, remote=assignment.remote)
    model = model_of(assignment, checkpoint, opened, world.device)
    pixels = load_pixels(opened, split, model.device)
    first = replace(pixels, labels=pixels.labels[:limit])  # the labels say how many are predicted
    return _joined([p.argmax(1) for p, _ in predict(model, first, world=world)], world).numpy()


def _joined(parts: list[Tensor], world: World) -> Tensor:
    """All workers' ``parts`` (B, ...) in the order of ranks, (N, ...), on the CPU of each."""
    own = torch.cat(parts).cpu() if parts else torch.empty(0, dtype=torch.int64)
    return torch.cat(from_every_rank(own, world))


def evaluate_test(
    assignment: Assignment,
    checkpoint: str,
    world: World = World(),  # noqa: B008 - frozen
    *,
    store: ImageStore | None = None,
    correct_file: Path | None = None,
) -> dict[str, Any]:
    """Evaluate the model in ``checkpoint`` on the test split: each image is predicted once.

    All ranks call it together. Returns, JSON-ready, ``test`` with the metrics that can be had of it
    by name, as :func:`trainables.train.loop.score` says, and ``n`` images, and from rank 0 alone
    ``probes`` of the first ``PROBE_IMAGES``, with the temperature that fits the validation images.
    Rank 0 writes which images are right, (N,), to ``correct_file`` when given. Raises ``Diverged``
    when the loss is not finite, and ``UserError`` as :func:`model_of` does."""
    opened = store or prepare(assignment.data, remote=assignment.remote)
    model = model_of(assignment, checkpoint, opened, world.device)
    pixels, part = load_pixels(opened, "test", model.device), opened.split("test")
    classes: list[Tensor] = []  # (B,) each
    probed: list[Tensor] = []  # logits (B, classes) each, of the images that are probed

    def recorded() -> Iterator[tuple[Tensor, Tensor]]:
        row, _ = shard(len(part.labels), world.rank, world.size)
        for logits, labels in predict(model, pixels, world=world):
            classes.append(logits.argmax(1))
            probed.append(logits[: max(0, PROBE_IMAGES - row)])
            row += len(labels)
            yield logits, labels

    scores = score(
        recorded(),
        world,
        judged=metric_of(assignment.metric),
        class_names=opened.info.class_names,
        images=len(part.labels),
    )
    correct = _joined(classes, world).numpy() == part.labels
    logits, validation = _joined(probed, world), load_pixels(opened, "val", model.device)
    val_logits = _joined([part for part, _ in predict(model, validation, world=world)], world)
    test: dict[str, Any] = {"test": {**scores, "n": len(correct)}}
    if world.rank > 0:
        return test
    if correct_file is not None:
        trial_files.write_correct(correct_file, correct)
    images, labels = part.images[:PROBE_IMAGES], part.labels[:PROBE_IMAGES]
    temperature = fit_temperature(val_logits, validation.labels.cpu())
    probes = probe(model, images, labels, logits=logits, temperature=temperature)
    return {**test, "probes": {"split": "test", **probes}}
