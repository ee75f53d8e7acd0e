"""Where images and labels are in Parquet: files by split, columns, Hugging Face's class names."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainables.errors import UserError

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
        found = SPLIT_WORDS.search(text.lower())
        if found:
            return ("train", "val", "test")[found.lastindex - 1 if found.lastindex else 0]
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
    schemas = [_schema(file) for group in files.values() for file in group]
    schema = schemas[0]
    image = _image_column(path, schema)
    label = _label_column(path, schema, image)
    for other, file in zip(schemas, [f for g in files.values() for f in g], strict=True):
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
        reason = str(error).splitlines()[0]
        raise UserError(
            f"data.source must be readable as Parquet; {file} is not ({reason}). "
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


def _features(schema: Any) -> dict[str, Any]:
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
