"""From the values of a label column to classes, and which rows have none.

A missing label has many spellings: an empty cell, minus one, "unlabeled". Each would be a class
like any other to whoever only counts what is there.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainables.data.split_names import UNLABELLED_WORDS
from trainables.errors import UserError

log = logging.getLogger(__name__)

LEFT_OUT = -1  # the class of a row without one
# As text, in small letters and without blanks around it.
UNLABELLED_TEXTS = frozenset(
    ("", "-1", "-1.0", "nan", "<na>", "n/a", "#n/a", "null", "?", "no label", "no_label",
     *UNLABELLED_WORDS)
)  # fmt: skip
SIGNS = (frozenset((-1, 1)), frozenset(("-1", "1")), frozenset(("-1", "+1")))  # two classes

Values = Mapping[str, Sequence[Any]]  # by split, one a row


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """``labels`` by split, one a row: numbers of ``class_names``, or ``LEFT_OUT``."""

    class_names: tuple[str, ...]
    labels: Mapping[str, list[int]]


def labelled(
    path: Path,
    column: str,
    values: Values,
    names: tuple[str, ...],
    *,
    skip_unlabelled: bool,
    numbers: Mapping[str, Sequence[int]] | None = None,
) -> Labelled:
    """The classes of all rows of ``values``; ``names`` are those that numbers stand for, if any,
    and ``numbers`` by split those of the rows in messages (``None``: counted from 0).

    A val or test split without a label is left out and said, rows without one only where
    ``skip_unlabelled``. Raises ``UserError`` for them otherwise, and for numbers that have no name.
    """
    distinct = set().union(*map(set, values.values())) - {None}
    missing = {value for value in distinct if _is_missing(value)}
    if not names and frozenset(distinct) in SIGNS:
        missing = set()
    missing.add(None)
    kept = _with_labels(values, missing)
    _require_labels(path, column, kept, missing, numbers, skip_unlabelled=skip_unlabelled)
    ordered = sorted(set().union(*map(set, kept.values())) - missing)
    index: Mapping[Any, int]
    if not names or any(isinstance(value, str) for value in ordered):
        names = tuple(map(str, ordered))
        warn_of_alike(path, names)
        index = {value: number for number, value in enumerate(ordered)}
    else:
        wrong = [value for value in ordered if not 0 <= value < len(names)]
        if wrong:
            raise UserError(
                f"labels must be in [0, {len(names) - 1}], the classes that {path} names; "
                f"column {column!r} holds {wrong[0]}. Fix: remove such rows"
            )
        index = {value: int(value) for value in ordered}
    labels = {
        split: [LEFT_OUT if value in missing else index[value] for value in rows]
        for split, rows in kept.items()
    }
    return Labelled(class_names=names, labels=labels)


def warn_of_alike(path: Path, class_names: Sequence[str]) -> None:
    """Say which classes differ in capitals or in blanks around them alone."""
    folded = Counter(name.strip().casefold() for name in class_names)
    alike = [name for name in class_names if folded[name.strip().casefold()] > 1]
    if alike:
        log.warning(
            f"warning: classes of {path} differ in capitals or blanks alone: "
            f"{', '.join(map(repr, alike[:6]))}. Fix: rename them where they are one"
        )


def any_missing(class_names: Collection[str]) -> bool:
    """Whether one of these classes is minus one or nothing, and they are not the two signs."""
    return frozenset(class_names) not in SIGNS and not {"-1", ""}.isdisjoint(class_names)


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in UNLABELLED_TEXTS
    return not isinstance(value, bool) and bool(value == -1)


def _with_labels(values: Values, missing: set[Any]) -> dict[str, Sequence[Any]]:
    """Without the val and test splits that have no label at all."""
    kept = dict(values)
    for split, rows in values.items():
        if split != "train" and len(rows) and set(rows) <= missing:
            log.info(
                f"the {split} files carry no labels ({_shown(rows[0])}): left out, a {split} split "
                "is carved from train"
            )
            del kept[split]
    return kept


def _require_labels(
    path: Path,
    column: str,
    values: Values,
    missing: set[Any],
    numbers: Mapping[str, Sequence[int]] | None,
    *,
    skip_unlabelled: bool,
) -> None:
    """Raise ``UserError`` where rows have no label, unless they are left out, which is said."""
    for split, rows in values.items():
        without = [row for row, value in enumerate(rows) if value in missing]
        if not without:
            continue
        if skip_unlabelled:
            log.warning(f"warning: {len(without)} rows of {split} have no label: left out")
            continue
        first = rows[without[0]]
        number = without[0] if numbers is None else numbers[split][without[0]]
        holds = "is empty" if first is None else f"says {_shown(first)}"
        raise UserError(
            f"every row needs a label; column {column!r} of {path} {holds} at row {number} of "
            f"{split}, and {len(without)} rows have none. Fix: remove them, leave them out with "
            "--set data.skip_unlabelled=true, or write the class's name where it is one"
        )


def _shown(value: Any) -> str:
    return "empty" if value is None else repr(value)
