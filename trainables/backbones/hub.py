"""timm's hub: what its cache holds here, whether a repository can be reached, and which revision it
is at.

A repository's files can be exchanged. So a run asks for the revision, a commit's hash, when it
begins, keeps it in its spec as ``REPOSITORY@COMMIT``, timm's own notation, and loads no other.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import ExitStack
from email.message import Message
from pathlib import Path
from typing import Any

from trainables.backbones.families import member_of
from trainables.config import HUB_WEIGHTS, BackboneSpec
from trainables.errors import one_line
from trainables.progress import long_step

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
COMMIT_HEADER = "X-Repo-Commit"

log = logging.getLogger(__name__)


def pinned(repository: str | None, pins: str | None) -> str | None:
    """The revision that one of ``pins`` (``REPOSITORY@COMMIT``, divided by blanks) wants of the
    repository."""
    revisions = {
        name: commit for name, _, commit in (p.partition("@") for p in (pins or "").split())
    }
    return revisions.get(repository or "") or None


def current_pin(spec: BackboneSpec, *, timeout_s: float) -> str | None:
    """``REPOSITORY@COMMIT`` of the weights that ``spec`` names: the commit of the file in the
    cache, where there is one, else as the hub says. ``None`` for other weights, and where the hub
    does not say so within ``timeout_s`` seconds."""
    repository = member_of(spec).hub if spec.weights in HUB_WEIGHTS else None
    if repository is None:
        return None
    file = cached_file(repository)
    commit = file.parent.name if file else _asked(repository, timeout_s)[1][COMMIT_HEADER]
    return f"{repository}@{commit}" if commit else None


def cached_file(repository: str, revision: str | None = None) -> Path | None:
    """The weights file of a repository in the local cache, if it was downloaded before, of the
    ``revision`` or (``None``) of any.

    Looks where huggingface_hub keeps it, without the second that its import takes.
    """
    home = os.environ.get("HF_HOME") or str(
        Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    )
    cache = os.environ.get("HF_HUB_CACHE") or str(Path(home) / "hub")
    folder = Path(cache).expanduser() / f"models--{repository.replace('/', '--')}" / "snapshots"
    files = (
        file for name in HUB_FILES for file in sorted(folder.glob(f"{revision or '*'}/{name}"))
    )
    return next(files, None)


def fetch(spec: BackboneSpec) -> None:
    """Download the weights of the hub that ``spec`` names into the cache, as a step that says how
    far it is; nothing where they are there, or are none of the hub's. What is in the way is a
    logged line: whoever builds the backbone meets it too, and says more."""
    repository = member_of(spec).hub if spec.weights in HUB_WEIGHTS else None
    revision = pinned(repository, spec.hub_pins)
    if repository is None or cached_file(repository, revision):
        return
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    missing: Exception | None = None
    for name in HUB_FILES:
        try:
            hf_hub_download(repository, name, revision=revision, tqdm_class=_reporting_bar())
            return
        except EntryNotFoundError as error:  # as timm does: the next format
            missing = missing or error
        except Exception as error:  # the hub's client fails in many ways
            missing = error
            break
    if missing is not None:
        log.warning(f"warning: {repository} is not here yet: {one_line(missing)[:200]}")


def _reporting_bar() -> Any:
    """The client's progress bar, which draws nothing itself."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class ReportingBar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            self._step = ExitStack()
            self._done, total = float(options.get("initial") or 0), options.get("total")
            super().__init__(  # type: ignore[no-untyped-call]
                *args, **{**options, "disable": True}
            )
            step = long_step(
                log, str(options.get("desc") or "weights"), total and total / 1e6, unit="MB",
                begin=self._done / 1e6,
            )  # fmt: skip
            self._advance = self._step.enter_context(step)

        def update(self, n: float | None = 1) -> bool | None:
            self._done += n or 0
            self._advance(self._done / 1e6)
            return None

        def close(self) -> None:
            self._step.close()
            super().close()

    return ReportingBar


def unreachable(repository: str, timeout_s: float, revision: str | None = None) -> str | None:
    """Why the repository's weights cannot be had, or ``None`` when a server offers them within
    ``timeout_s`` seconds."""
    return _asked(repository, timeout_s, revision)[0]


def _asked(
    repository: str, timeout_s: float, revision: str | None = None
) -> tuple[str | None, Message]:
    """Why no weights are to be had, ``None`` where some are, and what the hub says of them."""
    # imported here: a command's help should not wait for it
    import urllib.error
    import urllib.request

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return "HF_HUB_OFFLINE is set and the file is not in the local cache", Message()
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    answer: list[tuple[str | None, Message]]
    answer = [(f"no answer from {endpoint} within {timeout_s:g} s", Message())]

    def ask() -> None:
        url = f"{endpoint}/{repository}/resolve/{revision or 'main'}/{HUB_FILES[0]}"
        try:
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                answer[0] = (None, response.headers)
        except urllib.error.HTTPError as error:
            answer[0] = (f"{endpoint} answers {error.code}", Message())
        except (OSError, ValueError) as error:
            reason = one_line(getattr(error, "reason", error))
            answer[0] = (f"{endpoint}: {reason}", Message())

    # a thread, because name resolution obeys no timeout
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return answer[0]
