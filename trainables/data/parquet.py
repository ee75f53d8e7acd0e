"""Parquet files with encoded images and labels, in Hugging Face's layout or a plain one."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainables.config import DataSpec
from trainables.data.store import Chunk, Reading, Source, file_identity, require_two_classes
from trainables.errors import UserError, one_line

log = logging.getLogger(__name__)

IMAGE_COLUMNS = ("image", "img", "picture", "pixels")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "category", "label_name", "y")
SPLIT_WORDS = re.compile(
    r"(?:^|[-_./ ])(?:(train|training)|(val|valid|validation|dev)|(test|testing))(?=[-_./ 0-9\[]|$)"
)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where images and labels are: files by split, columns, names if the schema holds them."""

    files: dict[str, list[Path]]
    image: str
    in_struct: bool
    label: str
    names: tuple[str, ...] | None


def split_of(file: Path) -> str:
    """``train``, ``val`` or ``test`` from a file's name, or else its folders'; else ``train``."""
    for text in (file.stem, *reversed(file.parts[:-1])):
        match = SPLIT_WORDS.search(text.lower())
        if match:
            return ("train", "val", "test")[match.lastindex - 1 if match.lastindex else 0]
    return "train"


def find_layout(path: Path) -> Layout:
    """Layout of a Parquet file (all of it train) or folder, from the footers alone.

    Raises ``UserError`` on an unreadable file and on a missing image or label column.
    """
    files: dict[str, list[Path]] = {}
    if path.is_file():
        files["train"] = [path]
    else:
        for file in sorted(path.rglob("*.parquet")):
            if not any(part.startswith(".") for part in file.relative_to(path).parts):
                files.setdefault(split_of(file.relative_to(path)), []).append(file)
    if not files.get("train"):
        raise UserError(
            f"a Parquet folder needs a train split; {path} has files for "
            f"{', '.join(sorted(files)) or 'no split'} only. "
            "Fix: name its files train-*.parquet, or give one file as --dataset"
        )
    schemas = {file: _schema(file) for group in files.values() for file in group}
    schema = next(iter(schemas.values()))
    image = _image_column(path, schema)
    label = _label_column(path, schema, image)
    for file, other in schemas.items():
        for column in (image, label):
            if column not in other.names:
                raise UserError(
                    f"all Parquet files of {path} need the column {column!r}; {file.name} has "
                    f"{', '.join(other.names)}. Fix: rename its column, or move the file away"
                )
    return Layout(
        files=files,
        image=image,
        in_struct=pa.types.is_struct(schema.field(image).type),
        label=label,
        names=_class_names(schema, label),
    )


def _schema(file: Path) -> Any:
    try:
        return pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"data.source must be readable as Parquet; {file} is not ({one_line(error)}). "
            "Fix: copy or download the file again"
        ) from None


