"""Versions on nodes: what counts as a difference, and a slot on a node that differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.engine import slots
from orchestrator.spec.limits import ResourceSpec
from trainables.versions import LIBRARIES, differences, installed


def test_this_process_is_no_different_from_itself() -> None:
    here = installed()
    assert list(here) == ["python", *LIBRARIES]
    assert all(here.values())
    assert differences(here, installed(), "n") == []


def test_a_difference_names_node_library_both_versions_and_the_fix() -> None:
    wanted = {"python": "3.11.7", "torch": "2.15.0+cu130", "timm": "1.0.31", "ray": "2.60.0"}
    found = {"python": "3.11.9", "torch": "2.15.0+cpu", "timm": "1.0.30", "ray": None}
    python, timm, ray = differences(wanted, found, "gpu-7")
    assert "node gpu-7 has python 3.11.9, the driver python 3.11.7" in python
    assert "pip" not in python
    assert "node gpu-7 has timm 1.0.30, the driver timm 1.0.31" in timm
    assert "pip install timm==1.0.31" in timm
    assert "node gpu-7 has no ray" in ray


def test_a_slot_on_a_node_that_differs_is_given_up_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Train itself, in this process: no workers, no cluster."""
    monkeypatch.setattr(slots, "installed", lambda: {**installed(), "timm": "9.9.9"})
    lost: list[tuple[str, str]] = []
    pool = slots.SlotPool(
        num_slots=1,
        resources=ResourceSpec(num_workers=0),
        dispatcher="nobody",
        namespace="none",
        session="s",
        folder=tmp_path,
        lost=lambda slot, reason: lost.append((slot, reason)),
    )
    pool.start()
    for thread in pool._threads:
        thread.join(60)
    assert pool.alive() == 0
    assert len(lost) == 1 + slots.MAX_RESTARTS_PER_SLOT
    assert lost[0][1].startswith("every node must hold the driver's versions")
    assert "the driver timm 9.9.9" in lost[0][1]
