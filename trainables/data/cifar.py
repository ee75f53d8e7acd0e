"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from the official archives, packed or unpacked.

A pickle reader for CIFAR's python archives that admits numpy arrays and containers only.

The official CIFAR archives: what is in them, and which of them a path holds.
"""

from __future__ import annotations

import os
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlparse

import numpy as np
from numpy._core import numeric
from numpy._core.multiarray import _reconstruct

from trainables.config import DataSpec
from trainables.data.download import fetch
from trainables.data.reading import Chunk, Reading, Say, Source, default_folder
from trainables.data.store import Images, Labels
from trainables.errors import UserError


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """How Python 3 writes ``bytes`` in old protocols; any other codec is refused."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"codec {encoding!r} is not admitted")
    return text.encode("latin1")


_frombuffer = vars(numeric)["_frombuffer"]  # private, so unknown to the type stubs
ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
    ("_codecs", "encode"): _latin1,
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not admitted") from None


def load_arrays(file: IO[bytes]) -> dict[str, Any]:
    """The dict pickled in ``file`` (by Python 2 or 3), its keys as ``str``.

    Raises ``pickle.UnpicklingError`` on anything but arrays, containers, text and numbers: what
    a pickle names is looked up in a fixed table and never imported.
    """
    try:
        value = _ArraysOnly(file, encoding="latin1").load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a broken pickle can raise anything
        raise pickle.UnpicklingError(f"broken pickle: {error}") from None
    if not isinstance(value, dict):
        raise pickle.UnpicklingError(f"holds a {type(value).__name__}, not a dict")
    return {k.decode("latin1") if isinstance(k, bytes) else str(k): v for k, v in value.items()}


PIXELS = 3 * 32 * 32


@dataclass(frozen=True, kw_only=True)
class Form:
    """One official archive: its folder, its files, and where labels and names are in them."""

    dataset: str
    binary: bool
    archive: str
    md5: str
    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    names_key: str = ""
    labels_key: str = "labels"
    label_bytes: int = 1

    @property
    def members(self) -> tuple[str, ...]:
        """Names of all files in the archive that are read."""
        return (*self.train, self.test, self.names)


FORMS = (
    Form(
        dataset="cifar10",
        binary=False,
        archive="cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test="test_batch",
        names="batches.meta",
        names_key="label_names",
    ),
    Form(
        dataset="cifar10",
        binary=True,
        archive="cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        folder="cifar-10-batches-bin",
        train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        test="test_batch.bin",
        names="batches.meta.txt",
    ),
    Form(
        dataset="cifar100",
        binary=False,
        archive="cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        folder="cifar-100-python",
        train=("train",),
        test="test",
        names="meta",
        names_key="fine_label_names",
        labels_key="fine_labels",
    ),
    Form(
        dataset="cifar100",
        binary=True,
        archive="cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        folder="cifar-100-binary",
        train=("train.bin",),
        test="test.bin",
        names="fine_label_names.txt",
        label_bytes=2,
    ),
)


def find_archive(path: Path, dataset: str) -> tuple[Path, Form]:
    """The file or folder to read in ``path``, and its form.

    Raises ``UserError`` where there is none of ``dataset``.
    """
    forms = [form for form in FORMS if form.dataset == dataset]
    choices = ", ".join(f"{form.archive} or {form.folder}/" for form in forms)
    if not path.exists():
        raise UserError(f"data.archive must exist; there is no {path}. Fix: give one of {choices}")
    if path.is_file():
        return path, _packed_form(path, dataset, forms, choices)
    for form in forms:
        for folder in (path, path / form.folder):
            if all((folder / member).is_file() for member in form.members):
                return folder, form
        if (path / form.archive).is_file():
            return path / form.archive, form
    raise UserError(_wrong_kind(path, dataset, choices))


def _packed_form(path: Path, dataset: str, forms: list[Form], choices: str) -> Form:
    """Told by the first names in the archive, so that a renamed file is read all the same."""
    try:
        with tarfile.open(path) as tar:
            for _ in range(3):
                member = tar.next()
                folder = Path(member.name).parts[0] if member and member.name else None
                for form in forms:
                    if folder == form.folder:
                        return form
    except (tarfile.TarError, OSError, EOFError):
        pass
    raise UserError(_wrong_kind(path, dataset, choices))


def _wrong_kind(path: Path, dataset: str, choices: str) -> str:
    return (
        f"data.archive must be an archive of {dataset}; {path} is not. Fix: give one of {choices}"
    )


BASE_URL = "https://www.cs.toronto.edu/~kriz"
LARGEST_MEMBER_BYTES = 2**29
BROKEN = (
    pickle.UnpicklingError,
    tarfile.TarError,
    zlib.error,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    OverflowError,
)


