"""Export: the checkpoint is found or its loss is told, and a folder in use is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.compare.winners import select_model
from orchestrator.ledger.events import FILE_NAME, read
from orchestrator.ledger.state import State, replay
from orchestrator.tracking.best_model import checkpoint_of, write_model
from tests.unit.compare.compare_runs import RunFolder
from trainables.errors import UserError


def state_of(folder: Path) -> State:
    return replay(read(folder / FILE_NAME))


def test_a_checkpoint_is_found_where_the_run_was_moved_to_and_its_loss_is_told(
    tmp_path: Path,
) -> None:
    run = RunFolder(tmp_path / "x")
    trial = run.submit("vit")
    run.ledger.append("started", trial=trial, attempt=1, slot="s")
    inside = Path("checkpoints") / trial / "attempt-1" / "epoch-0001"
    run.ledger.append(
        "reported", trial=trial, attempt=1, epoch=1, metrics={"val_top1": 0.5},
        checkpoint=str(tmp_path / "elsewhere" / "x" / inside),
    )  # fmt: skip
    run.ledger.append("finished", trial=trial)
    folder = run.close()
    model = select_model(state_of(folder))
    with pytest.raises(UserError, match=f"{trial}, epoch 1, is gone"):
        checkpoint_of(model, folder)
    (folder / inside).mkdir(parents=True)
    assert checkpoint_of(model, folder) == folder / inside


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "x")
    run.trial("vit", [0.5])
    folder = run.close()
    with pytest.raises(UserError, match="new or empty"):
        write_model(state_of(folder), select_model(state_of(folder)), folder, tmp_path)
