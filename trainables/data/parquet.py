"""Parquet files with encoded images and labels, in Hugging Face's layout or a plain one."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainables.config import DataSpec
from trainables.data.pictures import Item, read_pictures
from trainables.data.store import Reading, Source, file_identity, require_two_classes
from trainables.errors import UserError, one_line

log = logging.getLogger(__name__)

IMAGE_COLUMNS = ("image", "img", "picture", "pixels")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "category", "label_name", "y")
SPLIT_WORDS = re.compile(
    r"(?:^|[-_./ ])"
    r"(?:(?P<train>train|training)|(?P<val>val|valid|validation|dev)|(?P<test>test|testing))"
    r"(?=[-_./ 0-9\[]|$)"
)
Files = dict[str, list[Path]]  # by split
SAMPLED_ROW_GROUPS = 8
SAMPLED_ROWS = 64
BATCH_ROWS = 512


def locate(path: Path, spec: DataSpec) -> Source:
    """A Parquet file (all of it train) or a folder of them; checks footers, reads no image.

    Raises ``UserError`` on an unreadable file or where there is no image or label column.
    """
    files = _files_by_split(path)
    schemas = {file: _schema(file) for group in files.values() for file in group}
    schema = next(iter(schemas.values()))
    declared = _class_names(schema)
    image, label = _columns(path, schema, declared)
    for file, other in schemas.items():
        for column in (image, label):
            if column not in other.names:
                raise UserError(
                    f"all Parquet files of {path} need the column {column!r}; {file.name} has "
                    f"{', '.join(other.names)}. Fix: rename its column, or move the file away"
                )

    def read() -> Reading:
        names, labels = _labels(path, files, label, declared.get(label, ()))
        require_two_classes(spec.source, [names[index] for index in set(labels["train"])])
        return read_pictures(
            names,
            {split: partial(_items, files[split], image, rows) for split, rows in labels.items()},
            sample=_sample(files["train"], image),
            encoded_bytes=sum(_column_bytes(f, image) for split in labels for f in files[split]),
            count=sum(map(len, labels.values())),
            spec=spec,
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
    for text in (file.stem, *reversed(file.parts[:-1])):
        if match := SPLIT_WORDS.search(text.lower()):
            return str(match.lastgroup)
    return "train"


def _files_by_split(path: Path) -> Files:
    if path.is_file():
        return {"train": [path]}
    files: Files = {}
    for file in sorted(path.rglob("*.parquet")):
        inside = file.relative_to(path)
        if not any(part.startswith(".") for part in inside.parts):
            files.setdefault(split_of(inside), []).append(file)
    if "train" not in files:
        raise UserError(
            f"a Parquet folder needs a train split; {path} has files for "
            f"{', '.join(sorted(files)) or 'no split'} only. "
            "Fix: name its files train-*.parquet, or give one file as --dataset"
        )
    return files


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """What Arrow raises on a damaged file is a ``UserError`` that names it."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"data.source must be readable as Parquet; {file} is not ({one_line(error)[:200]}). "
            "Fix: copy or download the file again"
        ) from None


def _schema(file: Path) -> Any:
    with _readable(file):
        return pq.read_schema(file)


def _columns(path: Path, schema: Any, declared: Iterable[str]) -> tuple[str, str]:
    """The columns of the images and of the labels, of which ``declared`` have class names."""
    columns = ", ".join(f"{field.name}: {field.type}" for field in schema)
    fitting = [field.name for field in schema if _holds_images(field.type)]
    if not fitting:
        raise UserError(
            "a Parquet dataset needs an image column of type binary or struct<bytes, path>; "
            f"{path} has {columns}. "
            "Fix: write the encoded pictures (PNG, JPEG) into a binary column 'image'"
        )
    image: str = next((name for name in IMAGE_COLUMNS if name in fitting), fitting[0])
    fitting = [field.name for field in schema if _is_label(field.type)]
    for label in (*LABEL_COLUMNS, *declared):
        if label in fitting:
            return image, label
    raise UserError(
        f"a Parquet dataset needs a label column of integers or strings; {path} has none of "
        f"{', '.join(LABEL_COLUMNS)} but {columns}. Fix: rename the label column to 'label'"
    )


def _holds_images(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_images(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_label(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean)
    return any(test(kind) for test in tests)


def _class_names(schema: Any) -> dict[str, tuple[str, ...]]:
    """Names of the classes by column, from Hugging Face's description of the columns: JSON in the
    schema's metadata."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"].items()
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    classes = {column: f["names"] for column, f in features if isinstance(f, dict) and "names" in f}
    for column, names in classes.items():
        if isinstance(names, dict):  # written by old versions: {"0": "cat", ...}
            names = [names[key] for key in sorted(names, key=int)]
        classes[column] = tuple(map(str, names or ()))
    return classes


def _labels(
    path: Path, files: Files, column: str, names: tuple[str, ...]
) -> tuple[tuple[str, ...], dict[str, list[int]]]:
    """Names of the classes, and the class of each row by split."""
    values = {
        split: [value for file in group for value in _column(file, column)]
        for split, group in files.items()
    }
    if names and set(values.get("test", [0])) <= {-1}:
        log.info("the test files carry no labels (-1): left out, a test split is carved from train")
        del values["test"]
    distinct = set().union(*values.values())
    if None in distinct:
        row = next(rows.index(None) for rows in values.values() if None in rows)
        raise UserError(
            f"every row needs a label; column {column!r} of {path} is empty at row {row}. "
            "Fix: remove such rows"
        )
    ordered = sorted(distinct)
    if not names or any(isinstance(value, str) for value in ordered):
        names = tuple(map(str, ordered))
        index = {value: number for number, value in enumerate(ordered)}
        return names, {split: [index[v] for v in rows] for split, rows in values.items()}
    wrong = [value for value in ordered if not 0 <= value < len(names)]
    if wrong:
        raise UserError(
            f"labels must be in [0, {len(names) - 1}], the classes that {path} names; "
            f"column {column!r} holds {wrong[0]}. Fix: remove such rows"
        )
    return names, values


def _column(file: Path, column: str) -> list[Any]:
    with _readable(file):
        values: list[Any] = pq.read_table(file, columns=[column]).column(0).to_pylist()
        return values


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
            images = batch.column(0)
            if pa.types.is_struct(images.type):
                images = images.field("bytes")
            yield from images.to_pylist()


def _items(files: list[Path], column: str, labels: list[int]) -> Iterator[Item]:
    remaining = iter(labels)
    for file in files:
        for row, picture in enumerate(_encoded(file, column, batch_size=BATCH_ROWS)):
            yield f"{file} row {row}", picture, next(remaining)
