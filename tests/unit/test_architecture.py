"""ARCHITECTURE.md names files that exist, every room, and walks that stay short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
# The most files that a walk may pass through, by the words that introduce it.
LONGEST = {
    "becomes a timm model": 16,
    "becomes a metric in MLflow": 9,
    "becomes a decision to prune": 8,
    "reaches the optimizer": 13,
}


def test_every_file_that_it_names_exists() -> None:
    names = re.findall(r"`((?:orchestrator|trainables|examples)/[\w/.]*)`", TEXT)
    assert len(names) > 50
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_every_room_is_in_its_table() -> None:
    rooms = {
        f"{folder.relative_to(ROOT).as_posix()}/"
        for package in ("orchestrator", "trainables")
        for folder in (ROOT / package).iterdir()
        if (folder / "__init__.py").exists()
    }
    assert rooms == set(re.findall(r"^\| `((?:orchestrator|trainables)/\w+/)` \|", TEXT, re.M))


@pytest.mark.parametrize(("words", "longest"), LONGEST.items())
def test_a_walk_is_short(words: str, longest: int) -> None:
    steps = TEXT.split(words, 1)[1].split("\n\n")[1].splitlines()
    files = [re.match(rf"{index}\. `(\S+)`", step) for index, step in enumerate(steps, 1)]
    assert all(files)
    assert 5 < len(files) <= longest
