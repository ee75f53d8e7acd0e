"""What the engine's epoch is measured against: bare arithmetic, and the usual DataLoader."""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from trainables.backbones import build
from trainables.config import Assignment, BackboneSpec, DataSpec, Recipe
from trainables.data.store import ImageStore
from trainables.finetune import fine_tune
from trainables.train.learner import count_flops
from trainables.train.loop import World
from trainables.train.optimizer import build_optimizer


def from_random_weights(family: str, scale: str, recipe: Recipe, data: DataSpec) -> Assignment:
    """A trial that lasts as long as anyone asks it for epochs."""
    return Assignment(
        trial_id=f"{family}-{scale}",
        attempt=0,
        backbone=BackboneSpec(family=family, scale=scale, weights="none"),
        recipe=recipe,
        data=data,
        seed=0,
        epochs=1000,
    )


class Engine:
    """``fine_tune`` itself, with all that its recipe asks for, one epoch at a time.

    Given a rival, one of its steps follows each of the engine's, so that whatever else the machine
    does meets both alike; the engine's time is the epoch's without the rival's and without what
    it says it spent on evaluation.
    """

    def __init__(
        self, assignment: Assignment, store: ImageStore, device: torch.device, rival: Plain
    ) -> None:
        self.images = assignment.data.train_limit or 0
        self._rival, self._seconds, self._steps = rival, 0.0, 0
        self._paired = False
        self.epochs = fine_tune(
            assignment, World(device=str(device)), store=store, should_stop=self._between
        )

    def images_per_second(self) -> float:
        """One epoch's speed, alone."""
        self._paired = False
        return self._epoch()

    def beside_rival(self) -> tuple[float, float]:
        """One epoch's speed and the rival's, step by step in turns."""
        self._paired, self._seconds, self._steps = True, 0.0, 0
        engine = self._epoch()
        return engine, self._steps * self._rival.size / self._seconds

    def _epoch(self) -> float:
        before = self._seconds
        started = time.perf_counter()
        metrics = next(self.epochs).metrics
        elapsed = time.perf_counter() - started - (self._seconds - before)
        return self.images / (elapsed - metrics["eval_seconds"] - metrics["checkpoint_seconds"])

    def _between(self) -> bool:
        """What the engine asks between its steps; never a reason to stop."""
        if self._paired:
            started = time.perf_counter()
            self._rival.on_resident_batch(1)
            self._seconds += time.perf_counter() - started
            self._steps += 1
        return False


class Plain:
    """The same model and optimizer as the engine's, in the shortest loop that trains it.

    No gradient clipping, schedule, loss record or check: what the recipe adds, the engine pays.
    """

    def __init__(self, assignment: Assignment, store: ImageStore, device: torch.device) -> None:
        info, recipe = store.info, assignment.recipe
        self.device, self.bf16 = device, recipe.precision == "bf16"
        self.size = recipe.batch_size_per_worker
        backbone = build(
            assignment.backbone,
            num_classes=len(info.class_names),
            height=info.height,
            width=info.width,
        )
        side = backbone.geometry.image_size
        self.mean, self.std = backbone.mean, backbone.std
        self.flops_per_image = count_flops(backbone.module, side).forward_backward
        self.module = backbone.module.to(device).train()
        self.optimizer = build_optimizer(backbone.parameter_groups(recipe), recipe)
        self.images = torch.randn(self.size, 3, side, side, device=device)
        self.labels = torch.randint(len(info.class_names), (self.size,), device=device)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Forward, backward and update."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss = F.cross_entropy(self.module(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def on_resident_batch(self, steps: int) -> float:
        """Images per second of ``steps`` on one batch that never moves."""
        return self._timed([(self.images, self.labels)] * steps)

    def on_loader(self, loader: DataLoader[Any], steps: int, lead: int) -> float:
        """Images per second of ``steps`` on the loader's batches, after ``lead`` untimed ones.

        The lead lets workers fill their queue, and the loader's last batches are fetched but not
        trained on, so that the queue neither starts empty nor runs out within what is timed.
        """
        batches = self._moved(loader)
        for images, labels in itertools.islice(batches, lead):
            self.step(images, labels)
        speed = self._timed(itertools.islice(batches, steps))
        for _ in batches:
            pass
        return speed

    def _moved(self, loader: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in loader:
            yield (
                images.to(self.device, non_blocking=True),
                labels.to(self.device, non_blocking=True),
            )

    def _timed(self, batches: Any) -> float:
        self._wait()
        images, started = 0, time.perf_counter()
        for batch in batches:
            self.step(*batch)
            images += len(batch[1])
        self._wait()
        return images / (time.perf_counter() - started)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class ParquetPictures(Dataset[tuple[Tensor, int]]):
    """Rows of a Parquet, decoded by PIL and augmented by torchvision one at a time."""

    def __init__(self, path: Path, rows: list[int], mean: Any, std: Any) -> None:
        self.path, self.rows = path, rows
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )
        self.table: pa.Table | None = None  # opened by each worker for itself

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.table is None:
            self.table = pq.read_table(self.path, columns=["image", "label"], memory_map=True)
        row = self.rows[index]
        image = self.table["image"][row].as_py()
        encoded = image["bytes"] if isinstance(image, dict) else image
        picture = Image.open(io.BytesIO(encoded)).convert("RGB")
        return self.transform(picture), self.table["label"][row].as_py()


class Loader:
    """A DataLoader of ``steps`` timed batches over ``plain``'s model, with ``workers``."""

    def __init__(self, plain: Plain, path: Path, *, workers: int, steps: int) -> None:
        self.plain, self.steps = plain, steps
        self.lead = min(2, steps) if workers else 0
        count = plain.size * (steps + 2 * self.lead)
        total = pq.read_metadata(path).num_rows
        rows = np.random.default_rng(0).choice(total, count, replace=count > total).tolist()
        self.batches: DataLoader[Any] = DataLoader(
            ParquetPictures(path, rows, plain.mean, plain.std),
            batch_size=plain.size,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=plain.device.type == "cuda",
        )

    def images_per_second(self) -> float:
        """One epoch's speed."""
        return self.plain.on_loader(self.batches, self.steps, self.lead)
