"""Start the process that keeps MLflow in step with a ledger, and say how far it came.

What carries a run out never waits for MLflow: not while it works, and only so long at its end.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from orchestrator import process
from orchestrator.tracking import store

PATIENCE_S = 180.0  # of catching up: where MLflow is silent it gives up by itself
LOG_FILE = "tracking.log"

log = logging.getLogger(__name__)


@contextmanager
def mirrored(run_folder: Path, uri: str, experiment: str | None) -> Iterator[None]:
    """A process that mirrors the ledger in ``run_folder`` into MLflow at ``uri``; it ends with the
    context, or with this process. Where MLflow is behind then, that is logged."""
    command = process.python_module("orchestrator.tracking.follow", "follow", str(run_folder))
    command += ["--uri", uri, *(["--experiment", experiment] if experiment else [])]
    with (run_folder / LOG_FILE).open("ab") as output:
        tracker = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=process.module_environment(),
            start_new_session=True,
        )
        try:
            yield
        finally:
            assert tracker.stdin is not None
            with suppress(BrokenPipeError):
                tracker.stdin.close()
            try:
                code = tracker.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                tracker.kill()
                code = store.BEHIND
            place, lost = store.shown(uri), "nothing is lost"
            if code == store.BEHIND:
                log.info(
                    f"MLflow at {place} is behind the ledger (see {run_folder / LOG_FILE}); "
                    f"{lost}: the same command again brings it up to date"
                )
            elif code != 0:
                log.warning(
                    f"warning: MLflow at {place} does not take the run, and no waiting changes "
                    f"that: {_last_line(run_folder / LOG_FILE)}. {lost}: once that is mended, "
                    "the same command brings it up to date"
                )


def _last_line(file: Path) -> str:
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line[:300] for line in reversed(lines) if line.strip()), "no reason given")
