"""Parquet files with encoded images and labels, in Hugging Face's layout or a plain one."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
SAMPLED_ROW_GROUPS = 8
SAMPLED_ROWS = 64
BATCH_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where images and labels are: files by split, columns, names if the schema holds them."""

    files: dict[str, list[Path]]
    image: str
    label: str
    names: tuple[str, ...]


def locate(path: Path, spec: DataSpec) -> Source:
    """A Parquet file (all of it train) or a folder of them; checks footers, reads no image.

    Raises ``UserError`` on an unreadable file or where there is no image or label column.
    """
    layout = _find_layout(path)
    return Source(
        name=path.stem if path.is_file() else path.name,
        identity=lambda: [
            [split, *file_identity(file)]
            for split, files in sorted(layout.files.items())
            for file in files
        ],
        read=lambda: _read(path, spec, layout),
    )


def split_of(file: Path) -> str:
    """``train``, ``val`` or ``test`` from a file's name, or else its folders'; else ``train``."""
    for text in (file.stem, *reversed(file.parts[:-1])):
        if match := SPLIT_WORDS.search(text.lower()):
            return str(match.lastgroup)
    return "train"


def _find_layout(path: Path) -> Layout:
    files: dict[str, list[Path]] = {}
    if path.is_file():
        files["train"] = [path]
    else:
        for file in sorted(path.rglob("*.parquet")):
            inside = file.relative_to(path)
            if not any(part.startswith(".") for part in inside.parts):
                files.setdefault(split_of(inside), []).append(file)
    if not files.get("train"):
        raise UserError(
            f"a Parquet folder needs a train split; {path} has files for "
            f"{', '.join(sorted(files)) or 'no split'} only. "
            "Fix: name its files train-*.parquet, or give one file as --dataset"
        )
    schemas = {file: _schema(file) for group in files.values() for file in group}
    schema = next(iter(schemas.values()))
    names = _class_names(schema)
    fitting = [field.name for field in schema if _holds_images(field.type)]
    image = _first((*IMAGE_COLUMNS, *fitting), fitting)
    fitting = [field.name for field in schema if _is_label(field.type)]
    label = _first((*LABEL_COLUMNS, *names), fitting)
    columns = ", ".join(f"{field.name}: {field.type}" for field in schema)
    if image is None:
        raise UserError(
            "a Parquet dataset needs an image column of type binary or struct<bytes, path>; "
            f"{path} has {columns}. "
            "Fix: write the encoded pictures (PNG, JPEG) into a binary column 'image'"
        )
    if label is None:
        raise UserError(
            f"a Parquet dataset needs a label column of integers or strings; {path} has none of "
            f"{', '.join(LABEL_COLUMNS)} but {columns}. Fix: rename the label column to 'label'"
        )
    for file, other in schemas.items():
        for column in (image, label):
            if column not in other.names:
                raise UserError(
                    f"all Parquet files of {path} need the column {column!r}; {file.name} has "
                    f"{', '.join(other.names)}. Fix: rename its column, or move the file away"
                )
    return Layout(files=files, image=image, label=label, names=names.get(label, ()))


def _schema(file: Path) -> Any:
    try:
        return pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"data.source must be readable as Parquet; {file} is not ({one_line(error)}). "
            "Fix: copy or download the file again"
        ) from None


def _first(preferred: Iterable[str], fitting: list[str]) -> str | None:
    return next((name for name in preferred if name in fitting), None)


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


def _read(path: Path, spec: DataSpec, layout: Layout) -> Reading:
    values = {
        split: [
            value
            for file in files
            for value in pq.read_table(file, columns=[layout.label]).column(0).to_pylist()
        ]
        for split, files in layout.files.items()
    }
    if layout.names and set(values.get("test", [0])) <= {-1}:
        log.info("the test files carry no labels (-1): left out, a test split is carved from train")
        del values["test"]
    names, index = _index(path, layout, values)
    require_two_classes(spec.source, [names[index[value]] for value in set(values["train"])])
    splits = {
        split: _items(layout.files[split], layout.image, [index[value] for value in column])
        for split, column in values.items()
    }
    count = sum(map(len, values.values()))
    return read_pictures(names, splits, sample=_sample(layout), count=count, spec=spec)


def _index(
    path: Path, layout: Layout, values: dict[str, list[Any]]
) -> tuple[tuple[str, ...], dict[Any, int]]:
    """Class names, and the class index of each label value."""
    distinct = set().union(*values.values())
    if None in distinct:
        row = next(column.index(None) for column in values.values() if None in column)
        raise UserError(
            f"every row needs a label; column {layout.label!r} of {path} is empty at row {row}. "
            "Fix: remove such rows"
        )
    ordered = sorted(distinct)
    if not layout.names or any(isinstance(value, str) for value in ordered):
        return tuple(map(str, ordered)), {value: index for index, value in enumerate(ordered)}
    wrong = [value for value in ordered if not 0 <= value < len(layout.names)]
    if wrong:
        raise UserError(
            f"labels must be in [0, {len(layout.names) - 1}], the classes that {path} names; "
            f"column {layout.label!r} holds {wrong[0]}. Fix: remove such rows"
        )
    return layout.names, {value: value for value in ordered}


def _sample(layout: Layout) -> Iterator[bytes | None]:
    """A few encoded images, spread over the row groups of the training files."""
    groups = [
        (file, group)
        for file in layout.files["train"]
        for group in range(pq.read_metadata(file).num_row_groups)
    ]
    for pick in np.unique(np.linspace(0, len(groups) - 1, SAMPLED_ROW_GROUPS).astype(int)):
        file, group = groups[pick]
        pictures = _encoded(file, layout.image, row_groups=[group], batch_size=SAMPLED_ROWS)
        yield from islice(pictures, SAMPLED_ROWS)


def _encoded(file: Path, column: str, **options: Any) -> Iterator[bytes | None]:
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
