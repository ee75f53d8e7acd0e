"""What a worker is asked to train. Plain frozen values: no torch, no ray, JSON both ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from trainables.recipe import Recipe

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
