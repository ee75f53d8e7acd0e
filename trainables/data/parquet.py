"""Parquet files with encoded images and labels, in Hugging Face's layout or a plain one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from trainables.assignment import DataSpec
from trainables.data.parquet_layout import Layout, find_layout
from trainables.data.reading import Chunk, Reading, Say, Source, refuse_one_class
from trainables.errors import UserError

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
            [split, str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns]
            for split, files in sorted(layout.files.items())
            for file in files
        ],
        read=lambda say: _read(path, spec, layout, say),
    )


def _read(path: Path, spec: DataSpec, layout: Layout, say: Say) -> Reading:
    from trainables.data.decode import common_side

    values = {split: _labels(files, layout) for split, files in layout.files.items()}
    if layout.names and all(value == -1 for value in values.get("test", [0])):
        say("the test files carry no labels (-1): left out, a test split is carved from train")
        layout = replace(layout, files={k: v for k, v in layout.files.items() if k != "test"})
        del values["test"]
    names, index = _index(path, layout, values)
    refuse_one_class(spec.source, [names[index[value]] for value in set(values["train"])])
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
    pictures: list[bytes | None] = (
        column.field("bytes") if layout.in_struct else column
    ).to_pylist()
    return pictures


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
    for file in files:
        row = 0
        columns = [layout.image, layout.label]
        for batch in pq.ParquetFile(file).iter_batches(batch_size=512, columns=columns):
            pictures = _encoded(batch.column(layout.image), layout)
            for picture, label in zip(
                pictures, batch.column(layout.label).to_pylist(), strict=True
            ):
                yield f"{file} row {row}", picture, index[label]
                row += 1
