"""User and password of a URL on the command line: moved into the environment before anything reads
it, so that no list of processes, spec, ledger, report, message or log can show them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

from trainables.printable import LOGINS, login_of, without_login

VARIABLES = ("MLFLOW_TRACKING_URI", "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://.*", re.DOTALL)  # to the end of its argument


def hide(arguments: Sequence[str]) -> list[str]:
    """``arguments`` without the logins of their URLs. Those wait in the environment from now on, as
    do those that ``VARIABLES`` held.

    Those of ``s3://KEY:SECRET@BUCKET`` become Amazon's variables, which object storage asks for.
    """
    given = [url for argument in arguments for url in URL.findall(argument)]
    held = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    secret = [url for url in [*given, *held.values()] if url != without_login(url)]
    for url in secret:
        user, password = login_of(url)
        if url.startswith("s3://") and user:
            os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"] = user, password
    if secret:
        waiting = os.environ.get(LOGINS, "").split()
        secret = [url.replace(" ", "%20") for url in secret]
        os.environ[LOGINS] = " ".join(dict.fromkeys([*secret, *waiting]))
    os.environ.update({name: without_login(url) for name, url in held.items()})
    return [URL.sub(lambda url: without_login(url[0]), argument) for argument in arguments]


def hide_in_process() -> None:
    """:func:`hide` for the command line of this process, which is started anew if it held a login:
    nothing else changes what others are shown of it."""
    arguments = hide(sys.orig_argv[1:])
    if arguments != sys.orig_argv[1:]:
        os.execv(sys.executable, [sys.executable, *arguments])
