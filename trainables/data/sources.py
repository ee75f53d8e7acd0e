"""From ``data.source`` to the reader of that kind, and the cheap checks before anything is read.

The table of data sets that are known by name is here and nowhere else. Importing this file loads
neither numpy nor a reader: the command line does.
"""

from __future__ import annotations

import difflib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainables.config import DatasetFacts, DataSpec
from trainables.errors import UserError, collected, raise_if_any

if TYPE_CHECKING:
    from trainables.data.store import Reading, Source


@dataclass(frozen=True, kw_only=True)
class KnownDataset:
    """What is known of a data set by its name, before anything is read or downloaded.

    Images are squares of ``side_px``, ``train_images`` and ``test_images`` of them in the source's
    own splits (0: there is no such split). ``mirror_safe`` is False where a mirrored image is
    another sign. ``url`` is the folder that its archives are downloaded from.
    """

    name: str
    classes: int
    side_px: int
    train_images: int
    test_images: int
    mirror_safe: bool = True
    batch_size_per_worker: int = 64  # the default of a recipe
    url: str | None = None


CIFAR_URL = "https://www.cs.toronto.edu/~kriz"
KNOWN_DATASETS = {
    dataset.name: dataset
    for dataset in (
        # 16 images a step: the 1,437 training images would make 22 steps an epoch of 64.
        KnownDataset(name="digits", classes=10, side_px=8, train_images=1797, test_images=0,
                     mirror_safe=False, batch_size_per_worker=16),
        KnownDataset(name="cifar10", classes=10, side_px=32, train_images=50_000,
                     test_images=10_000, url=CIFAR_URL),
        KnownDataset(name="cifar100", classes=100, side_px=32, train_images=50_000,
                     test_images=10_000, url=CIFAR_URL),
    )
}  # fmt: skip


def known_images(data: DataSpec) -> DatasetFacts | None:
    """What the dataset's name alone tells of its stored images, with numbers for the names of its
    classes; ``None`` for a path. Val, and test where there is none, are carved from train."""
    dataset = KNOWN_DATASETS.get(data.source)
    if dataset is None:
        return None
    side, images = min(dataset.side_px, data.short_side or dataset.side_px), dataset.train_images
    val = max(dataset.classes, round(data.val_fraction * images))
    own_test = dataset.test_images
    carved = 0 if own_test else max(dataset.classes, round(data.test_fraction * images))
    return DatasetFacts(
        height=side,
        width=side,
        class_names=tuple(map(str, range(dataset.classes))),
        counts={"train": images - val - carved, "val": val, "test": dataset.test_images or carved},
        mirror_safe=dataset.mirror_safe,
    )


def _read_digits() -> Reading:
    """scikit-learn's handwritten digits, 1,797 images of 8x8: always there."""
    import numpy as np
    from sklearn.datasets import load_digits  # a second of imports, needed once

    from trainables.data.store import Chunk, Reading

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (N, 8, 8), values were 0..16
    images = np.repeat(grey[..., None], 3, axis=-1)  # (N, 8, 8, 3)
    labels = digits.target.astype(np.int64)
    places = [f"row {row}" for row in range(len(images))]
    return Reading(
        class_names=tuple(map(str, digits.target_names)),
        side=8,
        count=len(images),
        chunks=lambda: iter([Chunk(split="train", images=images, labels=labels, places=places)]),
        mirror_safe=KNOWN_DATASETS["digits"].mirror_safe,
    )


def check_source(spec: DataSpec) -> list[str]:
    """Every mistake in ``spec`` that shows without reading an image, one line each.

    Looks at names, bounds, folder layout, Parquet footers and the archive's kind; no network.
    """
    with collected([]) as mistakes:
        locate(spec)
    return mistakes


def locate(spec: DataSpec) -> Source:
    """The source that ``spec`` names; ``UserError`` with all that ``check_source`` lists."""
    with collected(spec.mistakes()) as mistakes:
        source = _locate(spec)
    raise_if_any(mistakes)
    return source