def locate(spec: DataSpec) -> Source:
    """CIFAR from ``data.archive``, or to be downloaded on first use; opens nothing large.

    Raises ``UserError`` where the archive is missing or of another kind.
    """
    if spec.archive is None:
        form = next(form for form in FORMS if form.dataset == spec.source and not form.binary)
        return Source(
            name=spec.source,
            identity=lambda: [form.archive, form.md5],
            read=lambda say: _read(form, _download(form, spec, say)),
        )
    place, form = find_archive(Path(spec.archive).expanduser(), spec.source)
    files = [place] if place.is_file() else [place / member for member in form.members]

    def identity() -> list[Any]:
        stats = [(file, file.stat()) for file in files]
        return [[str(file.resolve()), s.st_size, s.st_mtime_ns] for file, s in stats]

    return Source(name=spec.source, identity=identity, read=lambda say: _read(form, place))


def base_url() -> str:
    """Where archives come from: $ORCHESTRATOR_CIFAR_URL (a mirror's folder) or the author's site.

    Raises ``UserError`` on a URL that is not HTTP.
    """
    url = os.environ.get("ORCHESTRATOR_CIFAR_URL", BASE_URL).rstrip("/")
    if urlparse(url).scheme not in ("http", "https"):
        raise UserError(
            f"ORCHESTRATOR_CIFAR_URL must start with http:// or https://; got {url!r}. "
            "Fix: give a mirror's folder, or a local archive as --set data.archive=PATH"
        )
    return url


def _download(form: Form, spec: DataSpec, say: Say) -> Path:
    target = default_folder(spec) / "downloads" / form.archive
    other_way = (
        f"give {form.archive}, or its unpacked folder, from elsewhere as --set data.archive=PATH"
    )
    url = f"{base_url()}/{form.archive}"
    return fetch(url, target, md5=form.md5, other_way=other_way, say=say)


def _read(form: Form, place: Path) -> Reading:
    with _members(form, place) as members:
        names, splits = _parse(form, place, members)
    for _, labels in splits.values():
        if len(labels) and not (labels.min() >= 0 and labels.max() < len(names)):
            raise UserError(_damaged(place, f"a label outside [0, {len(names) - 1}]"))

    def chunks() -> Iterator[Chunk]:
        for split, (images, labels) in splits.items():
            yield Chunk(split=split, images=images, labels=labels)

    count = sum(len(labels) for _, labels in splits.values())
    return Reading(class_names=names, height=32, width=32, count=count, chunks=chunks())


@contextmanager
def _members(form: Form, place: Path) -> Iterator[Iterator[tuple[str, IO[bytes]]]]:
    """The form's files by name, read in place: nothing is unpacked to disk."""
    if place.is_dir():
        yield ((member, (place / member).open("rb")) for member in form.members)
        return
    with tarfile.open(place) as tar:

        def wanted() -> Iterator[tuple[str, IO[bytes]]]:
            for member in tar:
                parts = Path(member.name).parts
                if parts[:1] != (form.folder,) or parts[-1] not in form.members:
                    continue
                file = tar.extractfile(member) if member.size <= LARGEST_MEMBER_BYTES else None
                if file is not None:
                    yield parts[-1], file

        yield wanted()


def _parse(
    form: Form, place: Path, members: Iterator[tuple[str, IO[bytes]]]
) -> tuple[tuple[str, ...], dict[str, tuple[Images, Labels]]]:
    names: tuple[str, ...] = ()
    batches: dict[str, tuple[Images, Labels]] = {}
    try:
        for member, file in members:
            with file:
                if member == form.names:
                    names = _names(form, file)
                else:
                    batches[member] = _batch(form, file)
    except BROKEN as error:
        raise UserError(_damaged(place, str(error))) from None
    missing = [m for m in (*form.train, form.test) if m not in batches]
    if missing or not names:
        raise UserError(_damaged(place, f"no {(missing or [form.names])[0]}"))
    train = [batches[member] for member in form.train]
    splits = {
        "train": (np.concatenate([i for i, _ in train]), np.concatenate([y for _, y in train])),
        "test": batches[form.test],
    }
    return names, splits


def _names(form: Form, file: IO[bytes]) -> tuple[str, ...]:
    if form.binary:
        return tuple(file.read().decode("utf-8").split())
    return tuple(str(name) for name in load_arrays(file).get(form.names_key, ()))


def _batch(form: Form, file: IO[bytes]) -> tuple[Images, Labels]:
    """One file's images (N, 32, 32, 3) and labels (N,). Raises ``ValueError`` on another shape."""
    if form.binary:
        rows = np.frombuffer(file.read(), dtype=np.uint8).reshape(-1, form.label_bytes + PIXELS)
        labels = rows[:, form.label_bytes - 1].astype(np.int64)  # CIFAR-100: coarse, then fine
        flat = rows[:, form.label_bytes :]
    else:
        values = load_arrays(file)
        flat = np.asarray(values.get("data"))
        labels = np.asarray(values.get(form.labels_key), dtype=np.int64)
    if flat.dtype != np.uint8 or flat.shape != (len(labels), PIXELS):
        raise ValueError(f"rows of shape {flat.shape} for {len(labels)} labels")
    return flat.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels  # (N, 32, 32, 3)


def _damaged(place: Path, reason: str) -> str:
    return (
        f"the CIFAR archive {place} cannot be read: {reason}. "
        "Fix: put the official one in its place, or give it as --set data.archive=PATH"
    )
