"""What a worker does with orders, without Ray: the dispatcher's end of the line is recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainables.config import Assignment, BackboneSpec, DataSpec, EpochReport, Recipe
from trainables.train.loop import World
from trainables.worker.serve import ActiveTrial, _evaluate_test, _train_epoch


class Recorder:
    """Stands in for the dispatcher: keeps every checkpoint."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.notes: list[str] = []
        self.ends: list[tuple[str, dict[str, Any]]] = []

    def report(self, assignment: Assignment, report: EpochReport) -> list[str] | None:
        self.epochs.append(report.epoch)
        return None

    def note(self, trial: str, line: str) -> None:
        self.notes.append(line)

    def end(self, trial: str, event: str, **fields: Any) -> list[str] | None:
        self.ends.append((event, fields))
        return None


@pytest.mark.parametrize("damaged", [(2,), (1, 2)])
def test_a_final_whose_checkpoint_is_damaged_before_its_test_trains_the_epoch_again(
    damaged: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    assignment = Assignment(
        trial_id="resnet-final-00",
        attempt=1,
        backbone=BackboneSpec(family="resnet"),
        recipe=Recipe(batch_size_per_worker=20, augment="none", flip=False),
        data=DataSpec(folder=str(tmp_path / "pixels"), train_limit=100),
        seed=3,
        epochs=2,
        checkpoint_folder=str(tmp_path / "checkpoints" / "attempt-1"),
    )
    active, dispatcher = ActiveTrial(assignment, World()), Recorder()
    for _ in range(2):
        _train_epoch(active, dispatcher)  # type: ignore[arg-type]
    files = sorted(tmp_path.glob("checkpoints/attempt-1/epoch-*/*.safetensors"))
    expected = {file: load_file(file) for file in files}
    for file in files:
        if int(file.parent.name[-4:]) in damaged:
            save_file({k: torch.zeros_like(v) for k, v in load_file(file).items()}, file)

    _evaluate_test(active, dispatcher, tmp_path / "correct.arrow")  # type: ignore[arg-type]
    ((event, fields),) = dispatcher.ends
    assert event == "finished"
    assert fields["detail"]["test"]["n"] > 0
    assert dispatcher.epochs == [1, 2, *damaged]
    assert len(dispatcher.notes) == 1
    for file, tensors in expected.items():
        again = load_file(file)
        assert all(torch.equal(again[key], value) for key, value in tensors.items()), file
