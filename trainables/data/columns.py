"""Which columns of a Parquet file are the images and the labels, by names and Arrow types.

Types that hold the same are read alike, however they are laid out: views and large forms,
dictionaries, extension types by what is stored, and a list of one picture.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from trainables.config import DataSpec
from trainables.errors import UserError

IMAGE_COLUMNS = ("image", "img", "picture", "pixels")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "category", "label_name", "y")

Names = Mapping[str, tuple[str, ...]]  # of the classes, by column


def choose_columns(path: Path, schema: Any, declared: Names, spec: DataSpec) -> tuple[str, str]:
    """The columns of the images and of the labels: those that ``spec`` names, else by usual names,
    else the only ones that can be, or that have class names ``declared``. Raises ``UserError``."""
    return _image_column(path, schema, spec), _label_column(path, schema, declared, spec)


def _image_column(path: Path, schema: Any, spec: DataSpec) -> str:
    fitting = [field.name for field in schema if holds_images(field.type)]
    if spec.image_column is not None:
        _require_chosen(path, schema, "data.image_column", spec.image_column, fitting)
        return spec.image_column
    if not fitting:
        raise UserError(
            "a Parquet dataset needs an image column of type binary or struct<bytes, path>; "
            f"{path} has {_described(schema)}. "
            "Fix: write the encoded pictures (PNG, JPEG) into a binary column 'image'"
        )
    usual = [name for name in IMAGE_COLUMNS if name in fitting]
    if not usual and len(fitting) > 1:
        raise UserError(
            f"a Parquet dataset needs one image column; {path} has {', '.join(fitting)}. "
            f"Fix: --set data.image_column={fitting[0]}"
        )
    return str((usual or fitting)[0])


def _label_column(path: Path, schema: Any, declared: Names, spec: DataSpec) -> str:
    fitting = [field.name for field in schema if label_kind(field.type)]
    if spec.label_column is not None:
        _require_chosen(path, schema, "data.label_column", spec.label_column, fitting)
        return spec.label_column
    for label in LABEL_COLUMNS:
        if label in fitting:
            return label
    for label in LABEL_COLUMNS:
        if label in schema.names:
            raise UserError(_wrong_type(path, label, schema.field(label).type))
    named = [name for name in declared if name in fitting]
    if len(named) == 1:
        return named[0]
    choices = named or [name for name in fitting if name != "__index_level_0__"]
    raise UserError(
        f"a Parquet dataset needs a label column of integers or strings; {path} has none of "
        f"{', '.join(LABEL_COLUMNS)} but {_described(schema)}. "
        + (
            f"Fix: --set data.label_column={choices[0]}, where that is it"
            if choices
            else "Fix: write one, called 'label'"
        )
    )


def _require_chosen(path: Path, schema: Any, option: str, name: str, fitting: list[str]) -> None:
    if name in fitting:
        return
    if name in schema.names and option.endswith("label_column"):
        raise UserError(_wrong_type(path, name, schema.field(name).type))
    raise UserError(
        f"{option} must be one of {', '.join(fitting) or 'none'} in {path}; got {name!r}, of "
        f"{_described(schema)}. Fix: --set {option}={fitting[0] if fitting else 'COLUMN'}"
    )


def _wrong_type(path: Path, column: str, kind: Any) -> str:
    gap = ""
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        gap = " (integers with gaps become that in pandas: remove the rows without a label)"
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        gap = " (each image needs one label)"
    return (
        f"the label column must be of integers, strings or booleans; {column!r} of {path} is "
        f"{kind}{gap}. Fix: write it as int64 or string, or --set data.label_column=COLUMN"
    )


def _described(schema: Any) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def _plain(kind: Any) -> Any:
    """The type that is stored."""
    while isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return kind


def holds_images(kind: Any) -> bool:
    """Whether a column of this type may hold encoded pictures, one in each row."""
    kind = _plain(kind)
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_binary(kind.field(index).type)
    if _is_list(kind):
        return pa.types.is_struct(_plain(kind.value_type)) and holds_images(kind.value_type)
    return _is_binary(kind)


def _is_binary(kind: Any) -> bool:
    kind = _plain(kind)
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def _is_list(kind: Any) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    views = (pa.types.is_list_view, pa.types.is_large_list_view)
    return any(test(kind) for test in (*tests, *views))


def label_kind(kind: Any) -> str | None:
    """``integers``, ``strings`` or ``booleans``; ``None`` of what is no label."""
    kind = _plain(kind)
    if pa.types.is_dictionary(kind):
        kind = _plain(kind.value_type)
    if pa.types.is_integer(kind):
        return "integers"
    if pa.types.is_boolean(kind):
        return "booleans"
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return "strings" if any(test(kind) for test in texts) else None


def stored(array: Any) -> Any:
    """What an extension array stores; any other array itself."""
    while isinstance(array, pa.ExtensionArray):
        array = array.storage
    return array


def images_of(array: Any, file: Path) -> Iterator[bytes | None]:
    """The encoded picture of each row. Raises ``UserError`` where a row has several."""
    array = stored(array)
    if _is_list(array.type):
        for row in array.to_pylist():
            if row is not None and len(row) > 1:
                raise UserError(
                    f"each row needs one image; a row of {file} has a list of {len(row)}. "
                    "Fix: write one image a row"
                )
            picture = row[0] if row else None
            yield picture["bytes"] if isinstance(picture, dict) else picture
        return
    if pa.types.is_struct(array.type):
        array = stored(array.field("bytes"))
    yield from array.to_pylist()


def class_names(schema: Any) -> dict[str, tuple[str, ...]]:
    """Names of the classes by column, from Hugging Face's description of the columns: JSON in the
    schema's metadata. What is not as it should be there says nothing."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"].items()
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    return {
        column: names
        for column, feature in features
        if isinstance(feature, dict) and (names := tuple(_listed(feature.get("names"))))
    }


def _listed(names: Any) -> Iterable[str]:
    if isinstance(names, dict):  # written by old versions: {"0": "cat", ...}
        numbers = {int(key): name for key, name in names.items() if str(key).isdecimal()}
        whole = len(numbers) == len(names) and sorted(numbers) == [*range(len(names))]
        return [str(numbers[number]) for number in range(len(names))] if whole else ()
    return map(str, names) if isinstance(names, list) else ()
