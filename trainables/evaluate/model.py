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
from trainables.evaluate import predictions
from trainables.evaluate.predictions import KeptProbabilities
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


class _Kept:
    """What is kept of this worker's predictions of ``split``, batch by batch, so that a large test
    split of many classes needs no memory for all of its probabilities."""

    def __init__(self, split: str, images: int, num_classes: int) -> None:
        self.split, self._num_classes = split, num_classes
        self._whole = predictions.keeps_all(images, num_classes)
        self._values: list[Tensor] = []
        self._classes: list[Tensor] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Logits (B, classes) and labels (B,) of the next images."""
        values = logits.double().softmax(1).float().cpu()
        if not self._whole:
            classes, kept = predictions.most_probable(values.numpy(), labels.cpu().numpy())
            self._classes.append(torch.from_numpy(classes))
            values = torch.from_numpy(kept)
        self._values.append(values)

    def joined(self, world: World) -> KeptProbabilities:
        """Of all workers, in the order of ranks."""
        return KeptProbabilities(
            values=_joined(self._values, world).numpy(),
            classes=None if self._whole else _joined(self._classes, world).numpy(),
            num_classes=self._num_classes,
        )


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
    Rank 0 writes which images are right, (N,), and their groups to ``correct_file`` when given, and
    before that, beside it, what was predicted of test and val (``predictions.py``). Raises
    ``Diverged`` when the loss is not finite, and ``UserError`` as :func:`model_of` does.
    """
    opened = store or prepare(assignment.data, remote=assignment.remote)
    model = model_of(assignment, checkpoint, opened, world.device)
    pixels, part = load_pixels(opened, "test", model.device), opened.split("test")
    classes: list[Tensor] = []  # (B,) each
    probed: list[Tensor] = []  # logits (B, classes) each, of the images that are probed
    kept = _Kept("test", len(part.labels), len(opened.info.class_names))

    def recorded() -> Iterator[tuple[Tensor, Tensor]]:
        row, _ = shard(len(part.labels), world.rank, world.size)
        for logits, labels in predict(model, pixels, world=world):
            classes.append(logits.argmax(1))
            probed.append(logits[: max(0, PROBE_IMAGES - row)])
            kept.add(logits, labels)
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
    of_val = _Kept("val", *val_logits.shape)
    of_val.add(val_logits, validation.labels.cpu())
    test: dict[str, Any] = {"test": {**scores, "n": len(correct)}}
    tested = kept.joined(world)
    if world.rank > 0:
        return test
    if correct_file is not None:
        for split, probabilities in (("test", tested), ("val", of_val.joined(World()))):
            predictions.write_kept(
                trial_files.predictions_file(correct_file.parent, split), split,
                opened.labels(split), probabilities, opened.digests(split),
            )  # fmt: skip
        trial_files.write_correct(correct_file, correct, opened.groups("test"))
    images, labels = part.images[:PROBE_IMAGES], part.labels[:PROBE_IMAGES]
    temperature = fit_temperature(val_logits, validation.labels.cpu())
    probes = probe(model, images, labels, logits=logits, temperature=temperature)
    return {**test, "probes": {"split": "test", **probes}}
