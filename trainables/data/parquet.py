"""Parquet files with encoded images and labels, in Hugging Face's layout or a plain one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainables.config import DataSpec
from trainables.data.columns import (
    choose_columns,
    class_names,
    holds_images,
    images_of,
    label_kind,
    stored,
)
from trainables.data.labels import Labelled, labelled
from trainables.data.pictures import Item, read_pictures
from trainables.data.split_names import is_unlabelled, split_in_path
from trainables.data.store import (
    Reading,
    Source,
    file_identity,
    require_train_classes,
    require_two_classes,
)
from trainables.errors import UserError, one_line
from trainables.storage.pointers import why_absent

log = logging.getLogger(__name__)

SPLIT_COLUMNS = ("split", "subset", "fold", "partition", "set")
Files = dict[str, list[Path]]  # by split
SAMPLED_ROW_GROUPS = 8
SAMPLED_ROWS = 64
BATCH_ROWS = 512


def locate(path: Path, spec: DataSpec) -> Source:
    """A Parquet file (all of it train) or a folder of them; checks footers, reads no image.

    Raises ``UserError`` on an unreadable file, where there is no image or label column, and where
    files differ in what these hold.
    """
    files = _files_by_split(path)
    schemas = {file: _schema(file) for group in files.values() for file in group}
    declared = [class_names(schema) for schema in schemas.values()]
    first = {column: names for each in reversed(declared) for column, names in each.items()}
    schema = schemas[files["train"][0]]
    image, label = choose_columns(path, schema, first, spec)
    _require_alike(path, schemas, image, label)
    if spec.group is not None:
        _require_groups(path, schemas, spec.group)
    _require_same_names(path, schemas, label)

    def read() -> Reading:
        known = _labels(path, files, label, first.get(label, ()), spec)
        names, labels = known.class_names, known.labels
        train = {index for index in labels["train"] if index >= 0}
        require_two_classes(spec.source, [names[index] for index in sorted(train)])
        for split, rows in labels.items():
            require_train_classes(spec.source, names, train, split, {i for i in rows if i >= 0})
        _warn_of_split_column(path, schema)
        groups = {
            split: _groups(files[split], spec.group, path, split) if spec.group else None
            for split in labels
        }
        return read_pictures(
            names,
            {
                split: partial(_items, files[split], image, rows, groups[split])
                for split, rows in labels.items()
            },
            sample=_sample(files["train"], image),
            encoded_bytes=sum(_column_bytes(f, image) for split in labels for f in files[split]),
            count=sum(index >= 0 for rows in labels.values() for index in rows),
            spec=spec,
            group_rule=spec.group,
        )

    return Source(
        name=path.stem if path.is_file() else path.name,
        identity=lambda: [
            [split, *file_identity(file)] for split in sorted(files) for file in files[split]
        ],
        read=read,
    )


def split_of(file: Path) -> str:
    """``train``, ``val`` or ``test`` from a file's name, or else its folders'; else ``train``."""
    return split_in_path((*file.parts[:-1], file.stem))


def _files_by_split(path: Path) -> Files:
    if path.is_file():
        return {"train": [path]}
    files: Files = {}
    unlabelled = []
    for file in sorted(path.rglob("*.parquet")):
        inside = file.relative_to(path)
        if any(part.startswith(".") for part in inside.parts):
            continue
        if any(is_unlabelled(part) for part in (*inside.parts[:-1], _bare(inside.stem))):
            unlabelled.append(file)
        else:
            files.setdefault(split_of(inside), []).append(file)
    if unlabelled:
        log.warning(
            f"warning: {len(unlabelled)} files of {path} have no labels by their names and are not "
            f"used: {', '.join(file.name for file in unlabelled[:3])}"
        )
    if "train" not in files:
        raise UserError(
            f"a Parquet folder needs a train split; {path} has files for "
            f"{', '.join(sorted(files)) or 'no split'} only. "
            "Fix: name its files train-*.parquet, or give one file as --dataset"
        )
    return files


def _bare(stem: str) -> str:
    """A file's stem without its number: ``unsupervised-00000-of-00001`` is unsupervised."""
    return stem.partition("-0")[0]


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """What Arrow raises on a damaged file is a ``UserError`` that names it."""
    try:
        yield
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = why_absent(file) or one_line(error)[:200]
        raise UserError(
            f"data.source must be readable as Parquet; {file} is not ({reason}). "
            "Fix: copy or download the file again"
        ) from None


def _schema(file: Path) -> Any:
    with _readable(file):
        return pq.read_schema(file)


def _require_alike(path: Path, schemas: Mapping[Path, Any], image: str, label: str) -> None:
    """Raise ``UserError`` where files lack a column, or hold other things in it."""
    kinds: dict[str, tuple[Path, Any]] = {}
    for file, schema in schemas.items():
        for column in (image, label):
            if column not in schema.names:
                raise UserError(
                    f"all Parquet files of {path} need the column {column!r}; {file.name} has "
                    f"{', '.join(schema.names)}. Fix: rename its column, or move the file away"
                )
        if not holds_images(schema.field(image).type):
            raise UserError(
                f"all Parquet files of {path} need images in {image!r}; in {file.name} it is "
                f"{schema.field(image).type}. Fix: write it alike, or move the file away"
            )
        of_file = schema.field(label).type
        if kind := label_kind(of_file):
            kinds.setdefault(kind, (file, of_file))
        elif not pa.types.is_null(of_file):  # null: no row of it has a label
            raise UserError(
                f"labels must be integers, strings or booleans; column {label!r} of {file} is "
                f"{of_file}. Fix: write it with the type that the other files have"
            )
    if len(kinds) > 1:
        both = " and ".join(f"{of_file} in {file.name}" for file, of_file in kinds.values())
        raise UserError(
            f"all Parquet files of {path} need labels of one type; column {label!r} is {both}. "
            "Fix: write it with the same type in all of them"
        )


