"""A password of a URL is where it is used, and nowhere else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import logins
from orchestrator.spec.run import RunSpec
from trainables.errors import one_line
from trainables.printable import LOGINS, escaped, login_of, redacted, with_login, without_login

CANARY = "canary-S3cr3t"


@pytest.mark.parametrize(
    ("url", "bare"),
    [
        (f"http://me:{CANARY}@host:5000/path", "http://host:5000/path"),
        (f"postgresql+psycopg2://me:{CANARY}@host/db", "postgresql+psycopg2://host/db"),
        (f"postgresql://me:a/{CANARY}@host/db", "postgresql://host/db"),
        (f"mysql://me:x@{CANARY}@host/db", "mysql://host/db"),
        (f"postgresql://host/db?user=me&password={CANARY}&sslmode=on", "postgresql://host/db?sslmode=on"),
        (f"s3://KEY:{CANARY}/x@bucket/runs", "s3://bucket/runs"),
        ("http://me@host", "http://host"),
        ("http://[::1]:5000", "http://[::1]:5000"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("runs", "runs"),
    ],
)  # fmt: skip
def test_a_url_loses_its_login_and_nothing_else(url, bare):
    assert without_login(url) == bare
    assert without_login(bare) == bare
    assert CANARY not in redacted(f"cannot reach {url}: no route")


def test_a_login_waits_for_its_own_url(monkeypatch):
    for name in (LOGINS, *logins.VARIABLES):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{CANARY}@host")
    typed = ["sweep", "vit", f"--tracking-uri=postgresql://me:{CANARY}2@host/db", "--name", "x"]
    kept = logins.hide(typed)
    assert kept == ["sweep", "vit", "--tracking-uri=postgresql://host/db", "--name", "x"]
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://host"
    assert login_of(with_login("http://host")) == ("me", CANARY)
    assert with_login("postgresql://host/db") == f"postgresql://me:{CANARY}2@host/db"
    assert with_login("http://elsewhere") == "http://elsewhere"
    assert CANARY not in one_line(ValueError(f"password {CANARY} is wrong"))


def test_a_spec_holds_no_login():
    spec = RunSpec(name="x", tracking_uri=f"http://me:{CANARY}@host", storage="s3://K:S@bucket/r")
    assert (spec.tracking_uri, spec.storage) == ("http://host", "s3://bucket/r")
    older = {**spec.as_dict(), "tracking_uri": f"http://a:{CANARY}@h"}
    assert RunSpec.from_dict(older).tracking_uri == "http://h"


def test_a_process_is_started_anew_without_the_login(tmp_path):
    code = (
        "from orchestrator import logins; logins.hide_in_process(); "
        "import sys, os; print(open('/proc/self/cmdline').read()); print(sys.argv[1:]); "
        "print(os.environ['ORCHESTRATOR_LOGINS'], file=sys.stderr)"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    url = f"mysql://me:{CANARY}@host/db"
    ended = subprocess.run(
        [sys.executable, str(script), "--tracking-uri", url],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert CANARY not in ended.stdout
    assert "mysql://host/db" in ended.stdout
    assert ended.stderr.strip() == url


def test_control_characters_are_written_out():
    text = "a\x1b[31mred\x07\n\u202eb\x9b é"
    assert escaped(text) == "a\\x1b[31mred\\x07\n\\u202eb\\x9b é"
