"""What a worker is asked to train, as frozen values: recipe, backbone, data, assignment.

No torch here, so a CLI can read it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainables.spec import OPERATIONAL, Spec, ruled

AUGMENT_LEVELS = ("none", "light", "medium", "heavy")
AUGMENT_SETS = ("geometric", "published")
# First weights from timm's hub: of a family's usual member, or of one whose weights have learned
# from ImageNet-1k or ImageNet-21k alone, as those of the other families.
ALIKE = ("in1k", "in21k")
HUB_WEIGHTS = ("hub", *ALIKE)
NAMED_WEIGHTS = (*HUB_WEIGHTS, "none")  # all else is a path
LEVELS_OF_ALL_SETS = ("none", "light")  # the same in each
STORE_FORMS = ("auto", "pixels", "encoded")
CLASS_WEIGHTS = ("none", "balanced", "effective")
SAMPLERS = ("shuffle", "balanced")
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Recipe(Spec, section="recipe"):
    """One complete choice of hyperparameters; every field is a searchable axis.

    ``batch_size_per_worker`` counts images per optimizer step and worker, before it is cut
    into ``accumulation_steps`` micro-batches, so the global batch is
    ``batch_size_per_worker * num_workers`` whatever the memory allows. A layer that is d below
    the classifier learns at ``learning_rate * layer_decay ** d``, the classifier at
    ``learning_rate * head_lr_multiplier``.

    ``augment_set`` says what the levels of ``augment`` are: ``geometric`` those of runs from before
    it, ``published`` those in kind of AugReg and DeiT (:mod:`trainables.train.augmentation`). A
    level of these holds mixup, CutMix, erasing and stochastic depth; ``mixup``, ``cutmix``,
    ``random_erasing`` and ``drop_path`` count where they are more than the level's. ``bf16`` is
    autocast, on a GPU with TF32 for what stays in fp32; ``fp32`` is IEEE single precision
    throughout. ``compile`` may be ``None``: where a measured step says that it pays within a trial.
    ``class_weights`` and ``sampler`` are for classes of unequal size
    (:mod:`trainables.train.class_balance`): what an image counts in the training loss by its class,
    and which images an epoch has, each once or of every class equally many, as many in all.
    Warm-up is ``warmup_share`` of the full length, or ``warmup_epochs`` where that is ``None``, as
    it is in recipes of before it.
    """

    optimizer: str = ruled("adamw", choices=("adamw", "sgd", "lion"))
    learning_rate: float = ruled(1e-3, 0, 100, open_low=True)
    weight_decay: float = ruled(0.05, 0, 10)
    momentum: float = ruled(0.9, 0, 0.9999)
    layer_decay: float = ruled(1.0, 0, 1, open_low=True)
    head_lr_multiplier: float = ruled(1.0, 0, 1000, open_low=True, before=1.0)
    warmup_epochs: float = ruled(1.0, 0, 1000)
    warmup_share: float | None = ruled(None, 0, 0.5, before=None)
    final_lr_fraction: float = ruled(0.01, 0, 1)
    freeze: str = ruled("full", choices=("full", "head", "head_then_full"))
    head_epochs: int = ruled(1, 0, 100_000)
    batch_size_per_worker: int = ruled(64, 1, 65_536)
    accumulation_steps: int = ruled(1, 1, 4096)
    clip_grad_norm: float | None = ruled(1.0, 0, 1e6, open_low=True)
    ema_decay: float | None = ruled(None, 0, 0.999999)
    augment: str = ruled("light", choices=AUGMENT_LEVELS)
    augment_set: str = ruled("published", choices=AUGMENT_SETS, before="geometric")
    flip: bool = ruled(True)
    random_erasing: float = ruled(0.0, 0, 1)
    mixup: float = ruled(0.0, 0, 10)
    cutmix: float = ruled(0.0, 0, 10)
    label_smoothing: float = ruled(0.0, 0, 0.9)
    class_weights: str = ruled("none", choices=CLASS_WEIGHTS, before="none")
    sampler: str = ruled("shuffle", choices=SAMPLERS, before="shuffle")
    drop_path: float = ruled(0.0, 0, 0.9)
    precision: str = ruled("fp32", choices=("fp32", "bf16"))
    compile: bool | None = ruled(False)
    channels_last: bool = ruled(False)

    def mistakes(self) -> list[str]:
        """Every rule this recipe breaks, one line each; empty when it is valid."""
        mistakes = super().mistakes()
        if mistakes or self.batch_size_per_worker % self.accumulation_steps == 0:
            return mistakes
        return [
            "recipe.accumulation_steps must divide recipe.batch_size_per_worker; got "
            f"{self.accumulation_steps} and {self.batch_size_per_worker}. Fix: choose a divisor"
        ]

    def warmup_of(self, epochs: int) -> float:
        """Epochs of warm-up in a full length of ``epochs``, half of it at most."""
        asked = self.warmup_epochs if self.warmup_share is None else self.warmup_share * epochs
        return min(asked, epochs / 2)


def stable_hash(value: Any) -> str:
    """First 16 hex digits of SHA-256 over canonical JSON: the same on every machine."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