def _locate(spec: DataSpec) -> Source:
    name = spec.source
    dataset = KNOWN_DATASETS.get(name)
    if dataset is not None:
        _refuse_columns(spec)
        if spec.group is not None:
            raise UserError(
                f"data.group is for image folders, CSV and Parquet; {name} has no groups, got "
                f"{spec.group!r}. Fix: leave data.group out"
            )
    if dataset is not None and spec.store == "encoded":
        raise UserError(
            "data.store must be auto or pixels for a dataset that holds pixels; got 'encoded' with "
            f"data.source {name!r}. Fix: --set data.store=auto"
        )
    if dataset is not None and dataset.url is not None:
        from trainables.data import cifar

        return cifar.locate(spec, dataset.url)
    if spec.archive is not None:
        raise UserError(
            f"data.archive is for cifar10 and cifar100; got it with data.source {name!r}. "
            "Fix: leave data.archive out, or use --dataset cifar10"
        )
    if dataset is not None:
        from trainables.data.store import Source

        return Source(name="digits", identity=lambda: "load_digits", read=_read_digits)
    path = Path(name).expanduser()
    if not path.exists():
        raise UserError(_missing(name, path))
    try:
        return _at_path(path, spec)
    except OSError as error:
        raise UserError(
            f"data.source must be readable; {error.filename or path} is not ({error.strerror}). "
            "Fix: change its permissions, or give another path"
        ) from None


def _at_path(path: Path, spec: DataSpec) -> Source:
    if path.is_dir():
        levels = ("*.parquet", "*/*.parquet", "*/*/*.parquet")  # of Hugging Face's snapshots
        is_parquet = any(True for level in levels for _ in path.glob(level))
    else:
        is_parquet = path.suffix.lower() in (".parquet", ".pq")
    if is_parquet:
        from trainables.data import parquet

        return parquet.locate(path, spec)
    if path.suffix.lower() == ".csv" and not path.is_dir():
        from trainables.data import csv_table

        return csv_table.locate(path, spec)
    if not path.is_dir():
        raise UserError(
            f"data.source must be {', '.join(KNOWN_DATASETS)}, an image folder, a CSV file, or a "
            f"Parquet file or folder; {path} is a {path.suffix or 'nameless kind of'} file. Fix: "
            "unpack an archive of pictures and give its folder, or give a CIFAR archive as "
            "--dataset cifar10 --set data.archive=PATH"
        )
    if any((path / name).is_file() for name in ("data_batch_1", "data_batch_1.bin")):
        raise UserError(
            f"{path} is an unpacked CIFAR archive, not an image folder. "
            f"Fix: --dataset cifar10 --set data.archive={path}"
        )
    _refuse_columns(spec)
    from trainables.data import folders

    return folders.locate(path, spec)


def _refuse_columns(spec: DataSpec) -> None:
    columns = [name for name in (spec.image_column, spec.label_column) if name is not None]
    if columns:
        raise UserError(
            f"data.image_column and data.label_column are for Parquet and CSV; {spec.source} is "
            f"neither, got {columns[0]!r}. Fix: leave them out, or give a table"
        )


def _missing(name: str, path: Path) -> str:
    looks_like_path = len(path.parts) > 1 or path.suffix or name.startswith((".", "~", "/"))
    if not looks_like_path:
        near = difflib.get_close_matches(name, KNOWN_DATASETS, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "no known name is near."
        return (
            f"data.source must be one of {', '.join(KNOWN_DATASETS)}, or the path of an image "
            f"folder, of CSV or of Parquet; {name!r} is neither: {hint} Fix: "
            f"--dataset {near[0] if near else 'PATH'}"
        )
    parent = next(folder for folder in path.parents if folder.is_dir())
    beside: list[str] = []
    with suppress(OSError):
        beside = [entry.name for entry in parent.iterdir()]
    part = path.relative_to(parent).parts[0]
    near = difflib.get_close_matches(part, beside, n=3, cutoff=0.5)
    hint = f" (near: {', '.join(str(parent / n) for n in near)})" if near else ""
    return (
        f"data.source must exist; there is no {path} below {parent.resolve()}{hint}. "
        "Fix: give an existing folder or file as --dataset"
    )
