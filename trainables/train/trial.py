"""One trial between its epochs: the learner, its pixels, its progress and what they cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice, tee
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainables.backbones import build
from trainables.config import Assignment
from trainables.data.batches import BatchPlan, load_pixels
from trainables.data.rng import key_of
from trainables.data.store import ImageStore, train_indices
from trainables.errors import Diverged, UserError
from trainables.metrics import metric_of
from trainables.train import checkpoint
from trainables.train.augmentation import Augmentation, Mixing, level_of
from trainables.train.class_balance import balanced_draws, class_weights, unused_weights
from trainables.train.learner import Batch, Learner
from trainables.train.loop import World, broadcast, mean_over_workers, predict, score
from trainables.train.optimizer import rate_at

PURPOSES = ("train", "eval", "checkpoint", "data")
BLOCK_BYTES = 8 << 20  # of float32 pixels, prepared at a time
CONSENSUS_STEPS = 8  # workers agree on stopping every so many steps
ACCELERATOR_CHECK_STEPS = 50  # reading the loss makes the host wait for the device


@dataclass
class Clock:
    """Seconds of wall time by purpose; a purpose inside another is taken out of the outer one."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PURPOSES, 0.0))
    _stack: list[str] = field(default_factory=list)
    _since: float = 0.0

    @contextmanager
    def on(self, purpose: str) -> Iterator[None]:
        """Charge the time within to ``purpose``."""
        self._charge()
        self._stack.append(purpose)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now


@dataclass
class TrainProgress:
    """Where a trial is: all that a checkpoint holds beside tensors.

    ``epoch`` counts epochs completed, ``images`` the images of the epoch under way that all
    workers together have trained on, ``loss_sum`` this worker's sum of their losses.
    """

    epoch: int = 0
    images: int = 0
    loss_sum: float = 0.0
    images_seen: int = 0
    flops: float = 0.0


