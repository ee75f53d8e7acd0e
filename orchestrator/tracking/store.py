"""Where MLflow's records are: the default store, its UI, and whether a URI can be used at all.

No mlflow here: these functions answer before anything heavy is loaded. Only :func:`can_record` has
MLflow's own client try, in a process of its own.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import socket
import sqlite3
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from importlib import metadata
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote, urlsplit

from orchestrator import process
from orchestrator.spec.run import run_folder
from trainables.printable import login_of, with_login, without_login

TIMEOUT_S = 5.0
# MLflow's client takes seconds to load, a minute on a machine that others keep busy; a server that
# says nothing is found out before.
PROBE_TIMEOUT_S = 180.0
BEHIND, REFUSED = 1, 2  # exit codes of the mirror: an outage; what no waiting mends
SERVER_SCHEMES = ("http", "https")
DATABASE_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql")
INSTEAD = "or leave --tracking-uri out to record in a local database"
# Each database's default driver, and its port; by a driver's name the package to install, where the
# two differ, and the module that is imported.
DRIVERS = {
    "postgresql": ("psycopg2", 5432),
    "mysql": ("mysqldb", 3306),
    "mssql": ("pyodbc", 1433),
}
PACKAGES = {
    "psycopg2": "psycopg2-binary",
    "psycopg": "'psycopg[binary]'",
    "mysqldb": "mysqlclient",
}
MODULES = {"mysqldb": "MySQLdb", "mysqlconnector": "mysql"}
OLDER, NEWER = "out-of-date database schema", "Can't locate revision"  # in MLflow's errors
ACCESS = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"


def default_uri(storage: str) -> str:
    """``$MLFLOW_TRACKING_URI``, else ``mlflow.db`` in ``storage``, or beside this machine's working
    copies of the runs where these are kept in object storage."""
    folder = run_folder(storage, "any").parent.resolve()
    chosen = without_login(os.environ.get("MLFLOW_TRACKING_URI", ""))
    return chosen or database_uri(folder / "mlflow.db")


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


def database_uri(path: Path) -> str:
    """The URI of a database file, its path escaped: ``?`` begins the options in there."""
    return f"sqlite:///{quote(str(path.resolve()))}"


def shown(uri: str) -> str:
    """The URI for people: no user, no password, no options."""
    parts = urlsplit(without_login(uri))
    return f"{parts.scheme}://{parts.netloc}{parts.path}" if parts.scheme else uri


def database_path(uri: str) -> Path | None:
    """The file of a ``sqlite:///`` URI, absolute; ``None`` for any other."""
    scheme, _, path = uri.partition(":///")
    if scheme.partition("+")[0] != "sqlite" or not path:
        return None
    return Path(unquote(path.partition("?")[0])).resolve()


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
        *process.python_module("mlflow", "server", *backend, *places),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--uvicorn-opts", "--log-level warning"),  # not a line for each request
    ]


def check(tracking_uri: str, timeout_s: float = TIMEOUT_S) -> list[str]:
    """Why nothing can be recorded at ``tracking_uri``, one line each; empty when it can.

    A server is asked a real question, with the credentials of ``MLFLOW_TRACKING_USERNAME`` and
    ``MLFLOW_TRACKING_PASSWORD`` or ``MLFLOW_TRACKING_TOKEN``; a database file is opened, the driver
    of another database is looked for and its port tried.
    """
    parts, tracking_uri = urlsplit(with_login(tracking_uri)), without_login(tracking_uri)
    scheme = parts.scheme.partition("+")[0]
    if scheme in SERVER_SCHEMES:
        problem = _server_problem(parts, timeout_s)
        return [] if problem is None else [problem.line]
    if scheme == "sqlite":
        return _check_database(tracking_uri)
    if scheme in DATABASE_SCHEMES:
        return _check_remote_database(parts, timeout_s)
    return scheme_mistakes(tracking_uri)


def can_record(
    tracking_uri: str,
    experiment: str | None = None,
    *,
    timeout_s: float = TIMEOUT_S,
    probe_timeout_s: float = PROBE_TIMEOUT_S,
) -> list[str]:
    """As :func:`check`, and then as a run will ask: MLflow's own client, with its certificates and
    credentials, writes and deletes one run and one artifact, in ``experiment`` where it exists.

    A database file that is not there yet is not made, and takes whatever this MLflow writes.
    """
    parts = urlsplit(with_login(tracking_uri))
    if parts.scheme in SERVER_SCHEMES:
        problem = _server_problem(parts, timeout_s)
        if problem is not None and problem.is_final:
            return [problem.line]
    elif mistakes := check(tracking_uri, timeout_s):
        return mistakes
    database = database_path(tracking_uri)
    if database is not None and not database.exists():
        return []
    question = json.dumps({"uri": tracking_uri, "experiment": experiment})
    try:
        answer = subprocess.run(
            process.python_module("orchestrator.tracking.probe"),
            input=question,
            capture_output=True,
            text=True,
            env=process.module_environment(),
            timeout=probe_timeout_s,
            check=False,
        )
        lines: list[str] = json.loads(answer.stdout.splitlines()[-1])
        return lines
    except subprocess.TimeoutExpired:
        reason = f"takes no run within {probe_timeout_s:g} s"
    except (ValueError, IndexError):
        last = (answer.stderr.strip().splitlines() or ["it said nothing"])[-1]
        reason = f"cannot be asked: MLflow's client ended with {last[:200]}"
    return [f"the tracking store {shown(tracking_uri)} {reason}. Fix: look at it, {INSTEAD}"]


