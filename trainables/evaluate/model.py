"""From a checkpoint to a model, and what it predicts: for test evaluation, probes, export."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc
import torch
from torch import Tensor

from trainables.backbones import Backbone, build, describe
from trainables.backbones.model import SUFFIXES, folder_config
from trainables.config import Assignment, BackboneSpec
from trainables.data.batches import load_pixels, shard
from trainables.data.build import prepare
from trainables.data.store import PixelStore
from trainables.errors import UserError
from trainables.evaluate.probes import Probes, probe
from trainables.train import checkpoint as checkpoints
from trainables.train.loop import (
    TrainedModel,
    World,
    from_every_rank,
    on_device,
    predict,
    score,
)

PROBE_IMAGES = 500


def load_model(
    assignment: Assignment,
    checkpoint: Path,
    *,
    num_classes: int,
    height: int,
    width: int,
    device: str = "cpu",
) -> TrainedModel:
    """The model in ``checkpoint`` for images stored at ``height`` x ``width`` pixels.

    The moving average's weights where the recipe keeps one. Built without the first weights, so
    no hub is asked. Raises ``UserError`` where the checkpoint is damaged, or of another model.
    """
    spec, recipe = assignment.backbone, assignment.recipe
    name = "model" if recipe.ema_decay is None else "ema"
    tensors = checkpoints.read_tensors(checkpoint, name)
    geometry = describe(spec, height=height, width=width)
    # The geometry follows the first weights; spelled out, it is built without them.
    plain = replace(
        spec,
        weights="none",
        image_size=geometry.image_size,
        patch=geometry.patch,
        stem=geometry.stem or spec.stem,
    )
    backbone = build(plain, num_classes=num_classes, height=height, width=width)
    try:
        backbone.module.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(
            f"{checkpoint} holds no {geometry.model} ({str(error).splitlines()[0]}). "
            "Fix: name a trial whose checkpoint is whole"
        ) from error
    mean, std = _pixel_statistics(spec, backbone)
    backbone = replace(backbone, geometry=geometry, mean=mean, std=std)
    backbone.module.eval()
    return on_device(backbone, recipe, torch.device(device))


def _pixel_statistics(spec: BackboneSpec, backbone: Backbone) -> tuple[Any, Any]:
    """Mean and deviation of pixels that the weights were first trained with."""
    place = Path(spec.weights).expanduser()
    if spec.weights in ("none", "hub") or place.suffix in SUFFIXES:
        return backbone.mean, backbone.std
    if not place.is_dir():
        raise UserError(
            f"the folder of the first weights says what pixels they expect; {spec.weights} is "
            "gone. Fix: put it back, its config.json at least"
        )
    stored = folder_config(spec.weights).get("pretrained_cfg", {})
    return tuple(stored.get("mean", backbone.mean)), tuple(stored.get("std", backbone.std))


def model_of(
    assignment: Assignment, checkpoint: str, store: PixelStore, device: str = "cpu"
) -> TrainedModel:
    """:func:`load_model` for the images of ``store``; raises ``UserError`` also where the
    checkpoint is of another trial."""
    info = store.info
    checkpoints.read_state(Path(checkpoint), checkpoints.identity(assignment, info.content_hash))
    return load_model(
        assignment,
        Path(checkpoint),
        num_classes=len(info.class_names),
        height=info.height,
        width=info.width,
        device=device,
    )


def evaluate_split(
    assignment: Assignment,
    checkpoint: str,
    split: str,
    world: World = World(),  # noqa: B008 - frozen
    *,
    store: PixelStore | None = None,
    limit: int | None = None,
) -> npt.NDArray[np.int64]:
    """Predicted class of every image of ``split``, or of the first ``limit``, (N,), by the model
    in ``checkpoint``. With several workers each predicts a shard and all return the whole."""
    opened = store or prepare(assignment.data, remote=assignment.remote)
    model = model_of(assignment, checkpoint, opened, world.device)
    pixels = load_pixels(opened, split, model.device)
    first = replace(pixels, images=pixels.images[:limit], labels=pixels.labels[:limit])
    return _joined([p.argmax(1) for p, _ in predict(model, first, world=world)], world).numpy()


def _joined(parts: list[Tensor], world: World) -> Tensor:
    """All workers' ``parts`` (B, ...) in the order of ranks, (N, ...), on the CPU of each."""
    own = torch.cat(parts).cpu() if parts else torch.empty(0, dtype=torch.int64)
    return torch.cat(from_every_rank(own, world))


@dataclass(frozen=True)
class TestEvaluation:
    """``correct`` has one bool an image of the test split: (N,). ``test`` holds ``top1``, ``top5``
    (absent under 5 classes), ``loss`` in nats and ``n`` images; ``probes`` are rank 0's alone."""

    __test__ = False  # no test of pytest's

    test: dict[str, float]
    probes: Probes | None
    correct: npt.NDArray[np.bool_]

    @property
    def detail(self) -> dict[str, Any]:
        """JSON-ready, without the images."""
        return {"test": self.test} | ({} if self.probes is None else {"probes": self.probes})


def evaluate_test(
    assignment: Assignment,
    checkpoint: str,
    world: World = World(),  # noqa: B008 - frozen
    *,
    store: PixelStore | None = None,
    correct_file: Path | None = None,
) -> TestEvaluation:
    """Evaluate the model in ``checkpoint`` on the test split: each image is predicted once.

    All ranks call it together. Rank 0 probes the first ``PROBE_IMAGES`` images and writes
    ``correct`` to ``correct_file`` when given. Raises ``Diverged`` when the loss is not finite, and
    ``UserError`` as :func:`model_of` does.
    """
    opened = store or prepare(assignment.data, remote=assignment.remote)
    model = model_of(assignment, checkpoint, opened, world.device)
    pixels, part = load_pixels(opened, "test", model.device), opened.split("test")
    classes: list[Tensor] = []  # (B,) each
    probed: list[Tensor] = []  # logits (B, classes) each, of the images that are probed

    def recorded() -> Iterator[tuple[Tensor, Tensor]]:
        row, _ = shard(len(part.labels), world.rank, world.size)
        for logits, labels in predict(model, pixels, world=world):
            classes.append(logits.argmax(1))
            if row < PROBE_IMAGES:
                probed.append(logits[: PROBE_IMAGES - row])
            row += len(labels)
            yield logits, labels

    scores = score(recorded(), world)
    correct = _joined(classes, world).numpy() == part.labels
    logits = _joined(probed, world)
    probes: Probes | None = None
    if world.rank == 0:
        if correct_file is not None:
            write_correct(correct_file, correct)
        images, labels = part.images[:PROBE_IMAGES], part.labels[:PROBE_IMAGES]
        probes = {"split": "test", **probe(model, images, labels, logits=logits)}
    return TestEvaluation({**scores, "n": len(correct)}, probes, correct)


def write_correct(path: Path, correct: npt.NDArray[np.bool_]) -> None:
    """Write one bool column ``correct`` (N,), in the split's order; seen whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"correct": pa.array(correct, pa.bool_())})
    half = path.with_suffix(".part")
    with pa.OSFile(str(half), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    half.rename(path)
