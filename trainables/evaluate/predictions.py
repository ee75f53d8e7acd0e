"""What a model predicts of each image of a split, as an Arrow file: a final's ``test`` and ``val``.

All probabilities are kept while they are ``MOST_VALUES`` at most, which is 32 MB: 10,000 images of
800 classes. Beyond that (ImageNet's 50,000 of 1,000 would take 200 MB a final and split) a row has
the ``TOP_CLASSES`` most probable classes and the one of its label, and what is left is spread
evenly over the others. Accuracy, recall, precision, top-5, the loss and calibration are exact in
both forms. What ranks images by a class that a row does not have (the area under a ROC curve) is
not: ``Predictions.exact`` says so.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc

from trainables.errors import UserError, one_line

SCHEMA = 1
MOST_VALUES = 8_000_000  # of a split, float32
TOP_CLASSES = 20
SPLITS = ("val", "test")
FACTS = b"facts"  # key of the table's metadata

Labels = npt.NDArray[np.int64]
Digests = npt.NDArray[np.uint64]
Matrix = npt.NDArray[np.float32]
Classes = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """``probabilities`` (N, classes) float32 of the images of ``split`` in the store's order, their
    ``labels`` (N,) int64, and ``digests`` (N,) uint64 of their pixels, by which an image is known
    in another store too. ``exact``: all probabilities are as the model gave them. The names of the
    classes are in the run's header."""

    split: str
    labels: Labels
    probabilities: Matrix
    digests: Digests | None = None
    exact: bool = True

    @property
    def predicted(self) -> Labels:
        """(N,): the most probable class of each image, the first of those that tie."""
        return np.asarray(self.probabilities.argmax(axis=1), np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class KeptProbabilities:
    """What a file holds of (N, classes) probabilities: ``values`` (N, K) float32, of the classes
    ``classes`` (N, K), or of all of them where that is ``None``. A class may be there twice."""

    values: Matrix
    classes: Classes | None
    num_classes: int

    def whole(self) -> Matrix:
        """(N, classes) float32; classes that are not kept share what is left."""
        if self.classes is None:
            return self.values
        count = len(self.values)
        rows = np.arange(count)[:, None]
        kept = np.zeros((count, self.num_classes), bool)
        kept[rows, self.classes] = True
        whole = np.zeros((count, self.num_classes), np.float32)
        whole[rows, self.classes] = self.values
        others = self.num_classes - kept.sum(1, keepdims=True)  # (N, 1)
        left = np.maximum(0.0, 1.0 - whole.sum(1, keepdims=True, dtype=np.float64))
        share = (left / np.maximum(1, others)).astype(np.float32)
        least = self.values[:, :TOP_CLASSES].min(1, keepdims=True)  # rounding must not raise one
        return np.where(kept, whole, np.minimum(share, least))


def keeps_all(images: int, classes: int) -> bool:
    """Whether a file has all probabilities of so many images."""
    return images * classes <= MOST_VALUES or classes <= TOP_CLASSES


def most_probable(probabilities: Matrix, labels: Labels) -> tuple[Classes, Matrix]:
    """The ``TOP_CLASSES`` most probable classes of (N, classes), the more probable first and then
    the lower number, and after them the label; with their probabilities, (N, TOP_CLASSES + 1)."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP_CLASSES]
    classes = np.concatenate([order, labels[:, None]], axis=1)
    return classes, np.take_along_axis(probabilities, classes, axis=1)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write the file, all probabilities where there is room for them (:func:`keeps_all`)."""
    values, classes = predictions.probabilities, None
    if not keeps_all(*values.shape):
        classes, values = most_probable(values, predictions.labels)
    kept = KeptProbabilities(
        values=values, classes=classes, num_classes=predictions.probabilities.shape[1]
    )
    write_kept(path, predictions.split, predictions.labels, kept, predictions.digests)


def write_kept(
    path: Path, split: str, labels: Labels, kept: KeptProbabilities, digests: Digests | None
) -> None:
    """Write what is kept of a split's predictions, with its ``labels`` (N,) and ``digests`` (N,),
    rows in the split's order; whole or not at all. Raises ``OSError`` where the disk has no room.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"label": pa.array(labels, pa.int64())}
    if digests is not None:
        columns["digest"] = pa.array(digests, pa.uint64())
    if kept.classes is not None:
        columns["classes"] = _lists(kept.classes.astype(np.int32))
    columns["probabilities"] = _lists(kept.values.astype(np.float32, copy=False))
    facts = {
        "schema": SCHEMA,
        "split": split,
        "num_classes": kept.num_classes,
        "digest": _digest(labels, kept.values),
    }
    table = pa.table(columns).replace_schema_metadata({FACTS: json.dumps(facts)})
    half = path.with_suffix(f".{os.getpid()}")
    try:
        with pa.OSFile(str(half), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def read_predictions(path: Path) -> Predictions | None:
    """The predictions in the file; ``None`` where there is none. Raises ``UserError`` where it is
    damaged."""
    try:
        predictions, is_intact = _read(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, IndexError, pa.ArrowException) as error:
        raise UserError(_damage(path, one_line(error))) from error
    if not is_intact:
        raise UserError(_damage(path, "its values are not those that were written"))
    return predictions


def _read(path: Path) -> tuple[Predictions, bool]:
    """What is in the file, and whether its values are those that were written."""
    with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
        table = reader.read_all().combine_chunks()
    facts = json.loads(table.schema.metadata[FACTS])
    labels = _flat(table, "label").astype(np.int64, copy=False)
    values = _matrix(table, "probabilities").astype(np.float32, copy=False)
    whole = "classes" not in table.column_names
    classes = None if whole else _matrix(table, "classes").astype(np.int64)
    marked = "digest" in table.column_names
    digests = _flat(table, "digest").astype(np.uint64, copy=False) if marked else None
    kept = KeptProbabilities(values=values, classes=classes, num_classes=facts["num_classes"])
    predictions = Predictions(
        split=facts["split"], labels=labels, probabilities=kept.whole(), digests=digests,
        exact=whole,
    )  # fmt: skip
    return predictions, facts["digest"] == _digest(labels, values)


def _damage(path: Path, why: str) -> str:
    return (
        f"the predictions of a final must be whole; {str(path)!r} is damaged ({why}). "
        "Fix: restore the file from a copy of the run, or delete it: then they are missing"
    )


def _lists(values: npt.NDArray[np.generic]) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _flat(table: pa.Table, name: str) -> npt.NDArray[np.generic]:
    return np.asarray(table.column(name).to_numpy())


def _matrix(table: pa.Table, name: str) -> npt.NDArray[np.generic]:
    width = table.schema.field(name).type.list_size
    lists = table.column(name).combine_chunks()
    return np.asarray(lists.flatten().to_numpy()).reshape(-1, width)


def _digest(labels: Labels, values: Matrix) -> str:
    """Of the bytes of both, as hexadecimal digits."""
    digest = hashlib.blake2b(np.ascontiguousarray(labels, "<i8").tobytes(), digest_size=16)
    digest.update(np.ascontiguousarray(values, "<f4").tobytes())
    return digest.hexdigest()
