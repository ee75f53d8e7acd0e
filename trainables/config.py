"""The recipe: every hyperparameter of one fine-tuning. No torch here, so a CLI can read it.

What a worker is asked to train. Plain frozen values: no torch, no ray, JSON both ways.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

OPTIMIZERS = ("adamw", "sgd", "lion")
FREEZE_MODES = ("full", "head", "head_then_full")
AUGMENT_LEVELS = ("none", "light", "medium", "heavy")
PRECISIONS = ("fp32", "bf16")
OPTIONAL_AXES = ("clip_grad_norm", "ema_decay")
WHOLE_AXES = ("batch_size_per_worker", "accumulation_steps", "head_epochs")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One complete choice of hyperparameters; every field is a searchable axis.

    ``batch_size_per_worker`` counts images per optimizer step and worker, before it is cut
    into ``accumulation_steps`` micro-batches, so the global batch is
    ``batch_size_per_worker * num_workers`` whatever the memory allows.
    """

    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    momentum: float = 0.9
    layer_decay: float = 1.0
    warmup_epochs: float = 1.0
    final_lr_fraction: float = 0.01
    freeze: str = "full"
    head_epochs: int = 1
    batch_size_per_worker: int = 64
    accumulation_steps: int = 1
    clip_grad_norm: float | None = 1.0
    ema_decay: float | None = None
    augment: str = "light"
    flip: bool = True
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    drop_path: float = 0.0
    precision: str = "fp32"
    compile: bool = False
    channels_last: bool = False

    def mistakes(self) -> list[str]:
        """Every rule this recipe breaks, one line each; empty when it is valid."""
        found: list[str] = []

        def one_of(name: str, valid: tuple[str, ...]) -> None:
            value = getattr(self, name)
            if value not in valid:
                found.append(
                    f"recipe.{name} must be one of {', '.join(valid)}; got {value!r}. "
                    f"Fix: --set recipe.{name}={valid[0]}"
                )

        def within(name: str, low: float, high: float, *, open_low: bool = False) -> None:
            value = getattr(self, name)
            if value is None and name in OPTIONAL_AXES:
                return
            good = isinstance(value, int | float) and not isinstance(value, bool)
            if good:
                good = (low < value if open_low else low <= value) and value <= high
            if not good:
                bracket = "(" if open_low else "["
                found.append(
                    f"recipe.{name} must be in {bracket}{low:g}, {high:g}]; got {value!r}. "
                    f"Fix: --set recipe.{name}=VALUE with a VALUE in that range"
                )

        def typed(kind: type, what: str, *names: str) -> None:
            for name in names:
                value = getattr(self, name)
                if type(value) is not kind:
                    found.append(
                        f"recipe.{name} must be {what}; got {value!r}. "
                        f"Fix: --set recipe.{name}={getattr(Recipe(), name)}"
                    )

        typed(int, "a whole number", *WHOLE_AXES)
        typed(bool, "true or false", "flip", "compile", "channels_last")
        if found:
            return found
        one_of("optimizer", OPTIMIZERS)
        one_of("freeze", FREEZE_MODES)
        one_of("augment", AUGMENT_LEVELS)
        one_of("precision", PRECISIONS)
        within("learning_rate", 0, 100, open_low=True)
        within("weight_decay", 0, 10)
        within("momentum", 0, 0.9999)
        within("layer_decay", 0, 1, open_low=True)
        within("warmup_epochs", 0, 1000)
        within("final_lr_fraction", 0, 1)
        within("head_epochs", 0, 100_000)
        within("batch_size_per_worker", 1, 65_536)
        within("accumulation_steps", 1, 4096)
        within("clip_grad_norm", 0, 1e6, open_low=True)
        within("ema_decay", 0, 0.999999)
        within("random_erasing", 0, 1)
        within("mixup", 0, 10)
        within("cutmix", 0, 10)
        within("label_smoothing", 0, 0.9)
        within("drop_path", 0, 0.9)
        if not found and self.batch_size_per_worker % self.accumulation_steps:
            found.append(
                "recipe.accumulation_steps must divide recipe.batch_size_per_worker; got "
                f"{self.accumulation_steps} and {self.batch_size_per_worker}. "
                "Fix: choose a divisor"
            )
        return found

    def as_dict(self) -> dict[str, Any]:
        """Flat, JSON-ready mapping of every axis."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Inverse of :meth:`as_dict`. Raises ``TypeError`` on an unknown axis."""
        return cls(**values)

    @classmethod
    def axes(cls) -> tuple[str, ...]:
        """Names of all axes, in declaration order."""
        return tuple(field.name for field in fields(cls))


