"""A CSV file with a picture a row: ``path,label`` and, where there are, ``split`` and ``group``.

Paths are relative to the file. Columns may be in any order, and others beside them; rows are
numbered as spreadsheets number them, the header being row 1.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from trainables.config import DataSpec
from trainables.data.columns import LABEL_COLUMNS
from trainables.data.labels import labelled
from trainables.data.pictures import Item, read_pictures
from trainables.data.split_names import split_of_folder
from trainables.data.store import (
    Reading,
    Source,
    file_identity,
    file_stamp,
    require_train_classes,
    require_two_classes,
)
from trainables.errors import UserError, one_line, raise_if_any
from trainables.storage.pointers import why_absent

log = logging.getLogger(__name__)

PATH_COLUMNS = ("path", "file", "filename", "file_name", "image")
SPLIT_COLUMN, GROUP_COLUMN = "split", "group"
NAMED, SAMPLED_IMAGES = 3, 512
Lines = list[tuple[int, list[str]]]  # numbers of rows, and their cells
LAYOUT_HELP = "expected a header path,label and, if you like, split and group"


@dataclass
class Rows:
    """The rows of one split: their ``numbers`` in the file, their ``files``, the texts of their
    labels, their ``groups`` where there are any, and once it is known their ``classes``."""

    numbers: list[int] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Table:
    """All that the file says, by split."""

    class_names: tuple[str, ...]
    rows: Mapping[str, Rows]
    group_rule: str | None


def locate(path: Path, spec: DataSpec) -> Source:
    """The pictures that the CSV file ``path`` names; decodes none.

    Raises ``UserError`` where it cannot be read, lacks a column, where rows are of other lengths
    than the header, without a label, of no known split or without a group, where files are not
    there, and where there are not two classes.
    """
    table = _table(path, tuple(file_identity(path)), spec)
    _require_files(path, table, spec)
    every = [file for rows in table.rows.values() for file in rows.files]

    def items(split: str) -> Iterator[Item]:
        rows = table.rows[split]
        groups: Sequence[str | None] = rows.groups or [None] * len(rows.files)
        for number, file, label, group in zip(
            rows.numbers, rows.files, rows.classes, groups, strict=True
        ):
            if label >= 0:
                yield Item(f"{file} (row {number} of {path.name})", file, label, group)

    def read() -> Reading:
        train = [item.picture for item in items("train")]
        return read_pictures(
            table.class_names,
            {split: partial(items, split) for split in table.rows},
            sample=train[:: -(-len(train) // SAMPLED_IMAGES)],
            count=sum(label >= 0 for rows in table.rows.values() for label in rows.classes),
            encoded_bytes=sum(file_stamp(file)[1] for file in every),
            spec=spec,
            group_rule=table.group_rule,
        )

    return Source(
        name=path.stem,
        identity=lambda: [file_identity(path), *map(file_stamp, every)],
        read=read,
    )


@lru_cache(maxsize=4)  # a command asks several times
def _table(path: Path, identity: tuple[Any, ...], spec: DataSpec) -> Table:
    """What the file holds that was ``identity`` when it was looked at."""
    header, lines = _lines(path)
    columns = _columns(path, header, spec)
    by_split = _by_split(path, columns, header, lines)
    if "train" not in by_split:
        raise UserError(
            f"a table of pictures needs training rows; {path} has "
            f"{', '.join(sorted(by_split)) or 'no rows'} only ({LAYOUT_HELP}). "
            "Fix: add rows, or write train in the column 'split'"
        )
    known = labelled(
        path,
        columns["label"],
        _label_values({split: rows.texts for split, rows in by_split.items()}),
        (),
        skip_unlabelled=spec.skip_unlabelled,
        numbers={split: rows.numbers for split, rows in by_split.items()},
    )
    names = known.class_names
    trained = {label for label in known.labels["train"] if label >= 0}
    require_two_classes(str(path), [names[label] for label in sorted(trained)])
    for split, labels in known.labels.items():
        by_split[split].classes.extend(labels)
        require_train_classes(str(path), names, trained, split, {n for n in labels if n >= 0})
    grouped = any(rows.groups for rows in by_split.values())
    return Table(
        names,
        {split: by_split[split] for split in known.labels},
        columns["group"] if grouped else None,
    )


def _lines(path: Path) -> tuple[list[str], Lines]:
    """The header, and all rows that are not empty with their numbers."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            # Strict: a quotation mark that is never closed is an error, not the rest of the file.
            rows = [(number, row) for number, row in enumerate(csv.reader(file, strict=True), 1)]
    except (UnicodeDecodeError, csv.Error) as error:
        reason = why_absent(path) or one_line(error)[:200]
        raise UserError(
            f"data.source must be readable as CSV in UTF-8; {path} is not ({reason}). "
            "Fix: save it as 'CSV UTF-8', divided by commas"
        ) from None
    filled = [(number, row) for number, row in rows if any(cell.strip() for cell in row)]
    if not filled:
        raise UserError(f"a table of pictures needs rows; {path} has none. Fix: {LAYOUT_HELP}")
    header = [name.strip() for name in filled[0][1]]
    mistakes = [
        f"each row needs the {len(header)} cells of the header; row {number} of {path} has "
        f"{len(row)}. Fix: put a text with commas into quotation marks, or remove the row"
        for number, row in filled[1:]
        if len(row) != len(header)
    ]
    raise_if_any(mistakes[:NAMED])
    return header, filled[1:]


