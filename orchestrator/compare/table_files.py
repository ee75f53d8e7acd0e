"""The tables that can be asked for as files: trials, epochs, predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from orchestrator.compare.prediction_table import PREDICTION_COLUMNS, prediction_table
from orchestrator.compare.runs import RunData
from orchestrator.compare.trial_tables import (
    EPOCH_COLUMNS,
    TRIAL_COLUMNS,
    Columns,
    epoch_table,
    trial_table,
)
from trainables.errors import UserError

WRITTEN_AS = (".parquet", ".csv")
TABLES = {"trials": trial_table, "epochs": epoch_table, "predictions": prediction_table}
COLUMNS: dict[str, Columns] = {
    "trials": TRIAL_COLUMNS,
    "epochs": EPOCH_COLUMNS,
    "predictions": PREDICTION_COLUMNS,
}


def table_of(path: Path) -> str | None:
    """Which of ``TABLES`` a file is asked for by its name, ``vit-trials.parquet``, ``epochs.csv``;
    ``None`` for one that is no table. Raises ``UserError`` where the name does not say which."""
    if path.suffix.lower() not in WRITTEN_AS:
        return None
    name = next((name for name in TABLES if path.stem.lower().endswith(name)), None)
    if name is None:
        fixes = " or ".join(f"--out {name}{path.suffix}" for name in TABLES)
        raise UserError(
            f"the name of a table ends in {' or '.join(TABLES)}, then {' or '.join(WRITTEN_AS)}; "
            f"got {path.name!r}. Fix: {fixes}"
        )
    return name


def write_table(runs: Sequence[RunData], path: Path) -> None:
    """The table that :func:`table_of` says, as Parquet (types and descriptions are in the file) or
    CSV by the name's end; CSV has no lists, so none of a column of lists. Raises ``UserError``
    where there is nothing to write."""
    name = table_of(path)
    assert name is not None
    table = TABLES[name](runs)
    if path.suffix.lower() == ".csv":
        from pyarrow import csv

        lists = [field.name for field in table.schema if pa.types.is_list(field.type)]
        csv.write_csv(table.drop_columns(lists), path)
    else:
        from pyarrow import parquet

        parquet.write_table(table, path)
