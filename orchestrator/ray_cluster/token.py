"""The file with the token of this user's Ray clusters, which lets its reader run code on them.

Ray writes it as readable as the shell's umask leaves it; here it is its user's alone.
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

MODE = "RAY_AUTH_MODE"
TOKEN = "RAY_AUTH_TOKEN"
PATH = "RAY_AUTH_TOKEN_PATH"
OTHERS = stat.S_IRWXG | stat.S_IRWXO
TOKEN_BYTES = 32


def token_file() -> Path | None:
    """Where Ray looks for the token; ``None`` where a variable holds it, or nothing says who this
    user is."""
    if os.environ.get(TOKEN):
        return None
    with suppress(RuntimeError):
        return Path(os.environ.get(PATH) or "~/.ray/auth_token").expanduser()
    return None


def make_private(*, create: bool) -> None:
    """Take the file's rights from everybody else, where it is this user's. With ``create`` a token
    is made where there is none and a Ray of our own will ask for it.

    What cannot be written is left to Ray, which says why.
    """
    file = token_file()
    if file is None:
        return
    with suppress(OSError):
        if create and not file.exists() and os.environ.get(MODE, "token").lower() == "token":
            _write_token(file)
        if others_may(file) and file.stat().st_uid == os.geteuid():
            file.chmod(stat.S_IRUSR | stat.S_IWUSR)


def _write_token(file: Path) -> None:
    """Whole or not at all, and never over one that another process has made meanwhile."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(dir=file.parent, prefix=".auth_token-")  # with mode 0600
    try:
        with os.fdopen(number, "w") as written:
            written.write(secrets.token_hex(TOKEN_BYTES))
        with suppress(FileExistsError):
            os.link(name, file)
    finally:
        Path(name).unlink()


def others_may(file: Path) -> bool:
    """Whether anybody but the file's owner has a right to it."""
    return bool(file.stat().st_mode & OTHERS)


def token_warnings() -> list[str]:
    """What is wrong with the rights to the token's file, a line."""
    file = token_file()
    if file is None or not file.is_file() or not others_may(file):
        return []
    mode = stat.S_IMODE(file.stat().st_mode)
    return [
        f"the token of your Ray clusters must be yours alone; {file} has mode {mode:04o}. "
        f"Fix: chmod 600 {file}"
    ]