# A process that trains on a CPU starts in this environment: its freed memory stays with it. By
# default glibc hands large freed blocks back to the kernel at once, so that every step asks for
# its activations again, page by page: 240,000 page faults in a step of the small hybrid, a fifth
# of its time (benchmarks/allocator.py). Other C libraries take no notice.
FREED_MEMORY_KEPT = {
    "MALLOC_MMAP_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    # Threads other than the first have heaps of 64 MiB, which the trim threshold does not keep:
    # one is unmapped once it is empty, unless what is free before it is less than the padding.
    "MALLOC_TOP_PAD_": str(64 << 20),
}

SHIFT_IMAGES = 256  # of the validation split, that ``shift_offsets_px`` are tried on


@dataclass(frozen=True, kw_only=True)
class BackboneSpec(Spec, section="backbone"):
    """Which timm model, and how it is adapted to the dataset's image size.

    ``family`` is ``resnet``, ``vit``, ``hybrid``, ``convnext`` or ``timm``; for ``timm`` the
    field ``model`` names any timm classifier and ``scale`` is ignored. ``weights`` is ``hub``,
    ``in1k`` or ``in21k`` (a member of the family whose weights have learned from ImageNet-1k or
    -21k alone), ``none`` or a path. ``image_size`` is the side in pixels that the model sees (the
    worker resizes on the device); ``None`` means the stored images' own, never below 32. Where it
    follows the weights, whoever makes the spec asks :func:`trainables.backbones.weights_sides` and
    writes it down, so that a spec means the same whatever timm publishes later. ``patch`` is the
    patch side in pixels of that image; ``None`` takes the family's choice for the size.
    ``stem`` is ``auto``, ``original`` or ``small`` (3x3, stride 1, no max-pool). ``hub_pins`` are
    the revisions of the hub's repositories that are loaded, ``REPOSITORY@COMMIT`` and more of them
    after a blank; a run writes them down when it begins. Names are checked by
    :func:`trainables.backbones.check_backbone`.
    """

    family: str
    scale: str = "tiny"
    model: str | None = None
    weights: str = "none"
    image_size: int | None = ruled(None, 8, 1024, unit="pixels", fix=32)
    patch: int | None = ruled(None, 1, 1024, unit="pixels", fix=4)
    stem: str = "auto"
    hub_pins: str | None = field(default=None, metadata=OPERATIONAL)

    def as_dict(self, *, operational: bool = True) -> dict[str, Any]:
        """As in specs from before ``hub_pins`` where there are none, so that its hash is theirs."""
        plain = super().as_dict(operational=operational)
        return {key: value for key, value in plain.items() if key != "hub_pins" or value}


DEFAULT_SHORT_SIDE = 64  # in pixels, of larger images where none is asked for


