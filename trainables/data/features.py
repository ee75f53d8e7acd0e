"""Features of images as Arrow files beside the image stores, so that no pass is made twice.

A file is named by all that its features depend on; what else is known of the pass is beside them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trainables.config import FrozenSpeed, stable_hash
from trainables.data.store import ImageStore, Rows
from trainables.spec import Spec

FOLDER = "features"  # below the folder of stores
SCHEMA = 1
FACTS = b"facts"  # key of the table's metadata

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class FeaturePass(Spec):
    """What the pass over the images took; ``speed`` is the backbone's, where it was measured
    before."""

    seconds: float
    images_per_second: float
    speed: FrozenSpeed | None = field(default=None, metadata={"before": None})


@dataclass(frozen=True, kw_only=True)
class Features:
    """``values`` (N, D) float32 of the images in ``rows`` (N,) of a split, and the pass that they
    were ``made_by``."""

    values: Matrix
    rows: Rows
    made_by: FeaturePass


def features_file(store: ImageStore, model: str, key: Mapping[str, Any], split: str) -> Path:
    """Where features of a split of ``store`` are kept that ``model`` gave; ``key`` is all else that
    they depend on, JSON-ready."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", model)[:60]
    whole = {"schema": SCHEMA, "model": model, "content": store.info.content_hash, **key}
    return store.path.parent / FOLDER / f"{slug}-{stable_hash(whole)}-{split}.arrow"


def write_features(path: Path, features: Features) -> None:
    """Seen whole or not at all. Raises ``OSError`` where the disk has no room."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = pa.array(np.ascontiguousarray(features.values).reshape(-1), pa.float32())
    columns = {
        "row": pa.array(features.rows, pa.int64()),
        "features": pa.FixedSizeListArray.from_arrays(flat, features.values.shape[1]),
    }
    metadata = {FACTS: json.dumps(features.made_by.as_dict())}
    table = pa.table(columns).replace_schema_metadata(metadata)
    half = path.with_suffix(f".{os.getpid()}")
    try:
        with pa.OSFile(str(half), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def read_features(path: Path, rows: Rows) -> Features | None:
    """The features on record of exactly these ``rows`` (N,); ``None`` where there are none, or the
    file is damaged."""
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
            table = reader.read_all().combine_chunks()
        written = table.column("row").to_numpy()
        lists = table.column("features").combine_chunks()
        width = table.schema.field("features").type.list_size
        values = lists.flatten().to_numpy().reshape(-1, width)
        made_by = FeaturePass.from_dict(json.loads(table.schema.metadata[FACTS]))
    except (OSError, ValueError, TypeError, LookupError, AttributeError, pa.ArrowException):
        return None
    if not np.array_equal(written, rows) or not np.isfinite(values).all():
        return None
    return Features(values=values.copy(), rows=written.copy(), made_by=made_by)
