"""Per-image correctness of a final on the test split, as an Arrow file beside its run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc


def write_correct(path: Path, correct: npt.NDArray[np.bool_]) -> None:
    """Write one bool column ``correct`` (N,), in the split's order; seen whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"correct": pa.array(correct, pa.bool_())})
    half = path.with_suffix(".part")
    with pa.OSFile(str(half), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    half.rename(path)
