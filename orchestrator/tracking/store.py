"""Where MLflow's records are: the default store, its UI, and whether a URI can be used at all.

No mlflow here: these functions answer before anything heavy is loaded.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import sqlite3
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from importlib import metadata
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from orchestrator.spec.run import run_folder
from trainables.printable import login_of, with_login, without_login

TIMEOUT_S = 5.0
SERVER_SCHEMES = ("http", "https")
DATABASE_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql")
# Module and package of each database's driver by SQLAlchemy's name for it; others are called alike.
DRIVERS = {
    "postgresql": ("psycopg2", "psycopg2-binary"),
    "postgresql+psycopg2": ("psycopg2", "psycopg2-binary"),
    "postgresql+psycopg": ("psycopg", "'psycopg[binary]'"),
    "mysql": ("MySQLdb", "mysqlclient"),
    "mysql+mysqldb": ("MySQLdb", "mysqlclient"),
    "mssql": ("pyodbc", "pyodbc"),
}
INSTEAD = "or leave --tracking-uri out to record in a local database"
ACCESS = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"


def default_uri(storage: str) -> str:
    """``$MLFLOW_TRACKING_URI``, else ``mlflow.db`` in ``storage``, or beside this machine's working
    copies of the runs where these are kept in object storage."""
    folder = run_folder(storage, "any").parent.resolve()
    chosen = without_login(os.environ.get("MLFLOW_TRACKING_URI", ""))
    return chosen or f"sqlite:///{folder / 'mlflow.db'}"


def connection_uri(uri: str) -> str:
    """What MLflow's client connects to: a database's URI with its login. A server's login goes into
    MLflow's own variables instead, since MLflow's errors repeat the URI."""
    if urlsplit(uri).scheme not in SERVER_SCHEMES:
        return with_login(uri)
    user, password = login_of(with_login(uri))
    if user:
        os.environ["MLFLOW_TRACKING_USERNAME"] = user
        os.environ["MLFLOW_TRACKING_PASSWORD"] = password
    return uri


def database_path(uri: str) -> Path | None:
    """The file of a ``sqlite:///`` URI, absolute; ``None`` for any other."""
    scheme, _, path = uri.partition(":///")
    if scheme.partition("+")[0] != "sqlite" or not path:
        return None
    return Path(path).resolve()


def artifact_root(uri: str) -> Path | None:
    """Folder of the artifacts of a local database, beside it; ``None`` where a server decides."""
    database = database_path(uri)
    return database.parent / "mlartifacts" if database else None


def ui_command(storage: str, uri: str | None = None, *, port: int = 5000) -> list[str]:
    """MLflow's UI on this store, on loopback. Empty where ``uri`` is a server: it is the UI."""
    uri = uri or default_uri(storage)
    if urlsplit(uri).scheme in SERVER_SCHEMES:
        return []
    root = artifact_root(uri)
    # A command is shown to every user of the machine: MLflow also takes its store from a variable.
    full = with_login(uri)
    backend = ["--backend-store-uri", uri] if full == uri else []
    if full != uri:
        os.environ["MLFLOW_BACKEND_STORE_URI"] = full
    places = ["--artifacts-destination", root.as_uri()] if root else []
    # The server's runner of evaluation jobs is eight processes that nothing here uses.
    settings = ("MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false", "MLFLOW_DISABLE_TELEMETRY=true")
    return [
        *("env", *settings),
        *(sys.executable, "-m", "mlflow", "server", *backend, *places),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
    ]


def check(tracking_uri: str, timeout_s: float = TIMEOUT_S) -> list[str]:
    """Why nothing can be recorded at ``tracking_uri``, one line each; empty when it can.

    A server is asked a real question, with the credentials of ``MLFLOW_TRACKING_USERNAME`` and
    ``MLFLOW_TRACKING_PASSWORD`` or ``MLFLOW_TRACKING_TOKEN``; a database file is opened.
    """
    parts, tracking_uri = urlsplit(with_login(tracking_uri)), without_login(tracking_uri)
    scheme = parts.scheme.partition("+")[0]
    if scheme in SERVER_SCHEMES:
        return _check_server(parts, timeout_s)
    if scheme == "sqlite":
        return _check_database(tracking_uri)
    if scheme in DATABASE_SCHEMES:
        return _driver_mistakes(parts.scheme)
    if scheme in ("", "file"):
        return [
            f"a tracking URI must name a server or a database; got {tracking_uri!r}, a folder, "
            "which MLflow 3 no longer writes to. Fix: --tracking-uri "
            f"sqlite:///{Path(parts.path or '.').resolve() / 'mlflow.db'}, {INSTEAD}"
        ]
    fix = f"--tracking-uri http://{tracking_uri}" if ":" in tracking_uri else "add the scheme"
    return [
        f"a tracking URI must start with one of {', '.join(SERVER_SCHEMES + DATABASE_SCHEMES)}; "
        f"got {tracking_uri!r}. Fix: {fix}, {INSTEAD}"
    ]


