from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from orchestrator.tracking import follow
from orchestrator.tracking.client import Outage


@pytest.mark.parametrize("ends_while_out", [False, True])
def test_the_end_of_an_outage_is_told_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    ends_while_out: bool,
) -> None:
    """Also where the run ends before the outage is seen to be over."""
    ended = threading.Event()

    class Recovering:
        def __init__(self, *_: object) -> None:
            self.flushes = 0

        def flush(self, **_: object) -> int:
            self.flushes += 1
            if self.flushes == (1 if ends_while_out else 2):
                ended.set()
            if self.flushes == 1:
                raise Outage(OSError("connection refused"))
            return 0

    monkeypatch.setattr(follow, "Mirror", Recovering)
    monkeypatch.setattr(follow, "POLL_S", 0.01)
    monkeypatch.setattr(follow, "RETRY_S", 0.01)
    with caplog.at_level(logging.INFO, "orchestrator"):
        assert follow.follow(tmp_path, "http://mlflow", None, ended)
    assert [line.split(" after ")[0] for line in caplog.messages] == [
        "MLflow at http://mlflow is out, records wait: connection refused",
        "MLflow is back",
    ]
