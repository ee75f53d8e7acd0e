"""A final whose last checkpoint got lost before its test: trained again, evaluated as it was."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest

from trainables.config import Assignment, BackboneSpec, DataSpec, EpochReport, Recipe
from trainables.data.build import prepare
from trainables.evaluate.model import evaluate_split
from trainables.finetune import fine_tune
from trainables.storage import object_storage, trial_files
from trainables.train.loop import World
from trainables.worker import dispatcher_client, serve


class Dispatcher:
    """What the worker is told when every epoch of the final is on record already."""

    def __init__(self) -> None:
        self.reports: list[EpochReport] = []
        self.detail: dict[str, Any] = {}

    def report(self, assignment: Assignment, report: EpochReport) -> None:
        self.reports.append(report)

    def end(self, trial: str, event: str, detail: dict[str, Any]) -> list[str]:
        assert event == "finished"
        self.detail = detail
        return []


@pytest.fixture
def final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Assignment:
    """Two epochs on few images."""
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    return Assignment(
        trial_id="resnet-final-00",
        attempt=1,
        backbone=BackboneSpec(family="resnet"),
        recipe=Recipe(batch_size_per_worker=20, augment="none", flip=False),
        data=DataSpec(
            folder=str(tmp_path / "pixels"), train_limit=60, val_fraction=0.02, test_fraction=0.02
        ),
        seed=3,
        epochs=2,
        checkpoint_folder=str(tmp_path / "checkpoints" / "resnet-final-00" / "attempt-1"),
    )


def test_it_meets_the_test_with_the_same_weights(tmp_path: Path, final: Assignment) -> None:
    first, last = (str(report.checkpoint) for report in fine_tune(final))
    labels = prepare(final.data).split("test").labels
    wanted = evaluate_split(final, last, "test") == labels
    shutil.rmtree(last)
    second = tmp_path / "checkpoints" / "resnet-final-00" / "attempt-2"
    again = replace(final, attempt=2, checkpoint=first, checkpoint_folder=str(second))
    dispatcher = Dispatcher()
    active = serve.ActiveTrial(again, World())
    file = tmp_path / "test_correct.arrow"
    serve._evaluate_test(active, cast(dispatcher_client.DispatcherClient, dispatcher), file)
    assert [report.epoch for report in dispatcher.reports] == [2]
    assert pa.ipc.open_file(file).read_all()["correct"].to_pylist() == wanted.tolist()
    assert dispatcher.detail["test"]["n"] == len(labels)
    # What met the test stays, though the ledger names another place.
    assert [path.name for path in second.iterdir()] == ["epoch-0002"]
    assert not Path(first).exists()


def test_in_storage_it_is_evaluated_on_a_node_that_had_nothing_of_it(
    tmp_path: Path, final: Assignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_RUNS", str(tmp_path / "node"))
    uri = f"file://{tmp_path / 'storage'}/run"
    _, last = (str(report.checkpoint) for report in fine_tune(final))
    labels = prepare(final.data).split("test").labels
    wanted = evaluate_split(final, last, "test") == labels
    trial_files.put_checkpoint(replace(final, remote=uri), last)
    shutil.rmtree(tmp_path / "checkpoints")
    dispatcher = Dispatcher()
    active = serve.ActiveTrial(replace(final, attempt=2, checkpoint=last, remote=uri), World())
    head = Path("/head/finals/resnet-final-00/test_correct.arrow")
    serve._evaluate_test(active, cast(dispatcher_client.DispatcherClient, dispatcher), head)
    assert dispatcher.reports == []
    object_storage.get_file(f"{uri}/finals/resnet-final-00/{head.name}", tmp_path / "correct.arrow")
    found = pa.ipc.open_file(tmp_path / "correct.arrow").read_all()["correct"]
    assert found.to_pylist() == wanted.tolist()
    # It stays there and is gone here.
    assert trial_files.stored_checkpoints(f"{uri}/checkpoints/resnet-final-00") == [
        "attempt-1/epoch-0002"
    ]
    assert list((tmp_path / "node").rglob("*.safetensors")) == []
