"""Whether a tracking URI can be used is answered in one line, quickly, and without mlflow."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from orchestrator.tracking import store


@contextmanager
def server(status: int, body: str, seen: list[dict[str, str]] | None = None) -> Iterator[str]:
    """A loopback HTTP server with one answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            if seen is not None:
                seen.append(dict(self.headers))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


def one_line(uri: str, timeout_s: float = 5) -> str:
    problems = store.check(uri, timeout_s)
    assert len(problems) == 1
    assert "\n" not in problems[0]
    assert "Fix:" in problems[0]
    return problems[0]


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, "<html>welcome</html>", "not as an MLflow server"),
        (200, "[]", "not as an MLflow server"),
        (404, "", "no MLflow at this path"),
        (401, "", "MLFLOW_TRACKING_USERNAME"),
        (403, "Invalid Host header - possible DNS rebinding attack detected", "--allowed-hosts"),
        (500, "boom", "500 (boom)"),
    ],
)
def test_a_server_that_is_no_use_says_why(status: int, body: str, expected: str) -> None:
    with server(status, body) as uri:
        assert expected in one_line(uri)


@pytest.mark.parametrize("answer", ["{}", json.dumps({"experiments": [{"name": "Default"}]})])
def test_an_mlflow_answer_is_good(answer: str) -> None:
    with server(200, answer) as uri:
        assert store.check(uri) == []


def test_credentials_are_sent_and_never_shown() -> None:
    seen: list[dict[str, str]] = []
    with server(401, "", seen) as uri:
        line = one_line(uri.replace("://", "://ann:pa%20ss@"))
    assert seen[0]["Authorization"] == "Basic YW5uOnBhIHNz"
    assert "pa%20ss" not in line
    assert "pa ss" not in line


def test_a_closed_port_and_a_silent_one() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        uri = f"http://127.0.0.1:{listening.getsockname()[1]}"
        assert "does not answer within 0.3 s" in one_line(uri, 0.3)
    assert "refuses connections" in one_line(uri)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("./mlruns", "sqlite:////"),
        ("file:///tmp/mlruns", "sqlite:////tmp/mlruns/mlflow.db"),
        ("", "a folder"),
        ("localhost:5000", "http://localhost:5000"),
        ("ftp://example.org", "must start with one of http"),
        ("sqlite://", "must be a file"),
        ("sqlite:////etc/passwd/mlflow.db", "/etc/passwd cannot"),
    ],
)
def test_a_uri_that_cannot_work(uri: str, expected: str) -> None:
    assert expected in one_line(uri)


@pytest.mark.parametrize(
    ("scheme", "package"),
    [
        ("postgresql", "psycopg2-binary"),
        ("postgresql+psycopg", "'psycopg[binary]'"),
        ("mysql", "mysqlclient"),
        ("mysql+pymysql", "pymysql"),
        ("mssql", "pyodbc"),
    ],
)
def test_a_driver_that_is_not_installed_is_named(
    scheme: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    line = one_line(f"{scheme}://ann:secret-7f3a@tracker/mlflow")
    assert f"pip install {package}," in line
    assert f"{scheme}://tracker/mlflow" in line
    assert "secret-7f3a" not in line


def test_database_files(tmp_path: Path) -> None:
    fresh = tmp_path / "new" / "mlflow.db"
    assert store.check(f"sqlite:///{fresh}") == []
    assert not fresh.parent.exists()  # looking makes nothing

    text = tmp_path / "notes.txt"
    text.write_text("not a database at all" * 100)
    assert "is not" in one_line(f"sqlite:///{text}")


def test_the_default_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = store.default_uri("runs")
    assert uri == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert uri.startswith("sqlite:////")
    assert store.artifact_root(uri) == tmp_path / "runs" / "mlartifacts"
    monkeypatch.setenv("ORCHESTRATOR_RUNS", str(tmp_path / "copies"))
    beside = store.default_uri("s3://bucket/x")
    assert beside.startswith(f"sqlite:///{tmp_path}/copies/")
    assert beside.endswith("/mlflow.db")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    assert store.default_uri("runs") == "http://tracker:5000"
    assert store.artifact_root("http://tracker:5000") is None
    assert store.ui_command("runs") == []


def test_asking_loads_no_mlflow() -> None:
    script = (
        "import sys; from orchestrator.tracking import store\n"
        "store.check('http://127.0.0.1:9'); store.ui_command('runs', 'sqlite:///x.db')\n"
        "print(sorted({'mlflow', 'torch', 'ray'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
