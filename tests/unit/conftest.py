"""What holds for every unit test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from trainables.storage import object_storage


@pytest.fixture(autouse=True)
def no_cluster_but_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that an integration test has up beside this one is not ours to plan for."""
    monkeypatch.setenv("RAY_ADDRESS", "local")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch computes with one thread: the same sums in the same order on every machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def quick_storage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pauses as short as they can be, working copies of the test's own."""
    monkeypatch.setattr(object_storage, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(object_storage, "PATIENCE_S", 0.05)
    monkeypatch.setenv("ORCHESTRATOR_RUNS", str(tmp_path / "copies"))


@pytest.fixture
def place(tmp_path: Path) -> str:
    """Where a storage is."""
    return f"file://{tmp_path / 'storage'}"
