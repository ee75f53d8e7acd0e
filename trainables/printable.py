"""Text from files, servers and users, fit to be printed and kept: no login of a URL is in it, and
no control character, which a terminal would obey.

A login that is needed again waits in ``$ORCHESTRATOR_LOGINS``, which processes of ours inherit:
whole URLs, divided by blanks. It is used for the URL that it was given for, and no other.
"""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from urllib.parse import unquote

LOGINS = "ORCHESTRATOR_LOGINS"
# Names of what follows a URL's "?" that are a login, for SQLAlchemy, libpq and object storage.
SECRET_PARAMETER = re.compile(
    r"^(user(name)?|pass(word|wd)?|pwd|token|secret|ssl(password|key)|(access|secret)_key"
    r"|.*(password|token|secret)(_access_key|_key)?)$",
    re.IGNORECASE,
)
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
SHORTEST_SECRET = 4  # characters: a shorter one would be found in any sentence
BIDIRECTIONAL = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def _parts(url: str) -> tuple[str, str, str]:
    """Scheme with ``://``, login (empty without one) and what follows the ``@``."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return "", "", url
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    port = authority.rpartition("]")[2].partition(":")[2]
    # A password that was not escaped may hold "/", "#" or "?": then what looks like a port is none.
    unescaped = port and not port.isdigit() and "@" in rest
    within = rest if "@" not in authority and unescaped else authority
    login, at, _ = within.rpartition("@")
    return scheme + separator, login, rest[len(login) + 1 :] if at else rest


def without_login(url: str) -> str:
    """``url`` without user and password, in its query too; what is no URL is unchanged."""
    scheme, _, rest = _parts(url)
    if not scheme or "?" not in rest:
        return scheme + rest
    place, _, query = rest.partition("?")
    query, hash_sign, fragment = query.partition("#")
    kept = [
        pair
        for pair in query.split("&")
        if not SECRET_PARAMETER.match(unquote(pair.partition("=")[0]))
    ]
    return f"{scheme}{place}{'?' if kept else ''}{'&'.join(kept)}{hash_sign}{fragment}"


def with_login(url: str) -> str:
    """``url`` with the login that waits for it in the environment, if any."""
    bare = without_login(url)
    waiting = os.environ.get(LOGINS, "").split()
    return next((full for full in waiting if without_login(full) == bare), url)


def login_of(url: str) -> tuple[str, str]:
    """User and password of ``url``, unescaped; empty without a login."""
    user, _, password = _parts(url)[1].partition(":")
    return unquote(user), unquote(password)


def redacted(text: str) -> str:
    """``text`` whose URLs have lost their logins; the passwords that wait are ``***``."""
    text = URL.sub(lambda url: without_login(url[0]), text)
    for full in os.environ.get(LOGINS, "").split():
        quoted = _parts(full)[1].partition(":")[2]
        for secret in {quoted, unquote(quoted)}:
            if len(secret) >= SHORTEST_SECRET:
                text = text.replace(secret, "***")
    return text


def escaped(text: str, *, keep: str = "\n\t") -> str:
    """``text`` whose control characters, but those to ``keep``, and marks of writing direction are
    written out as ``\\x1b`` or ``\\u202e``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode()
        if character not in keep
        and (unicodedata.category(character) == "Cc" or character in BIDIRECTIONAL)
        else character
        for character in text
    )


class PlainFormatter(logging.Formatter):
    """A log's lines as :func:`redacted` and :func:`escaped` leave them, tracebacks too."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's line, its traceback after it."""
        return escaped(redacted(super().format(record)))
