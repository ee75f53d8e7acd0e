"""One build a node, whoever asks at once; a store found again without heavy imports."""

import hashlib
import io
import json
import pickle
import subprocess
import sys
import tarfile
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.integration.conftest import NATURAL, ROOT, line_of
from trainables.config import DataSpec
from trainables.data import cifar
from trainables.data.build import prepare
from trainables.data.store import train_indices

PREPARE = """
import json, logging, sys
from trainables.config import DataSpec
from trainables.data.build import prepare
source, folder, hold = sys.argv[1:]
lines = []
class Lines(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())
        print(lines[-1], file=sys.stderr, flush=True)
        if hold == "hold" and "images read" in lines[-1]:
            sys.stdin.readline()
logger = logging.getLogger("trainables")
logger.setLevel("INFO")
logger.addHandler(Lines())
store = prepare(DataSpec(source=source, folder=folder))
heavy = [m for m in ("torch", "torchvision", "PIL", "sklearn", "scipy", "pandas", "pyarrow.parquet")
         if m in sys.modules]
print(json.dumps({"lines": lines, "info": store.info.as_dict(), "heavy": heavy}))
"""


def start(source, folder, hold="go"):
    """``hold`` stops the builder half-way until a line comes on its standard input."""
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, str(source), str(folder), hold],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process):
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return json.loads(out)


def pictures(root, count, size=16):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 255, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


def test_processes_that_ask_at_once_share_one_build(tmp_path):
    root = pictures(tmp_path / "set", 300)
    builder = start(root, tmp_path / "stores", "hold")
    line_of(builder, "images read")
    waiting = [start(root, tmp_path / "stores") for _ in range(2)]
    for process in waiting:
        line_of(process, "another process is building")
    builder.stdin.write("\n")
    answers = [result(process) for process in (builder, *waiting)]
    assert answers[0]["info"] == answers[1]["info"] == answers[2]["info"]
    assert [len(answer["lines"]) for answer in answers[1:]] == [1, 1], "they only waited"
    assert len([path for path in (tmp_path / "stores").iterdir() if path.is_dir()]) == 1


def test_a_builder_killed_half_way_is_replaced(tmp_path):
    root = pictures(tmp_path / "set", 300)
    stores = tmp_path / "stores"
    process = start(root, stores, "hold")
    line_of(process, "images read")
    process.kill()
    process.communicate()
    (remains,) = (path for path in stores.iterdir() if path.is_dir())
    assert ".building-" in remains.name, "no store is seen"
    store = prepare(DataSpec(source=str(root), folder=str(stores)))
    assert sum(store.info.counts.values()) == 600
    assert [path.name for path in stores.iterdir() if path.is_dir()] == [store.path.name]


@pytest.mark.parametrize("kind", ["digits", "folder"])
def test_finding_a_store_imports_nothing_heavy(tmp_path, kind):
    source = "digits" if kind == "digits" else str(pictures(tmp_path / "set", 10))
    built = prepare(DataSpec(source=source, folder=str(tmp_path / "stores")))
    found = result(start(source, tmp_path / "stores"))
    assert found == {"lines": [], "info": built.info.as_dict(), "heavy": []}


def test_cifar_is_downloaded_from_a_mirror_once(tmp_path, monkeypatch):
    form = cifar.FORMS[0]
    served = tmp_path / "served"
    served.mkdir()
    rows = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
    batch = {"data": rows, "labels": [i % 10 for i in range(20)]}
    with tarfile.open(served / form.archive, "w:gz") as tar:
        for member in form.members:
            value = {"label_names": list("abcdefghij")} if member == form.names else batch
            data = pickle.dumps(value, protocol=2)
            info = tarfile.TarInfo(f"{form.folder}/{member}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    md5 = hashlib.md5((served / form.archive).read_bytes()).hexdigest()
    monkeypatch.setattr(cifar, "FORMS", (replace(form, md5=md5),))  # this tiny one is not official
    handler = partial(SimpleHTTPRequestHandler, directory=str(served))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("ORCHESTRATOR_CIFAR_URL", f"http://127.0.0.1:{server.server_port}")
        store = prepare(DataSpec(source="cifar10", folder=str(tmp_path / "stores")))
        server.shutdown()
    # Each image has five copies, which stay together, and val has one image of each class.
    assert store.info.counts == {"train": 50, "val": 50, "test": 20}
    (tmp_path / "stores" / "downloads" / form.archive).unlink()
    assert prepare(DataSpec(source="cifar10", folder=str(tmp_path / "stores"))) == store


@pytest.mark.shared
@pytest.mark.skipif(not NATURAL.exists(), reason="the natural images are not beside the checkout")
def test_natural_images_sorted_by_label(tmp_path):
    labels = pq.read_table(NATURAL, columns=["label"]).column(0).to_numpy()
    assert (np.diff(labels) >= 0).all(), "the file is sorted by label, which must not matter"
    store = prepare(DataSpec(source=str(NATURAL), folder=str(tmp_path)))
    assert store.info.counts == {"train": 40_000, "val": 5_000, "test": 5_000}
    assert (store.info.height, store.info.width) == (32, 32)
    for name in ("val", "test"):
        assert (np.bincount(store.split(name).labels) == 500).all()
    subset = train_indices(store, DataSpec(train_limit=5000))
    assert (np.bincount(store.split("train").labels[subset]) == 500).all()
    first = pq.ParquetFile(NATURAL).read_row_group(0).slice(0, 1).to_pylist()[0]
    pixels = np.asarray(Image.open(io.BytesIO(first["image"]["bytes"])))
    found = [
        int(store.split(name).labels[row])
        for name in ("train", "val", "test")
        for row in np.flatnonzero((store.split(name).images == pixels).all(axis=(1, 2, 3)))
    ]
    assert found == [first["label"]]
