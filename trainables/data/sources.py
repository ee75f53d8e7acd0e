"""From ``data.source`` to the reader of that kind, and the cheap checks before anything is read.

scikit-learn's handwritten digits: 1,797 images of 8x8, the only dataset that is embedded.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trainables.config import DataSpec
from trainables.data import folder
from trainables.data.reading import Chunk, Reading, Say, Source
from trainables.errors import UserError, raise_if_any


def locate_digits() -> Source:
    """The embedded dataset; always there."""
    return Source(name="digits", identity=lambda: "load_digits", read=_read_digits)


def _read_digits(say: Say) -> Reading:
    from sklearn.datasets import load_digits  # a second of imports, needed once

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (N, 8, 8), values were 0..16
    images = np.repeat(grey[..., None], 3, axis=-1)  # (N, 8, 8, 3)
    labels = digits.target.astype(np.int64)

    def chunks() -> Iterator[Chunk]:
        yield Chunk(split="train", images=images, labels=labels)

    return Reading(
        class_names=tuple(str(digit) for digit in digits.target_names),
        height=8,
        width=8,
        count=len(images),
        chunks=chunks(),
        mirror_safe=False,
    )


NAMES = ("digits", "cifar10", "cifar100")


def check_source(spec: DataSpec) -> list[str]:
    """Every mistake in ``spec`` that shows without reading an image, one line each.

    Looks at names, bounds, folder layout, Parquet footers and the archive's kind; no network.
    """
    try:
        locate(spec)
    except UserError as error:
        return list(error.mistakes)
    return []


def locate(spec: DataSpec) -> Source:
    """The source that ``spec`` names; ``UserError`` with all that ``check_source`` lists."""
    mistakes = _bounds(spec)
    try:
        source = _locate(spec)
    except UserError as error:
        raise UserError(*mistakes, *error.mistakes) from None
    raise_if_any(mistakes)
    return source


def _locate(spec: DataSpec) -> Source:
    name = spec.source
    if name in ("cifar10", "cifar100"):
        from trainables.data import cifar

        return cifar.locate(spec)
    if spec.archive is not None:
        raise UserError(
            f"data.archive is for cifar10 and cifar100; got it with data.source {name!r}. "
            "Fix: leave data.archive out, or use --dataset cifar10"
        )
    if name == "digits":
        return locate_digits()
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
    if path.is_dir() and not _holds_parquet(path):
        _refuse_cifar_folder(path)
        return folder.locate(path, spec)
    if path.is_dir() or path.suffix.lower() in (".parquet", ".pq"):
        from trainables.data import parquet

        return parquet.locate(path, spec)
    raise UserError(
        f"data.source must be {', '.join(NAMES)}, an image folder, or a Parquet file or folder; "
        f"{path} is a {path.suffix or 'nameless kind of'} file. Fix: unpack an archive of pictures "
        "and give its folder, or give a CIFAR archive as --dataset cifar10 --set data.archive=PATH"
    )


def _bounds(spec: DataSpec) -> list[str]:
    found: list[str] = []

    def number(name: str, low: float, high: float, *, whole: bool, open_low: bool = False) -> None:
        value = getattr(spec, name)
        kinds = (int,) if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            good = False
        else:
            good = (low < value if open_low else low <= value) and value <= high
        if not good:
            kind = "a whole number in" if whole else "in"
            found.append(
                f"data.{name} must be {kind} {'(' if open_low else '['}{low:g}, {high:g}]; got "
                f"{value!r}. Fix: --set data.{name}=VALUE with a VALUE in that range"
            )

    number("fraction", 0, 1, whole=False, open_low=True)
    number("val_fraction", 0, 0.5, whole=False, open_low=True)
    number("test_fraction", 0, 0.5, whole=False, open_low=True)
    number("split_seed", 0, 2**63 - 1, whole=True)
    if spec.val_seed is not None:
        number("val_seed", 0, 2**63 - 1, whole=True)
    if spec.train_limit is not None:
        number("train_limit", 1, 1e9, whole=True)
    if spec.short_side is not None:
        number("short_side", 8, 1024, whole=True)
    return found


def _missing(name: str, path: Path) -> str:
    looks_like_path = len(path.parts) > 1 or path.suffix or name.startswith((".", "~", "/"))
    if not looks_like_path:
        near = difflib.get_close_matches(name, NAMES, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "no known name is near."
        return (
            f"data.source must be one of {', '.join(NAMES)}, or the path of an image folder or of "
            f"Parquet; {name!r} is neither: {hint} "
            f"Fix: --dataset {near[0] if near else 'PATH'}"
        )
    parent = path.parent
    while not parent.is_dir():
        parent = parent.parent
    try:
        beside = [entry.name for entry in parent.iterdir()]
    except OSError:
        beside = []
    part = path.relative_to(parent).parts[0]
    near = difflib.get_close_matches(part, beside, n=3, cutoff=0.5)
    hint = f" (near: {', '.join(str(parent / n) for n in near)})" if near else ""
    return (
        f"data.source must exist; there is no {path} below {parent.resolve()}{hint}. "
        "Fix: give an existing folder or file as --dataset"
    )


def _holds_parquet(path: Path) -> bool:
    """Parquet within three levels, as Hugging Face's snapshots keep it."""
    levels = ("*.parquet", "*/*.parquet", "*/*/*.parquet")
    return any(True for level in levels for _ in path.glob(level))


def _refuse_cifar_folder(path: Path) -> None:
    for file, name in (("data_batch_1", "cifar10"), ("data_batch_1.bin", "cifar10")):
        if (path / file).is_file():
            raise UserError(
                f"{path} is an unpacked CIFAR archive, not an image folder. "
                f"Fix: --dataset {name} --set data.archive={path}"
            )