def _require_groups(path: Path, schemas: Mapping[Path, Any], column: str) -> None:
    """Raise ``UserError`` where a file has no such column, or not of what names a group."""
    for file, schema in schemas.items():
        fitting = [field.name for field in schema if label_kind(field.type)]
        if column not in fitting:
            raise UserError(
                f"data.group of Parquet must be a column of integers or strings of all its files; "
                f"got {column!r}, and {file if len(schemas) > 1 else path} has "
                f"{', '.join(fitting) or 'none'}. Fix: --set data.group=COLUMN"
            )


def _groups(files: list[Path], column: str, path: Path, split: str) -> list[str]:
    """The group of each row. Raises ``UserError`` where one has none."""
    values = [value for file in files for value in _column(file, column)]
    without = [row for row, value in enumerate(values) if value is None or value == ""]
    if without:
        raise UserError(
            f"every row needs a group; column {column!r} of {path} is empty at row {without[0]} of "
            f"{split}, and in {len(without)} rows. Fix: fill them in, or remove them"
        )
    return list(map(str, values))


def _require_same_names(path: Path, schemas: Mapping[Path, Any], label: str) -> None:
    """Raise ``UserError`` where the same number is another class in another file."""
    by_names: dict[tuple[str, ...], Path] = {}
    for file, schema in schemas.items():
        if names := class_names(schema).get(label):
            by_names.setdefault(names, file)
    if len(by_names) > 1:
        (one, file), (other, second), *_ = by_names.items()
        raise UserError(
            f"all Parquet files of {path} need the same class names; {file.name} has "
            f"{', '.join(one[:5])}, {second.name} has {', '.join(other[:5])}. "
            "Fix: write the files of one data set with one list of names"
        )
    for names in by_names:
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise UserError(
                f"each class needs a name of its own; {path} names {twice[0]!r} twice for column "
                f"{label!r}. Fix: correct the names in the files' metadata"
            )


def _warn_of_split_column(path: Path, schema: Any) -> None:
    named = [n for n in schema.names if n.lower() in SPLIT_COLUMNS]
    if named:
        log.warning(
            f"warning: the column {named[0]!r} of {path} is not used; splits are by file. Fix: "
            "write train-0.parquet and test-0.parquet by it, where it says of which split a row is"
        )


def _labels(
    path: Path, files: Files, column: str, names: tuple[str, ...], spec: DataSpec
) -> Labelled:
    """Names of the classes, and the class of each row by split."""
    values = {
        split: [value for file in group for value in _column(file, column)]
        for split, group in files.items()
    }
    return labelled(path, column, values, names, skip_unlabelled=spec.skip_unlabelled)


def _column(file: Path, column: str) -> list[Any]:
    with _readable(file):
        # one file, not a data set: a folder's name as key=value is no column of it
        read = pq.ParquetFile(file).read(columns=[column]).column(0)
        return [value for chunk in read.chunks for value in stored(chunk).to_pylist()]


def _sample(files: list[Path], column: str) -> Iterator[bytes | None]:
    """A few encoded images, spread over the row groups of the training files."""
    groups = [
        (file, group) for file in files for group in range(pq.read_metadata(file).num_row_groups)
    ]
    for pick in np.unique(np.linspace(0, len(groups) - 1, SAMPLED_ROW_GROUPS).astype(int)):
        file, group = groups[pick]
        pictures = _encoded(file, column, row_groups=[group], batch_size=SAMPLED_ROWS)
        yield from islice(pictures, SAMPLED_ROWS)


def _column_bytes(file: Path, column: str) -> int:
    """What the column takes once it is read, lengths and nulls included."""
    footer = pq.read_metadata(file)
    groups = (footer.row_group(number) for number in range(footer.num_row_groups))
    parts = (group.column(index) for group in groups for index in range(group.num_columns))
    return sum(
        part.total_uncompressed_size
        for part in parts
        if part.path_in_schema.split(".")[0] == column
    )


def _encoded(file: Path, column: str, **options: Any) -> Iterator[bytes | None]:
    with _readable(file):
        for batch in pq.ParquetFile(file).iter_batches(columns=[column], **options):
            yield from images_of(batch.column(0), file)


def _items(
    files: list[Path], column: str, labels: list[int], groups: list[str] | None
) -> Iterator[Item]:
    each: Sequence[str | None] = groups or [None] * len(labels)
    remaining = zip(labels, each, strict=True)
    for file in files:
        for row, picture in enumerate(_encoded(file, column, batch_size=BATCH_ROWS)):
            label, group = next(remaining)
            if label >= 0:
                yield Item(f"{file} row {row}", picture, label, group)