def stable_hash(value: Any) -> str:
    """First 16 hex digits of SHA-256 over canonical JSON: the same on every machine."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


# A process that trains on a CPU starts in this environment: its freed memory stays with it. By
# default glibc hands large freed blocks back to the kernel at once, so that every step asks for
# its activations again, page by page: 240,000 page faults in a step of the small hybrid, a fifth
# of its time (benchmarks/allocator.py). Other C libraries take no notice.
LARGEST_INT = 2**31 - 1
FREED_MEMORY_KEPT = {
    "MALLOC_MMAP_THRESHOLD_": str(LARGEST_INT),
    "MALLOC_TRIM_THRESHOLD_": str(LARGEST_INT),
    # Threads other than the first have heaps of 64 MiB, which the trim threshold does not keep:
    # one is unmapped once it is empty, unless what is free before it is less than the padding.
    "MALLOC_TOP_PAD_": str(64 << 20),
}

SHIFT_IMAGES = 256  # of the validation split, that ``shift_offsets_px`` are tried on


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """Which timm model, and how it is adapted to the dataset's image size.

    ``family`` is ``resnet``, ``vit``, ``hybrid``, ``convnext`` or ``timm``; for ``timm`` the
    field ``model`` names any timm classifier and ``scale`` is ignored. ``weights`` is ``hub``,
    ``none`` or a path. ``image_size`` is the side in pixels that the model sees (the worker
    resizes on the device); ``None`` means the dataset's own, never below 32. ``patch`` is the
    patch side in pixels of that image; ``None`` takes the family's choice for the size.
    ``stem`` is ``auto``, ``original`` or ``small`` (3x3, stride 1, no max-pool).
    """

    family: str
    scale: str = "tiny"
    model: str | None = None
    weights: str = "none"
    image_size: int | None = None
    patch: int | None = None
    stem: str = "auto"


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Which images, and which share of them.

    ``source`` is ``digits``, ``cifar10``, ``cifar100`` or a path. ``archive`` is a local
    official CIFAR archive or its unpacked folder. ``train_limit`` counts training images
    (seeded, stratified); ``fraction`` is a share of them, nested: the 10 % lies inside the 30 %.
    ``val_fraction`` is carved from train where the source has no ``val`` split, and
    ``test_fraction`` where it has no ``test`` split; ``split_seed`` draws both, ``val_seed`` draws
    another val beside the same test. ``short_side`` is the stored short side in
    pixels of images that are larger (``None``: at most 64). ``folder`` keeps pixel stores.
    """

    source: str = "digits"
    archive: str | None = None
    train_limit: int | None = None
    fraction: float = 1.0
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    split_seed: int = 0
    val_seed: int | None = None
    short_side: int | None = None
    skip_corrupt: bool = False
    folder: str | None = None


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """One trial's attempt, complete: a worker needs nothing else to train it.

    ``epochs`` is the full length that the learning-rate schedule is laid out for; a trial may
    be stopped before. ``checkpoint`` is the folder to resume from (``None``: epoch 0) and
    ``checkpoint_folder`` the parent of the folders written, unique per attempt. With
    ``shift_offsets_px`` every report says how consistent the predictions are under these shifts.
    ``remote`` is the URI of the run's folder where it is kept in object storage: then only the
    last names of both paths count, below a folder that is the worker's node's own.
    """

    trial_id: str
    attempt: int
    backbone: BackboneSpec
    recipe: Recipe
    data: DataSpec
    seed: int
    epochs: int
    checkpoint: str | None = None
    checkpoint_folder: str | None = None
    checkpoint_every_epochs: int = 1
    epoch_timeout_s: float = 3600.0
    shift_offsets_px: tuple[int, ...] = ()
    remote: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Nested, JSON-ready mapping."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Assignment:
        """Inverse of :meth:`as_dict`."""
        return cls(
            **{
                **values,
                "backbone": BackboneSpec(**values["backbone"]),
                "recipe": Recipe.from_dict(values["recipe"]),
                "data": DataSpec(**values["data"]),
                "shift_offsets_px": tuple(values.get("shift_offsets_px", ())),
            }
        )


@dataclass(frozen=True)
class EpochReport:
    """One epoch done: ``epoch`` counts from 1; ``metrics`` has DESIGN's names, missing is absent.

    ``images_seen`` and ``flops`` are cumulative over the trial, seconds are of this epoch.
    ``checkpoint`` is the folder that rank 0 wrote, if one was due. ``detail`` holds facts of the
    trial, on its first report, and ``notes`` whenever something was done differently.
    """

    epoch: int
    metrics: dict[str, float]
    checkpoint: str | None = None
    detail: dict[str, Any] = field(default_factory=dict)