def refusal(tracking_uri: str, reason: str, missing_module: str | None = None) -> str | None:
    """A line for what no waiting mends: a database of another MLflow, or a driver that is not
    installed; ``None`` for anything else that MLflow says."""
    place = shown(tracking_uri)
    if missing_module is not None:
        driver = next((name for name, m in MODULES.items() if m == missing_module), missing_module)
        return (
            f"the driver of {place} must be installed; there is no module {missing_module!r}. "
            f"Fix: pip install {PACKAGES.get(driver, driver)}, {INSTEAD}"
        )
    if OLDER in reason:
        return (
            f"the tracking database {place} must have the schema of the MLflow here, "
            f"{metadata.version('mlflow')}; it is older. Fix: copy it, then mlflow db upgrade "
            f"{place}, {INSTEAD}"
        )
    if NEWER in reason:
        return (
            f"the tracking database {place} must have the schema of the MLflow here, "
            f"{metadata.version('mlflow')}; it is of a newer one. Fix: update mlflow, {INSTEAD}"
        )
    return None


def scheme_mistakes(tracking_uri: str) -> list[str]:
    """Why ``tracking_uri`` can be no store at all, wherever it is used."""
    parts = urlsplit(tracking_uri)
    scheme = parts.scheme.partition("+")[0]
    if scheme in SERVER_SCHEMES + DATABASE_SCHEMES:
        return []
    if scheme in ("", "file"):
        return [
            f"a tracking URI must name a server or a database; got {tracking_uri!r}, a folder, "
            "which MLflow 3 no longer writes to. Fix: --tracking-uri "
            f"{database_uri(Path(parts.path or '.') / 'mlflow.db')}, {INSTEAD}"
        ]
    fix = f"--tracking-uri http://{tracking_uri}" if ":" in tracking_uri else "add the scheme"
    return [
        f"a tracking URI must start with one of {', '.join(SERVER_SCHEMES + DATABASE_SCHEMES)}; "
        f"got {tracking_uri!r}. Fix: {fix}, {INSTEAD}"
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


@dataclass(frozen=True)
class _Problem:
    """``is_final``: MLflow's client, which has more ways to be trusted and let in, meets it too."""

    line: str
    is_final: bool


def _check_remote_database(parts: SplitResult, timeout_s: float) -> list[str]:
    scheme, _, driver = parts.scheme.partition("+")
    usual, port = DRIVERS[scheme]
    driver = driver.partition(".")[0] or usual
    module = MODULES.get(driver, driver)
    if importlib.util.find_spec(module) is None:
        return [str(refusal(parts.geturl(), "", module))]
    place = shown(parts.geturl())
    try:
        host = parts.hostname
        if host:  # else a socket's path among the options
            socket.create_connection((host, parts.port or port), timeout_s).close()
    except (OSError, ValueError) as error:
        reason = (
            f"does not answer within {timeout_s:g} s"
            if isinstance(error, TimeoutError)
            else (f"cannot be reached ({error})")
        )
        return [f"the tracking database {place} {reason}. Fix: start it, {INSTEAD}"]
    return []


def _server_problem(parts: SplitResult, timeout_s: float) -> _Problem | None:
    problem, is_final = "answers, but not as an MLflow server does", True
    fix = "start it (mlflow server), correct --tracking-uri"
    try:
        path = "api/2.0/mlflow/experiments/search"
        answer = json.loads(_ask(parts, path, timeout_s, {"max_results": 1}))
        if isinstance(answer, dict) and (not answer or "experiments" in answer):
            return None
    except urllib.error.HTTPError as error:
        code, text = error.code, " ".join(error.read(200).decode(errors="replace").split())
        if code == 403 and "Host header" in text:
            problem = "refuses this host name (403, its protection against DNS rebinding)"
            fix = "start it with --allowed-hosts NAME"
        elif code in (401, 403):
            problem, fix, is_final = f"refuses access ({code})", ACCESS, False
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
            is_final = not isinstance(reason, ssl.SSLError)
        else:
            problem += f" ({type(error).__name__})"
    line = f"the tracking server {_address(parts)} {problem}. Fix: {fix}, {INSTEAD}"
    return _Problem(line, is_final)


def _credentials(parts: SplitResult) -> dict[str, str]:
    name = unquote(parts.username or "") or os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    secret = unquote(parts.password or "") or os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    if name:
        pair = base64.b64encode(f"{name}:{secret}".encode()).decode()
        return {"Authorization": f"Basic {pair}"}
    return {"Authorization": f"Bearer {token}"} if token else {}