@dataclass(frozen=True, kw_only=True)
class DataSpec(Spec, section="data"):
    """Which images, and which share of them.

    ``source`` is ``digits``, ``cifar10``, ``cifar100`` or a path. ``archive`` is a local
    official CIFAR archive or its unpacked folder. ``train_limit`` counts training images
    (seeded, stratified); ``fraction`` is a share of them, nested: the 10 % lies inside the 30 %.
    ``val_fraction`` is carved from train where the source has no ``val`` split, and
    ``test_fraction`` where it has no ``test`` split; ``split_seed`` draws both, ``val_seed`` draws
    another val beside the same test. ``train_seed`` draws another subset of the training images
    where ``train_limit`` or ``fraction`` leaves some out (``None``: by ``split_seed``); where all
    are used there is nothing to draw. ``short_side`` is the stored short side in pixels of images
    that are larger (``None``: at most 64); smaller ones keep theirs. ``store`` says whether images
    are kept as ``pixels`` of that size, memory-mapped, or ``encoded`` as the source has them and
    decoded in threads whenever they are used; ``auto`` takes pixels up to ``pixels_at_most_gb``,
    so that every machine decides alike. ``image_column`` and ``label_column`` name the columns of
    Parquet and CSV that are not called as usual. ``group`` says what belongs together (a patient, a
    video, a plate) and lies in one split where these are carved: of Parquet and CSV a column, of a
    folder a regular expression with one capture, searched for in each path below it.
    ``skip_corrupt`` leaves out pictures that cannot be read, ``skip_unlabelled`` rows without a
    label. ``white`` is the value that is white in pictures of more than 8 bits a channel (``None``:
    by the range of their own kind). ``folder`` keeps the stores.
    """

    source: str = "digits"
    archive: str | None = None
    train_limit: int | None = ruled(None, 1, 1_000_000_000)
    fraction: float = ruled(1.0, 0, 1, open_low=True)
    val_fraction: float = ruled(0.1, 0, 0.5, open_low=True)
    test_fraction: float = ruled(0.1, 0, 0.5, open_low=True)
    split_seed: int = ruled(0, 0, MAX_SEED)
    val_seed: int | None = ruled(None, 0, MAX_SEED)
    train_seed: int | None = ruled(None, 0, MAX_SEED)
    short_side: int | None = ruled(None, 8, 1024)
    skip_corrupt: bool = ruled(False)
    skip_unlabelled: bool = ruled(False, before=False)
    image_column: str | None = field(default=None, metadata={"before": None})
    label_column: str | None = field(default=None, metadata={"before": None})
    group: str | None = field(default=None, metadata={"before": None})
    white: float | None = ruled(None, 0, 1e12, open_low=True, before=None)
    store: str = ruled("auto", choices=STORE_FORMS, before="pixels")
    pixels_at_most_gb: float = ruled(32.0, 0, 1e6, unit="GB", before=32.0)
    folder: str | None = field(default=None, metadata=OPERATIONAL)

    def as_dict(self, *, operational: bool = True) -> dict[str, Any]:
        """As of every spec, but ``train_seed`` is written only where there is one: hashes and
        checkpoints from before it are those of the same training."""
        plain = super().as_dict(operational=operational)
        if self.train_seed is None:
            del plain["train_seed"]
        return plain


@dataclass(frozen=True, kw_only=True)
class Copy(Spec):
    """One image of which there are others with the same pixels: row ``row`` of the store's
    ``split``, class ``label``; ``place`` is its file or row in the source, where that is known."""

    split: str
    row: int
    label: str
    place: str | None = None


