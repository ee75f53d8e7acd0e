"""Whether a run could be recorded: MLflow's own client tries, as the mirror of a run will.

    python -m orchestrator.tracking.probe < QUESTION

QUESTION is a JSON object with ``uri``, which may hold a password and therefore is no argument, and
``experiment``, a name or null. Prints a JSON list of the lines that say what is in the way.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from orchestrator.process import folder_mistakes
from orchestrator.tracking import store
from trainables.errors import UserError, one_line

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def problems(uri: str, experiment: str | None) -> list[str]:
    """Why MLflow at ``uri`` would not take a run, one line each."""
    from orchestrator.tracking.client import Outage, Probe, talking

    root = store.artifact_root(uri)
    if root is not None:
        fix = f"let this user write there, {store.INSTEAD}"
        if mistakes := folder_mistakes(root, "the folder of MLflow's artifacts", fix):
            return mistakes
    try:
        with talking(uri):
            probe = Probe(uri, experiment)
            lines = artifact_mistakes(uri, probe.artifact_folder)
            # A new experiment in a database file has its artifacts beside it; those of another one
            # may have theirs anywhere.
            if not lines and (probe.is_own or root is None):
                probe.write_and_delete()
            return lines
    except UserError as error:
        return list(error.mistakes)
    except Outage as outage:
        fix = store.ACCESS if "40" in str(outage)[:120] else "look at its log"
        return [
            f"the tracking store {store.shown(uri)} does not take a run ({outage}). "
            f"Fix: {fix}, {store.INSTEAD}"
        ]


def artifact_mistakes(uri: str, location: str | None) -> list[str]:
    """Why artifacts that a server wants at ``location`` would not reach it: a folder of its own
    machine, which its client would silently make on this one."""
    parts, place = urlsplit(uri), urlsplit(location or "")
    is_folder = bool(location) and place.scheme in ("", "file")
    if not is_folder or parts.scheme not in store.SERVER_SCHEMES or parts.hostname in LOOPBACK:
        return []
    folder = Path(unquote(place.path))
    if folder.exists() or folder.parent.exists():
        return []
    return [
        f"artifacts must reach the tracking server; {store.shown(uri)} wants them in a folder of "
        f"its own, {folder}, which is not here. Fix: start it with --serve-artifacts, mount that "
        f"folder, {store.INSTEAD}"
    ]


def main() -> None:
    """Answer one question."""
    question = json.load(sys.stdin)
    try:
        lines = problems(question["uri"], question["experiment"])
    except Exception as error:
        kind = f"{type(error).__name__}: {one_line(error)[:200]}"
        lines = [
            f"the tracking store {store.shown(question['uri'])} cannot be asked ({kind}). "
            f"Fix: look at it, {store.INSTEAD}"
        ]
    print(json.dumps(lines))


if __name__ == "__main__":
    main()
