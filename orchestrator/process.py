"""What processes of ours start with, whatever the machine and the working directory are like.

A file ``mlflow.py`` in the user's folder must not be taken for MLflow, a user id without a name
must not end a library that asks for it, and a class name that the terminal cannot print must not
end a command. Imports nothing but the standard library: it comes first.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import pwd
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]  # the folder that holds our packages
# A Unix socket's path has 107 bytes, and this is the longest that Ray puts below its folder.
LONGEST_SOCKET_PATH = 107
RAY_SOCKET = "/ray/session_2026-11-28_22-39-56_123456_1234567/sockets/plasma_store"


def prepare_process() -> None:
    """Call once, first of all: streams that print everything, and names that libraries ask for."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # a test's, or closed
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    owner = None
    with suppress(KeyError):
        owner = pwd.getpwuid(os.getuid())
    # torch, Ray and MLflow ask for the user's name, and fail where the user id has none.
    if owner is None and not any(os.environ.get(n) for n in ("LOGNAME", "USER", "USERNAME")):
        os.environ["USER"] = f"uid{os.getuid()}"
    # Ray's native part looks at the variable alone, Python at the list of users as well.
    if not os.environ.get("HOME") and owner is not None:
        os.environ["HOME"] = owner.pw_dir


def home_mistakes() -> list[str]:
    """Why paths that begin with ``~`` lead nowhere; empty where they do not."""
    try:
        Path("~").expanduser()
    except RuntimeError:
        return [
            f"HOME must be set where the user id has no entry in /etc/passwd; {os.getuid()} has "
            "none. Fix: export HOME=FOLDER, one that can be written"
        ]
    return []


def folder_mistakes(folder: Path, name: str, fix: str) -> list[str]:
    """Why nothing can be written to ``folder``, which need not exist yet; empty when it can."""
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return []
    state = "cannot be written" if place.is_dir() else "is a file"
    return [f"{name} must be a folder that can be written; {place} {state}. Fix: {fix}"]


def has_usable_home() -> bool:
    """Whether files can be created below the home."""
    return not home_mistakes() and not folder_mistakes(Path("~").expanduser(), "HOME", "")


def private_file(name: str) -> Path:
    """A path for a file of this user's alone, in a new folder of this process's own."""
    return Path(tempfile.mkdtemp(prefix="orchestrator-")) / name


def socket_folder() -> Path | None:
    """The folder for Ray's own files where the temporary folder's path is too long for its sockets;
    ``None`` where it is not."""
    chosen = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if len(os.fsencode(chosen) + RAY_SOCKET.encode()) <= LONGEST_SOCKET_PATH:
        return None
    return Path("/tmp") / f"orchestrator-{os.getuid()}"


def python_module(module: str, *arguments: str) -> list[str]:
    """The command that runs ``module`` without looking for anything in the working directory; with
    :func:`module_environment` it finds our packages all the same."""
    return [sys.executable, "-P", "-m", module, *arguments]


def module_environment(**more: str) -> dict[str, str]:
    """This process's environment for one that runs a module of ours, with ``more`` variables."""
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    return {**os.environ, "PYTHONPATH": path, **more}


def ask_module(
    module: str, request: Mapping[str, object], *, timeout_s: float, **environment: str
) -> list[Mapping[str, Any]]:
    """The JSON lines that ``module`` prints in answer to ``request``, of ``timeout_s`` seconds
    where it takes longer; what it says beside them is dropped."""
    try:
        out = subprocess.run(
            python_module(module),
            input=json.dumps(request).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=module_environment(**environment),
            timeout=timeout_s,
            check=False,
        ).stdout
    except subprocess.TimeoutExpired as expired:
        out = expired.stdout or b""
    complete = out[: out.rfind(b"\n") + 1]
    return [json.loads(line) for line in complete.splitlines()]


def shadowing_names(folder: Path) -> list[str]:
    """Files and packages in ``folder`` that have the name of a module installed elsewhere."""
    elsewhere = [place for place in sys.path if Path(place or ".").resolve() != folder.resolve()]
    return [
        name
        for name, module in _modules_in(folder)
        if module in sys.stdlib_module_names
        or importlib.machinery.PathFinder.find_spec(module, elsewhere) is not None
    ]


def _modules_in(folder: Path) -> Iterator[tuple[str, str]]:
    for entry in sorted(folder.iterdir()):
        if entry.suffix == ".py":
            yield entry.name, entry.stem
        elif (entry / "__init__.py").is_file():
            yield entry.name, entry.name


def write_traceback(error: BaseException) -> Path | None:
    """The error's traceback in a file of this user's alone; ``None`` where none can be written."""
    text = "".join(traceback.format_exception(error))
    name = f"orchestrator-error-{time.strftime('%Y%m%d-%H%M%S')}-"
    for folder in (tempfile.gettempdir, Path.cwd):
        with suppress(OSError):
            number, path = tempfile.mkstemp(".txt", name, folder())
            with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
            return Path(path)
    return None