def _holds_images(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_images(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _image_column(path: Path, schema: Any) -> str:
    fitting: list[str] = [field.name for field in schema if _holds_images(field.type)]
    for name in (*IMAGE_COLUMNS, *fitting):
        if name in fitting:
            return name
    raise UserError(
        f"a Parquet dataset needs an image column of type binary or struct<bytes, path>; {path} "
        f"has {', '.join(f'{field.name}: {field.type}' for field in schema)}. "
        "Fix: write the encoded pictures (PNG, JPEG) into a binary column 'image'"
    )


def _label_column(path: Path, schema: Any, image: str) -> str:
    features = _features(schema)
    declared: list[str] = [n for n, f in features.items() if isinstance(f, dict) and "names" in f]
    for name in (*LABEL_COLUMNS, *declared):
        if name in schema.names and name != image and _is_label(schema.field(name).type):
            return name
    raise UserError(
        f"a Parquet dataset needs a label column of integers or strings; {path} has none of "
        f"{', '.join(LABEL_COLUMNS)} but {', '.join(f'{f.name}: {f.type}' for f in schema)}. "
        "Fix: rename the label column to 'label'"
    )


def _is_label(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean)
    return any(test(kind) for test in tests)


def _features(schema: Any) -> dict[str, object]:
    """Hugging Face's description of the columns, kept as JSON in the schema's metadata."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def _class_names(schema: Any, label: str) -> tuple[str, ...] | None:
    feature = _features(schema).get(label)
    names = feature.get("names") if isinstance(feature, dict) else None
    if isinstance(names, dict):  # written by old versions: {"0": "cat", ...}
        names = [names[key] for key in sorted(names, key=int)]
    return tuple(str(name) for name in names) if names else None


SAMPLED_ROW_GROUPS = 8
SAMPLED_ROWS = 64


def locate(path: Path, spec: DataSpec) -> Source:
    """A Parquet file (all of it train) or a folder of them; checks footers, reads no image.

    Raises ``UserError`` on an unreadable file or where there is no image or label column.
    """
    layout = find_layout(path)
    return Source(
        name=path.stem if path.is_file() else path.name,
        identity=lambda: [
            [split, *file_identity(file)]
            for split, files in sorted(layout.files.items())
            for file in files
        ],
        read=lambda: _read(path, spec, layout),
    )


def _read(path: Path, spec: DataSpec, layout: Layout) -> Reading:
    from trainables.data.decode import common_side  # PIL only to build

    values = {split: _labels(files, layout) for split, files in layout.files.items()}
    if layout.names and all(value == -1 for value in values.get("test", [0])):
        log.info("the test files carry no labels (-1): left out, a test split is carved from train")
        layout = replace(layout, files={k: v for k, v in layout.files.items() if k != "test"})
        del values["test"]
    names, index = _index(path, layout, values)
    require_two_classes(spec.source, [names[index[value]] for value in set(values["train"])])
    side = common_side(_sample(layout), spec.short_side)
    return Reading(
        class_names=names,
        height=side,
        width=side,
        count=sum(len(column) for column in values.values()),
        chunks=_chunks(layout, index, side, spec.skip_corrupt),
    )


def _labels(files: list[Path], layout: Layout) -> list[Any]:
    return [
        value
        for file in files
        for value in pq.read_table(file, columns=[layout.label]).column(0).to_pylist()
    ]


def _index(
    path: Path, layout: Layout, values: dict[str, list[Any]]
) -> tuple[tuple[str, ...], dict[Any, int]]:
    """Class names, and the class index of each label value."""
    seen = {value for column in values.values() for value in column}
    if None in seen:
        row = next(c.index(None) for c in values.values() if None in c)
        raise UserError(
            f"every row needs a label; column {layout.label!r} of {path} is empty at row {row}. "
            "Fix: remove such rows"
        )
    if layout.names and not any(isinstance(value, str) for value in seen):
        wrong = sorted(v for v in seen if not 0 <= v < len(layout.names))
        if wrong:
            raise UserError(
                f"labels must be in [0, {len(layout.names) - 1}], the classes that {path} names; "
                f"column {layout.label!r} holds {wrong[0]}. Fix: remove such rows"
            )
        return layout.names, {index: index for index in range(len(layout.names))}
    ordered = sorted(seen)
    return tuple(str(value) for value in ordered), {v: i for i, v in enumerate(ordered)}


def _sample(layout: Layout) -> Iterator[bytes | None]:
    """A few encoded images, spread over the row groups of the training files."""
    groups = [
        (file, group)
        for file in layout.files["train"]
        for group in range(pq.read_metadata(file).num_row_groups)
    ]
    for pick in np.unique(np.linspace(0, len(groups) - 1, SAMPLED_ROW_GROUPS).astype(int)):
        file, group = groups[pick]
        for batch in pq.ParquetFile(file).iter_batches(
            batch_size=SAMPLED_ROWS, row_groups=[group], columns=[layout.image]
        ):
            yield from _encoded(batch.column(0), layout)
            break


def _encoded(column: Any, layout: Layout) -> list[bytes | None]:
    return list((column.field("bytes") if layout.in_struct else column).to_pylist())


def _chunks(
    layout: Layout, index: dict[Any, int], side: int, skip_corrupt: bool
) -> Iterator[Chunk]:
    from trainables.data.decode import decode_chunks

    for split, files in layout.files.items():
        yield from decode_chunks(
            split, _items(files, layout, index), side=side, skip_corrupt=skip_corrupt
        )


def _items(
    files: list[Path], layout: Layout, index: dict[Any, int]
) -> Iterator[tuple[str, bytes | None, int]]:
    columns = [layout.image, layout.label]
    for file in files:
        row = 0
        for batch in pq.ParquetFile(file).iter_batches(batch_size=512, columns=columns):
            labels = batch.column(layout.label).to_pylist()
            pictures = _encoded(batch.column(layout.image), layout)
            for picture, label in zip(pictures, labels, strict=True):
                yield f"{file} row {row}", picture, index[label]
                row += 1
