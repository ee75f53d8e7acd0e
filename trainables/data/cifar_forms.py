"""The official CIFAR archives: what is in them, and which of them a path holds."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path

from trainables.errors import UserError

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