class Trial:
    """One assignment made real on this worker; restored when it names a checkpoint. Without
    ``load`` its weights are drawn and none are fetched."""

    def __init__(
        self, assignment: Assignment, world: World, store: ImageStore, *, load: bool = True
    ) -> None:
        started = time.perf_counter()
        self.assignment, self.world, self.store = assignment, world, store
        self.device = torch.device(world.device)
        self.progress, self.clock = TrainProgress(), Clock()
        info, recipe = store.info, assignment.recipe
        rows = train_indices(store, assignment.data)
        labels = store.split("train").labels[rows]
        self._rows, self._row_labels = torch.from_numpy(rows), labels
        self.plan = BatchPlan(
            images=len(self._rows),
            batch_size_per_worker=recipe.batch_size_per_worker,
            world_size=world.size,
            full_size=world.full,
        )
        if not self.plan.steps:
            raise UserError(
                f"each worker needs a training image at least; got {len(self._rows)} for "
                f"{self.plan.full} workers. Fix: --workers 1, or raise data.train_limit"
            )
        seed_torch(key_of(assignment.seed), self.device)
        backbone = build(
            assignment.backbone,
            num_classes=len(info.class_names),
            height=info.height,
            width=info.width,
            drop_path=recipe.drop_path,
            usual_drop_path=level_of(recipe).drop_path,
            load=load,
        )
        weights = class_weights(recipe, labels, len(info.class_names))
        self.learner = Learner(backbone, recipe, world, self.plan, weights)
        self.learner.notes += filter(None, [unused_weights(recipe)])
        self._train_pixels = load_pixels(store, "train", self.device)
        self._val_pixels = load_pixels(store, "val", self.device)
        self._identity = checkpoint.identity(assignment, info.content_hash)
        if assignment.checkpoint is not None:
            self._restore(Path(assignment.checkpoint))
        self.learner.prepare_epoch(self.progress.epoch)
        self.setup_seconds = time.perf_counter() - started

    def train(self, should_stop: Callable[[], bool]) -> bool:
        """Train to the end of the epoch under way; ``False`` when stopped before it.

        Every step seeds torch's generator from seed, epoch, step and rank, so that dropout and
        stochastic depth go on after a resume as if there had been none. Raises ``Diverged``, on
        all workers alike, when the loss is not finite.
        """
        self.learner.prepare_epoch(self.progress.epoch)
        with self.clock.on("train"):
            finished = self._steps(should_stop)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        return finished

    def _steps(self, should_stop: Callable[[], bool]) -> bool:
        progress, plan, seed = self.progress, self.plan, self.assignment.seed
        first = round(progress.images / plan.global_batch)
        batches = self._batches(first)
        loss_sum = torch.tensor(progress.loss_sum, dtype=torch.float64, device=self.device)
        stopped = False
        for number in range(first, plan.steps + 1):
            stopped = self._stops(number, first, loss_sum, should_stop)
            if stopped or number == plan.steps:
                break
            with self.clock.on("data"):
                batch = next(batches)
            seed_torch(key_of(seed, progress.epoch, number, self.world.rank), self.device)
            loss = self.learner.take_step(batch, self._rate((number + 1) / plan.steps))
            loss_sum += loss.double() * len(batch)
            progress.images += plan.global_batch
            progress.images_seen += plan.global_batch
        progress.loss_sum = float(loss_sum)
        return not stopped

    def _stops(
        self, number: int, first: int, loss_sum: Tensor, should_stop: Callable[[], bool]
    ) -> bool:
        """Whether any worker is told to stop before step ``number``; raises ``Diverged``. Alike on
        all workers, who ask together."""
        due = number in (first, self.plan.steps)
        if self.world.size == 1:
            stopped = should_stop()
            read = due or self.device.type == "cpu" or number % ACCELERATOR_CHECK_STEPS == 0
            diverged = read and not loss_sum.isfinite()
        elif due or number % CONSENSUS_STEPS == 0:
            own = [float(should_stop()), float(not loss_sum.isfinite())]
            flags = torch.tensor(own, device=self.device)
            dist.all_reduce(flags, dist.ReduceOp.MAX)
            stopped, diverged = flags.bool().tolist()
        else:
            return False
        if diverged:
            raise Diverged(f"the training loss is not finite by step {number} of {self.plan.steps}")
        return stopped

    def _rate(self, share_of_epoch: float = 0.0) -> float:
        at = self.progress.epoch + share_of_epoch
        return rate_at(at, self.assignment.recipe, self.assignment.epochs)

    def finish_epoch(self) -> tuple[dict[str, float], str | None]:
        """Evaluate, count, save when due; returns the report's metrics and the folder written.
        Raises ``UserError`` where no validation image tells the metric that the trial is judged
        by."""
        progress, learner, trained_images = self.progress, self.learner, self.progress.images
        with self.clock.on("eval"):
            learner.average_buffers()
            predictions = predict(learner.trained, self._val_pixels, world=self.world)
            metric, images = metric_of(self.assignment.metric), len(self._val_pixels.labels)
            scores = score(
                predictions,
                self.world,
                judged=metric,
                class_names=self.store.info.class_names,
                images=images,
            )
            if metric.name not in scores:
                raise UserError(
                    f"a trial judged by {metric.name} needs validation images that tell it; none "
                    f"of {images} does. Fix: --metric top1, or a larger data.val_fraction"
                )
            train_loss = mean_over_workers(progress.loss_sum, self.world)
            train_loss *= self.world.size / max(trained_images, 1)
        flops = learner.flops()
        progress.flops += trained_images * flops.forward_backward
        progress.flops += images * flops.forward
        progress.epoch, progress.images, progress.loss_sum = progress.epoch + 1, 0, 0.0
        every = self.assignment.checkpoint_every_epochs
        due = progress.epoch == self.assignment.epochs or progress.epoch % max(1, every) == 0
        folder = self.save() if due else None
        seconds, self.clock = self.clock.seconds, Clock()
        metrics = {
            "epoch": float(progress.epoch),
            **{f"val_{name}": value for name, value in scores.items()},
            "train_loss": train_loss,
            "lr": self._rate(),
            "images_seen": float(progress.images_seen),
            "images_per_second": trained_images / max(seconds["train"] + seconds["data"], 1e-9),
            "flops": progress.flops,
            **{f"{purpose}_seconds": seconds[purpose] for purpose in PURPOSES},
        }
        if self.device.type == "cuda":
            metrics["gpu_memory_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        # rank 0's clock counts for all: every worker reports the same
        return broadcast(metrics, self.world), folder

    def save(self) -> str | None:
        """Write a checkpoint; returns its folder, ``None`` where the assignment names no place.

        In the middle of an epoch the workers' losses and batch statistics are averaged first.
        """
        if self.assignment.checkpoint_folder is None:
            return None
        name = f"epoch-{self.progress.epoch:04d}"
        with self.clock.on("checkpoint"):
            if self.progress.images:
                name += f"-image-{self.progress.images:08d}"
                self.progress.loss_sum = mean_over_workers(self.progress.loss_sum, self.world)
                self.learner.average_buffers()
            folder = Path(self.assignment.checkpoint_folder) / name
            if self.world.rank == 0:
                checkpoint.write(folder, self.learner.tensors(), self._state())
            if self.world.size > 1:
                dist.barrier()
        return str(folder)

    def facts(self) -> dict[str, Any]:
        """What this trial is, for the run's tags and parameters."""
        info, learner = self.store.info, self.learner
        geometry = learner.backbone.geometry.as_dict()
        return {
            **{key: geometry[key] for key in geometry if key not in ("family", "scale")},
            "params_m": sum(p.numel() for p in learner.module.parameters()) / 1e6,
            "gflops_per_image": learner.flops().forward / 1e9,
            "num_workers": self.world.size,
            "device": self.device.type,
            "precision": "bf16" if learner.trained.bf16 else "fp32",
            "num_classes": len(info.class_names),
            "dataset": info.name,
            "dataset_hash": info.content_hash,
            "train_images": self.plan.images,
            "val_images": info.counts.get("val"),
            "steps_per_epoch": self.plan.steps,
            "global_batch": self.plan.global_batch,
            "setup_seconds": self.setup_seconds,
        }

    def _batches(self, first_step: int) -> Iterator[Batch]:
        recipe, seed, epoch = self.assignment.recipe, self.assignment.seed, self.progress.epoch
        level = level_of(recipe)
        augmentation = Augmentation(
            level=level,
            transform=self.learner.trained.transform,
            seed=seed,
            mirror=recipe.flip and self.store.info.mirror_safe,
        )
        pixels = self._train_pixels
        mixing = Mixing(
            mixup=level.mixup, cutmix=level.cutmix, seed=seed, images=len(pixels.labels)
        )
        weights = mixing.weights(epoch, self.device) if level.mixup or level.cutmix else None
        rank, side = self.world.rank, self.learner.backbone.geometry.image_size
        draws, images_in_split = self._draws(), len(pixels.labels)
        steps = self.plan.batches(
            draws,
            seed=seed,
            epoch=epoch,
            rank=rank,
            first_step=first_step,
            row_groups=pixels.row_groups(draws % images_in_split),
        )
        size = len(self.plan.share(rank))
        # Preparing costs many small operations, and pixels depend on their row alone: several steps
        # at a time.
        at_once = max(1, BLOCK_BYTES // (size * 3 * side * side * 4))
        blocks = map(torch.cat, iter(lambda: list(islice(steps, at_once)), []))  # (steps * B,)
        drawn, cut = tee(blocks)
        rows_of_blocks = (in_block % images_in_split for in_block in cut)
        for in_block, (_, images, positions) in zip(
            drawn, pixels.cut_all(rows_of_blocks), strict=True
        ):
            ready = augmentation(images, in_block, epoch, positions=positions)
            parts = torch.split(in_block.to(self.device), size), torch.split(ready, size)
            for in_step, batch in zip(*parts, strict=True):
                labels = pixels.labels[in_step % images_in_split]
                if weights is None:
                    yield Batch(batch, labels)
                    continue
                mixture, partner, weight = mixing(batch, in_step, epoch, weights)
                yield Batch(mixture, labels, labels[partner], weight)

    def _draws(self) -> Tensor:
        """The images of the epoch under way by row, ascending, (N,) int64; an image that is drawn
        again has a number of its own, whose remainder by the images of the split is its row."""
        if self.assignment.recipe.sampler == "shuffle":
            return self._rows
        draws = balanced_draws(
            self._rows.numpy(),
            self._row_labels,
            len(self._train_pixels.labels),
            seed=self.assignment.seed,
            epoch=self.progress.epoch,
        )
        return torch.from_numpy(draws)

    def _state(self) -> checkpoint.State:
        ema = self.learner.ema
        return {
            "progress": asdict(self.progress),
            "seconds": dict(self.clock.seconds) if self.progress.images else {},
            "identity": self._identity,
            "workers": self.world.size,
            "accumulation": self.learner.accumulation,
            "ema_steps": None if ema is None else ema.steps,
        }

    def _restore(self, folder: Path) -> None:
        state = checkpoint.read_state(folder, self._identity)
        workers = state.get("workers", self.world.size)
        self.progress = TrainProgress(**state["progress"])
        self.progress.loss_sum *= workers / self.world.size  # the mean of so many sums
        self.clock.seconds.update(state["seconds"])
        self.learner.restore(folder, state)


def seed_torch(key: int, device: torch.device) -> None:
    """Seed torch's generators, also the accelerator's."""
    # torch.manual_seed would also queue a seed, with a stack trace, for an absent accelerator
    torch.default_generator.manual_seed(key >> 1)
    if device.type == "cuda":
        torch.cuda.manual_seed(key >> 1)