def _driver_mistakes(scheme: str) -> list[str]:
    """Why SQLAlchemy cannot speak to this kind of database from here."""
    kind, _, driver = scheme.partition("+")
    name = driver.partition(".")[0] or kind
    module, package = DRIVERS.get(scheme, (name, name))
    if importlib.util.find_spec(module) is not None:
        return []
    return [
        f"tracking in {kind} needs its driver; the Python module {module} is not installed. "
        f"Fix: pip install {package}, {INSTEAD}"
    ]


def age_mistakes(tracking_uri: str) -> list[str]:
    """Why the server, which answers, is too old for the MLflow here: another major version, or a
    minor one below ours. Empty for a database."""
    parts = urlsplit(with_login(tracking_uri))
    if parts.scheme not in SERVER_SCHEMES:
        return []
    server, client_version = _address(parts), metadata.version("mlflow")
    try:
        answer = _ask(parts, "version", TIMEOUT_S).decode(errors="replace")
    except OSError as error:
        return [f"the tracking server {server} does not tell its version ({error}). Fix: update it"]
    server_version = answer.strip()[:50]
    has, needs = _major_minor(server_version), _major_minor(client_version)
    if has[:1] == needs[:1] and has >= needs:
        return []
    return [
        f"the tracking server must be as new as the MLflow here; {server} is {server_version}, "
        f"here is {client_version}. Fix: update the server to mlflow=={client_version}"
    ]


def _major_minor(version: str) -> list[int]:
    return [int(part) for part in version.split(".")[:2] if part.isdigit()]


def _address(parts: SplitResult) -> str:
    """The server's address, with no password in it."""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _check_database(uri: str) -> list[str]:
    path = database_path(uri)
    if path is None:
        return [
            f"a database for tracking must be a file; got {uri!r}. "
            "Fix: --tracking-uri sqlite:////absolute/path/mlflow.db"
        ]
    folder = next(parent for parent in path.parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return [
            f"the tracking database {path} must lie in a folder that can be written; "
            f"{folder} cannot. Fix: another --tracking-uri, {INSTEAD}"
        ]
    try:
        if path.exists():
            with sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True) as database:
                database.execute("select count(*) from sqlite_master").fetchone()
    except sqlite3.Error as error:
        return [
            f"a tracking database must be an SQLite file; {path} is not ({error}). "
            f"Fix: another --tracking-uri, {INSTEAD}"
        ]
    return []


def _ask(
    parts: SplitResult, path: str, timeout_s: float, question: Mapping[str, object] | None = None
) -> bytes:
    """The server's answer, to a POST where there is a ``question``. Raises ``OSError``."""
    request = urllib.request.Request(
        f"{_address(parts).rstrip('/')}/{path}",
        data=None if question is None else json.dumps(question).encode(),
        headers={"Content-Type": "application/json", **_credentials(parts)},
    )
    with urllib.request.urlopen(request, timeout=timeout_s) as response:
        return bytes(response.read())


def _check_server(parts: SplitResult, timeout_s: float) -> list[str]:
    problem = "answers, but not as an MLflow server does"
    fix = "start it (mlflow server), correct --tracking-uri"
    try:
        path = "api/2.0/mlflow/experiments/search"
        answer = json.loads(_ask(parts, path, timeout_s, {"max_results": 1}))
        if isinstance(answer, dict) and (not answer or "experiments" in answer):
            return []
    except urllib.error.HTTPError as error:
        code, text = error.code, " ".join(error.read(200).decode(errors="replace").split())
        if code == 403 and "Host header" in text:
            problem = "refuses this host name (403, its protection against DNS rebinding)"
            fix = "start it with --allowed-hosts NAME"
        elif code in (401, 403):
            problem, fix = f"refuses access ({code})", ACCESS
        elif code == 404:
            problem = "has no MLflow at this path (404)"
        else:
            problem = f"answers {code} ({text[:80]})"
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ConnectionRefusedError):
            problem = "refuses connections; is it running?"
        elif isinstance(reason, TimeoutError):
            problem = f"does not answer within {timeout_s:g} s"
        elif isinstance(error, urllib.error.URLError):
            problem = f"cannot be reached ({reason})"
        else:
            problem += f" ({type(error).__name__})"
    return [f"the tracking server {_address(parts)} {problem}. Fix: {fix}, {INSTEAD}"]


def _credentials(parts: SplitResult) -> dict[str, str]:
    name = unquote(parts.username or "") or os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    secret = unquote(parts.password or "") or os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    if name:
        pair = base64.b64encode(f"{name}:{secret}".encode()).decode()
        return {"Authorization": f"Basic {pair}"}
    return {"Authorization": f"Bearer {token}"} if token else {}
