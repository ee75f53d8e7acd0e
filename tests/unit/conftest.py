"""What holds for every unit test."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_cluster_but_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that an integration test has up beside this one is not ours to plan for."""
    monkeypatch.setenv("RAY_ADDRESS", "local")
