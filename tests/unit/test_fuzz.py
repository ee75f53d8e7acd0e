"""Readers of files that others wrote, fed with damaged ones: each answers or refuses in words.

Every reader runs in a process of its own, which a signal would end unseen otherwise. The long form
is ``FUZZ_INPUTS=10000``, for each reader.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INPUTS = int(os.environ.get("FUZZ_INPUTS", "60"))

PROGRAM = """
import io, json, pickle, sys, tempfile
from pathlib import Path
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

kind, count, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
run = 0


def damaged(whole):
    # Bytes of a right file overwritten, cut, doubled, or anything at all.
    places = st.integers(0, max(0, len(whole) - 1))
    change = st.tuples(places, st.binary(min_size=0, max_size=8), st.integers(0, 16))

    def apply(changes):
        content = whole
        for place, new, gone in changes:
            content = content[:place] + new + content[place + gone:]
        return content

    return st.one_of(st.lists(change, max_size=6).map(apply), places.map(lambda n: whole[:n]),
                     st.binary(max_size=300))


if kind == "archive":
    from trainables.data.pickled_arrays import load_arrays
    rows = {"data": np.zeros((2, 8), np.uint8), "labels": [1, 2], "name": b"x"}
    whole, refusals = pickle.dumps(rows, protocol=2), ValueError
    read = load_arrays
elif kind == "image":
    from PIL import Image
    from trainables.data import pictures
    file = io.BytesIO()
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(file, "PNG")
    whole, refusals = file.getvalue(), Exception  # of PIL, which _decode_chunks turns into words
    read = lambda content: pictures.decode(content, 8)
elif kind == "ledger":
    from orchestrator.ledger import events
    from trainables.errors import UserError
    refusals = (UserError, ValueError)
    lines = [{"seq": n, "time": 1.0, "event": "noted", "reason": "x"} for n in range(1, 4)]
    whole = "".join(json.dumps(line) + chr(10) for line in lines).encode()

    def read(content):
        path = folder / events.FILE_NAME
        path.write_bytes(content)
        list(events.read(path))
elif kind == "parquet":
    import pyarrow as pa, pyarrow.parquet as pq
    from trainables.config import DataSpec
    from trainables.data import parquet
    from trainables.errors import UserError
    refusals = UserError
    path = folder / "train.parquet"
    pq.write_table(pa.table({"image": [b"a", b"b"], "label": [0, 1]}), path)
    whole = path.read_bytes()

    def read(content):
        path.write_bytes(content)
        parquet.locate(path, DataSpec(source=str(path)))


@settings(max_examples=count, deadline=None, database=None, derandomize=True,
          phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(damaged(whole))
def feed(content):
    global run
    run += 1
    try:
        read(content)
    except refusals:
        pass


read(whole)  # what is not damaged is read, or nothing below says anything
feed()
print(run)
"""


@pytest.mark.parametrize("kind", ["archive", "image", "ledger", "parquet"])
def test_no_damaged_file_ends_its_reader(kind, tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind, str(INPUTS), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=3600,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert int(ended.stdout) >= 0.9 * INPUTS