@dataclass(frozen=True, kw_only=True)
class DuplicateGroup(Spec):
    """``images`` with the same pixels, and some of them."""

    images: int
    copies: tuple[Copy, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Duplicates(Spec):
    """Images that a store holds more than once, by the pixels that are stored.

    ``groups`` of such images, ``images`` in them all; in ``mislabelled`` groups labels differ.
    ``within``: by split, images that repeat another one of it. ``between``: by pair of splits,
    ``test/train``, images of the first that are in the second too. ``near``: the same of images
    that are not in the second but look almost like one there. ``examples``: a few groups.
    """

    groups: int = 0
    images: int = 0
    mislabelled: int = 0
    within: Mapping[str, int] = field(default_factory=dict)
    between: Mapping[str, int] = field(default_factory=dict)
    near: Mapping[str, int] = field(default_factory=dict)
    examples: tuple[DuplicateGroup, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ImageGroups(Spec):
    """Groups of images that belong together, by ``rule``: a column, or a pattern of paths.

    ``counts``: by split, its groups. ``between``: by pair of splits, ``test/train``, groups of the
    first that are in the second too, and ``images`` of the first in such groups. ``examples`` are
    the names of some that are in several splits.
    """

    rule: str
    counts: Mapping[str, int] = field(default_factory=dict)
    between: Mapping[str, int] = field(default_factory=dict)
    images: Mapping[str, int] = field(default_factory=dict)
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DatasetFacts(Spec):
    """What an image store holds.

    ``name`` is the dataset's name or the path's stem. ``height``, ``width`` (pixels) and
    ``channels`` (always 3: grey is replicated) are of the stored images. ``counts`` is images by
    split, train before ``train_limit``, and ``class_counts`` those of each class, in the order of
    ``class_names`` (``None`` where they are not known: of earlier versions, and of a name alone).
    ``content_hash`` covers pixels, labels, class names, groups and the split; ``test_hash`` the
    images and labels of the test split alone. ``mirror_safe`` is False where a mirrored image is
    another sign (digits). ``skipped`` counts corrupt images left out.
    ``duplicates`` is ``None`` where nobody has counted them. ``encoded_bytes`` is what all images
    take where they are kept encoded, ``None`` where their pixels are. ``white`` is ``data.white``,
    by which encoded pictures are decoded again. ``groups`` is ``None`` where images stand for
    themselves.
    """

    name: str | None = None
    class_names: tuple[str, ...] = ()
    height: int
    width: int
    channels: int = 3
    counts: Mapping[str, int] = field(default_factory=dict)
    content_hash: str | None = None
    test_hash: str | None = None
    mirror_safe: bool = True
    skipped: int = 0
    duplicates: Duplicates | None = None
    encoded_bytes: int | None = field(default=None, metadata={"before": None})
    white: float | None = field(default=None, metadata={"before": None})
    class_counts: Mapping[str, tuple[int, ...]] | None = field(
        default=None, metadata={"before": None}
    )
    groups: ImageGroups | None = field(default=None, metadata={"before": None})

    @property
    def store_form(self) -> str:
        """``pixels`` or ``encoded``."""
        return "pixels" if self.encoded_bytes is None else "encoded"

    @property
    def pixel_bytes(self) -> int:
        """What the pixels of all images of the source take, those that cannot be read too: so much
        is known before any is read."""
        images = sum(self.counts.values()) + self.skipped
        return images * self.height * self.width * self.channels


@dataclass(frozen=True, kw_only=True)
class Assignment(Spec):
    """One trial's attempt, complete: a worker needs nothing else to train it.

    ``epochs`` is the full length that the learning-rate schedule is laid out for; a trial may
    be stopped before. ``checkpoint`` is the folder to resume from (``None``: epoch 0) and
    ``checkpoint_folder`` the parent of the folders written, unique per attempt. With
    ``shift_offsets_px`` every report says how consistent the predictions are under these shifts.
    ``remote`` is the URI of the run's folder where it is kept in object storage: then only the
    last names of both paths count, below a folder that is the worker's node's own. ``metric`` is
    what the trial is judged by, as :func:`trainables.metrics.metric_of` reads it.
    """

    trial_id: str
    attempt: int = 1
    backbone: BackboneSpec
    recipe: Recipe = field(default_factory=Recipe)
    data: DataSpec = field(default_factory=DataSpec)
    seed: int = 0
    epochs: int
    checkpoint: str | None = None
    checkpoint_folder: str | None = None
    checkpoint_every_epochs: int = 1
    epoch_timeout_s: float = 3600.0
    shift_offsets_px: tuple[int, ...] = ()
    remote: str | None = None
    metric: str = field(default="top1", metadata={"before": "top1"})


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


@dataclass(frozen=True, kw_only=True)
class SpeedReport:
    """How fast a trial's model predicts, JSON-ready, as
    :func:`trainables.evaluate.speed.measure_speeds` says; empty with the ``reason`` why that is
    not known."""

    trial: str
    speed: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Screening(Spec):
    """A candidate to screen: ``backbone`` with its side, the images, and how many of train
    (``None``: all that ``data`` trains on). ``remote`` is the URI of a run in object storage."""

    label: str
    backbone: BackboneSpec
    data: DataSpec = field(default_factory=DataSpec)
    train_images: int | None = None
    remote: str | None = None


@dataclass(frozen=True, kw_only=True)
class FrozenSpeed(Spec):
    """Of a backbone without its classifier on ``device``: seconds to build it, median latency of
    one image, and seconds an image takes in a batch, all wall time. ``threads`` is of a CPU."""

    device: str
    precision: str
    setup_s: float
    latency_ms: float
    seconds_per_image: float
    params_m: float
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Screened(Spec):
    """What a worker found of a candidate. ``reason`` says why there is no probe, ``speed`` may be
    there all the same. ``correct`` are bits in hex, one a validation image: whether the linear
    probe is right; ``group_images`` and ``group_right`` count them by group of images, ``None``
    where images stand for themselves. ``strength`` is the penalty's, ``width`` that of the
    features, ``images_per_second`` of the forward passes. ``cached``: this time none was made."""

    label: str
    reason: str | None = None
    speed: FrozenSpeed | None = None
    linear_top1: float | None = None
    neighbours_top1: float | None = None
    correct: str | None = None
    val_images: int | None = None
    group_images: tuple[int, ...] | None = None
    group_right: tuple[int, ...] | None = None
    train_images: int | None = None
    strength: float | None = None
    width: int | None = None
    images_per_second: float | None = None
    seconds: float | None = None
    cached: bool = False
