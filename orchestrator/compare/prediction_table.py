"""What every final predicts of every image as one Arrow table, for pandas and the like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from orchestrator.compare.comparison import pictures_of, stated_datasets
from orchestrator.compare.pictures import Pictures
from orchestrator.compare.predicted import named
from orchestrator.compare.runs import Curve, RunData, collect
from orchestrator.compare.trial_tables import NUMBER, TEXT, WHOLE, Column, Columns
from trainables.errors import UserError

SPLITS = ("test", "val")
PREDICTION_COLUMNS: Columns = {
    "run": Column(TEXT, "the run's name"),
    "candidate": Column(TEXT, "the candidate's label"),
    "trial": Column(TEXT, "the final, unique in the run"),
    "search": Column(WHOLE, "which of the candidate's independent searches, from 1"),
    "seed": Column(WHOLE, "of the final"),
    "split": Column(TEXT, "test or val; val is carved anew for each search"),
    "row": Column(WHOLE, "of the split in the image store"),
    "digest": Column(TEXT, "of the image's pixels: the same image has the same one everywhere"),
    "path": Column(TEXT, "file or row in the source; null where the image store is not here"),
    "label": Column(TEXT, "name of the image's class"),
    "predicted": Column(TEXT, "name of the most probable class"),
    "probability": Column(NUMBER, "of the predicted class"),
    "label_probability": Column(NUMBER, "of the label"),
    "probabilities": Column(
        pa.list_(pa.float32()), "of every class, in the order of the metadata's classes; not in CSV"
    ),
}


def prediction_table(runs: Sequence[RunData]) -> pa.Table:
    """One row a final, split and image. Raises ``UserError`` where no final has kept what it
    predicts, or a file is damaged."""
    tables = [table for run in runs for table in _of_run(run)]
    if not tables:
        raise UserError(
            "predictions are written by finals; none of "
            f"{', '.join(run.name for run in runs)} has any (a run without finals, or of an "
            "earlier version). Fix: --final-seeds 1 or more, or ask for trials or epochs"
        )
    return pa.concat_tables(tables)


def _of_run(run: RunData) -> Iterator[pa.Table]:
    candidates = collect([run])
    names = next((facts.class_names for facts in stated_datasets([run])), ())
    pictures = pictures_of([run])
    for candidate in candidates:
        for final in candidate.curves:
            for split in SPLITS:
                yield from _of_final(run, final, split, names, pictures)


def _of_final(
    run: RunData, final: Curve, split: str, names: Sequence[str], pictures: Pictures
) -> Iterator[pa.Table]:
    """One table; none where the final has not kept its predictions."""
    predictions = final.predictions(split)
    if predictions is None:
        return
    count, num_classes = predictions.probabilities.shape
    classes = pa.array(named(names, num_classes), pa.string())
    rows, predicted = np.arange(count), predictions.predicted
    digests = predictions.digests
    marks = [None] * count if digests is None else [f"{value:016x}" for value in digests.tolist()]
    paths = [None] * count if digests is None else pictures.paths(digests.tolist())
    ends = np.arange(count + 1, dtype=np.int32) * num_classes
    flat = pa.array(np.ascontiguousarray(predictions.probabilities).reshape(-1), pa.float32())
    columns = {
        "run": pa.repeat(run.name, count),
        "candidate": pa.repeat(final.candidate, count),
        "trial": pa.repeat(final.name, count),
        "search": pa.repeat(final.state.search, count),
        "seed": pa.repeat(final.state.assignment.seed, count),
        "split": pa.repeat(split, count),
        "row": rows,
        "digest": pa.array(marks, pa.string()),
        "path": pa.array(paths, pa.string()),
        "label": classes.take(pa.array(predictions.labels)),
        "predicted": classes.take(pa.array(predicted)),
        "probability": predictions.probabilities[rows, predicted].astype(np.float64),
        "label_probability": predictions.probabilities[rows, predictions.labels].astype(np.float64),
        "probabilities": pa.ListArray.from_arrays(pa.array(ends), flat),
    }
    schema = pa.schema(
        [
            pa.field(name, column.kind, metadata={"description": column.text})
            for name, column in PREDICTION_COLUMNS.items()
        ],
        metadata={"classes": "\n".join(classes.to_pylist())},
    )
    yield pa.table(columns, schema=schema)
