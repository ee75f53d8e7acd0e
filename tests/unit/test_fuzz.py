"""Readers of files that others wrote, fed with damaged ones: each reads them or refuses in words.

The long form is ``FUZZ_INPUTS=10000``, for each reader; its figures are in ``tests/README.md``.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "fuzz_readers.py"
INPUTS = int(os.environ.get("FUZZ_INPUTS", "60"))
KINDS = re.findall(r'^    "(\w+)": \w+_reader,$', PROGRAM.read_text(encoding="utf-8"), re.M)


def fed(kind: str, inputs: int, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(PROGRAM), kind, str(inputs), str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=3600,
        check=False,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_no_damaged_file_ends_its_reader(kind, tmp_path):
    ended = fed(kind, INPUTS, tmp_path)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "Traceback" not in ended.stderr
    outcomes = json.loads(ended.stdout.splitlines()[-1])
    assert outcomes["inputs"] >= 0.9 * INPUTS
    assert outcomes["refused"] > 0.3 * INPUTS  # or the damage did none


def test_what_a_reader_should_not_raise_ends_the_program(tmp_path):
    planted = tmp_path / "planted.py"
    text = PROGRAM.read_text(encoding="utf-8")
    planted.write_text(text.replace("except UserError", "except KeyError"), encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, str(planted), "batch", "5", str(tmp_path / "files")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=600,
        check=False,
    )
    assert ended.returncode == 1
    assert "UserError" in ended.stderr
