"""Image stores that come from object storage instead of a source."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainables.config import DataSpec
from trainables.data.build import prepare, put_stores
from trainables.errors import UserError
from trainables.storage import object_storage

pytestmark = pytest.mark.usefixtures("quick_storage")


def test_a_node_without_the_dataset_fetches_its_store_and_looks_it_through(
    place: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for index in range(40):
        picture = tmp_path / "pictures" / ("a", "b")[index % 2] / f"{index}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(picture)
    spec = DataSpec(source=str(tmp_path / "pictures"), folder=str(tmp_path / "driver"))
    uri, built = f"{place}/run", prepare(spec)
    put_stores(uri, {spec: built})
    put = object_storage.list_files(f"{place}/stores")
    put_stores(uri, {spec: built})
    assert object_storage.list_files(f"{place}/stores") == put
    shutil.rmtree(tmp_path / "pictures")

    there = replace(spec, folder=str(tmp_path / "worker"), train_limit=10, train_seed=3)
    fetched = prepare(there, remote=uri)
    assert fetched.info == built.info
    assert fetched.path.parent == tmp_path / "worker"
    for split in ("train", "val", "test"):
        assert (fetched.split(split).images == built.split(split).images).all()
        assert (fetched.split(split).labels == built.split(split).labels).all()

    damaged = f"{place}/stores/{built.path.name}/train.arrow"
    content = bytearray(object_storage.read_bytes(damaged))
    at = content.index(built.split("train").images[0].tobytes())
    content[at] ^= 1
    object_storage.write_bytes(damaged, bytes(content))
    with pytest.raises(UserError, match=r"data\.source must exist"):
        prepare(replace(spec, folder=str(tmp_path / "another")), remote=uri)