def _columns(path: Path, header: list[str], spec: DataSpec) -> dict[str, str]:
    """By ``path``, ``label``, ``split`` and ``group``, how the column is called; of the last two
    only those that are there."""
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UserError(
            f"each column needs a name of its own; {path} has {twice[0]!r} twice. Fix: rename one"
        )
    lower = {name.lower(): name for name in reversed(header)}
    chosen = {
        "path": (spec.image_column, PATH_COLUMNS, "data.image_column"),
        "label": (spec.label_column, LABEL_COLUMNS, "data.label_column"),
        "split": (None, (SPLIT_COLUMN,), ""),
        "group": (spec.group, (GROUP_COLUMN,), "data.group"),
    }
    columns, mistakes, missing = {}, [], []
    for what, (asked, usual, option) in chosen.items():
        name = asked if asked is not None else next((lower[n] for n in usual if n in lower), None)
        if name in header:
            columns[what] = str(name)
        elif asked is not None:
            mistakes.append(
                f"{option} must be a column of {path}; got {asked!r}; valid: {', '.join(header)}. "
                f"Fix: --set {option}=COLUMN"
            )
        elif what in ("path", "label"):
            missing.append(what)
    if missing:
        mistakes.append(
            f"a table of pictures needs the columns path and label; {path} has no "
            f"{' and no '.join(missing)} but {', '.join(header)} ({LAYOUT_HELP}). Fix: name them "
            "in the first row, or --set data.image_column=COLUMN and data.label_column=COLUMN"
        )
    raise_if_any(mistakes)
    return columns


def _by_split(
    path: Path, columns: Mapping[str, str], header: list[str], lines: Lines
) -> dict[str, Rows]:
    """The rows of each split, their classes not known yet."""
    at = {what: header.index(name) for what, name in columns.items()}
    # A column without a single value says as much as none.
    used = {what for what, place in at.items() if any(row[place].strip() for _, row in lines)}
    by_split: dict[str, Rows] = {}
    wrong: dict[str, list[str]] = {"path": [], "split": [], "group": []}
    for number, row in lines:
        cells = {what: row[place].strip() for what, place in at.items()}
        split: str | None = "train"
        if "split" in used:
            split = split_of_folder(cells["split"])
        if split is None:
            wrong["split"].append(f"{cells['split']!r} (row {number})")
            continue
        if not cells["path"]:
            wrong["path"].append(f"row {number}")
        if "group" in used and not cells["group"]:
            wrong["group"].append(f"row {number}")
        rows = by_split.setdefault(split, Rows())
        rows.numbers.append(number)
        rows.files.append(str(path.parent / cells["path"]))
        rows.texts.append(cells["label"])
        if "group" in used:
            rows.groups.append(cells["group"])
    rules = {
        "path": "every row needs the path of a picture; it is empty in",
        "split": "splits must be called train, val or test, or as archives call them; got",
        "group": "every row needs a group; it is empty in",
    }
    raise_if_any(
        f"{rules[what]} {_shown(places)} of {path}, column {columns[what]!r}. "
        "Fix: correct these rows, or remove them"
        for what, places in wrong.items()
        if places
    )
    return by_split


def _label_values(texts: Mapping[str, list[str]]) -> dict[str, list[Any]]:
    """Labels that are all whole numbers as numbers, so that 10 comes after 9."""
    given = {text for column in texts.values() for text in column if text}
    if not all(text.lstrip("-").isdecimal() and str(int(text)) == text for text in given):
        return dict(texts)
    return {
        split: [int(text) if text else None for text in column] for split, column in texts.items()
    }


def _require_files(path: Path, table: Table, spec: DataSpec) -> None:
    """Raise ``UserError`` where pictures are not there, unless they are left out as corrupt."""
    if spec.skip_corrupt:
        return
    absent = [
        f"{file} (row {number})"
        for rows in table.rows.values()
        for number, file in zip(rows.numbers, rows.files, strict=True)
        if not Path(file).is_file()
    ]
    if absent:
        raise UserError(
            f"every picture must be there; {path} names {_shown(absent)}, which are not. Fix: give "
            "paths relative to the table's folder, fetch or remove them, or leave them out with "
            "--set data.skip_corrupt=true"
        )


def _shown(places: list[str]) -> str:
    more = f" and {len(places) - NAMED} more" if len(places) > NAMED else ""
    return f"{', '.join(places[:NAMED])}{more}"
