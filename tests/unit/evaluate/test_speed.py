"""Models are timed in turns, and one that cannot be timed keeps no other from it."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from trainables.backbones import describe
from trainables.config import Assignment, BackboneSpec, DataSpec, SpeedReport
from trainables.evaluate.speed import (
    CALLS,
    FEWEST_ROUNDS,
    ROUNDS,
    measure_speeds,
    measure_trials,
    summary,
    timed,
)
from trainables.finetune import fine_tune
from trainables.train.augmentation import InputTransform
from trainables.train.loop import TrainedModel
from trainables.worker import serve
from trainables.worker.dispatcher_client import DispatcherClient
from trainables.worker.messages import Order, SlotCommand

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_summary_of_five_calls_by_hand() -> None:
    assert summary([0.5, 0.1, 0.3, 0.2, 0.4], images=6) == {
        "latency_ms": 300.0,
        "latency_ms_low": 200.0,
        "latency_ms_high": 400.0,
        "images_per_second": pytest.approx(20.0),
        "n": 5,
    }


@pytest.mark.parametrize(("budget_s", "calls"), [(1e9, 7), (1e-9, 1)])
def test_calls_end_at_n_or_with_the_one_that_passes_the_budget(budget_s: float, calls: int) -> None:
    made: list[int] = []
    device = torch.device("cpu")
    seconds = timed(lambda: made.append(1), device=device, n=7, budget_s=budget_s, warm_up=2)
    assert (len(seconds), len(made)) == (calls, calls + 2)


class Sleeper(nn.Module):
    """Takes ``seconds`` a call, and writes down that it was called; breaks after so many calls."""

    def __init__(self, name: str, seconds: float, calls: list[str], breaks_at: int = 1000) -> None:
        super().__init__()
        self.name, self.seconds, self.calls, self.breaks_at = name, seconds, calls, breaks_at

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append(self.name)
        if self.calls.count(self.name) > self.breaks_at:
            raise torch.OutOfMemoryError("no memory is left")
        time.sleep(self.seconds)
        return images.mean((2, 3))


def sleeper(name: str, seconds: float, calls: list[str], **options: int) -> TrainedModel:
    return TrainedModel(
        module=Sleeper(name, seconds, calls, **options),
        transform=InputTransform(image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3),
        geometry=describe(BackboneSpec(family="resnet"), height=8, width=8),
        device=torch.device("cpu"),
    )


def turns(calls: list[str]) -> list[str]:
    """Whose calls followed each other."""
    return [name for i, name in enumerate(calls) if i == 0 or name != calls[i - 1]]


def test_models_take_turns_and_each_has_its_own_time() -> None:
    calls: list[str] = []
    models = {name: sleeper(name, s, calls) for name, s in (("slow", 0.004), ("fast", 0.001))}
    speeds, failed = measure_speeds(models, seed=1)
    assert failed == {}
    assert json.loads(json.dumps(speeds)) == speeds
    for name, speed in speeds.items():
        assert (speed["rounds"], speed["models"], speed["threads"]) == (ROUNDS, 2, 1)
        for size, count in CALLS.items():
            batch = speed[f"batch_{size}"]
            assert batch["n"] == count * ROUNDS
            assert len(batch["round_ms"]) == ROUNDS
            assert batch["latency_ms"] >= {"slow": 4.0, "fast": 1.0}[name]
    ratio = speeds["slow"]["batch_1"]["latency_ms"] / speeds["fast"]["batch_1"]["latency_ms"]
    assert ratio > 2
    # One after the other would be two turns; where a round begins as the last ended, two are one.
    assert len(turns(calls)) > ROUNDS


def test_the_order_of_each_round_is_drawn_by_the_seed() -> None:
    orders = []
    for seed in (0, 0, 1, 2, 3):
        calls: list[str] = []
        measure_speeds({name: sleeper(name, 0.0, calls) for name in "abc"}, seed=seed)
        orders.append(turns(calls))
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) > 2


def test_a_model_that_breaks_is_named_and_the_others_are_measured() -> None:
    calls: list[str] = []
    models = {"a": sleeper("a", 0.0, calls, breaks_at=20), "b": sleeper("b", 0.0, calls)}
    speeds, failed = measure_speeds(models)
    assert set(speeds) == {"b"}
    assert failed == {"a": "OutOfMemoryError: no memory is left"}


def test_no_turn_begins_after_the_limit_and_slow_models_have_fewer_rounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    speeds, failed = measure_speeds({"a": sleeper("a", 0.01, calls)}, limit_s=0.0)
    assert (speeds, calls) == ({}, [])
    assert "its time was over" in failed["a"]
    monkeypatch.setattr("trainables.evaluate.speed.MODEL_S", 0.0)
    speeds, _ = measure_speeds({"a": sleeper("a", 0.001, calls)})
    assert speeds["a"]["rounds"] == FEWEST_ROUNDS


def test_a_trial_is_measured_by_its_checkpoint_and_one_without_is_named(tmp_path: Path) -> None:
    assignment = Assignment(
        trial_id="resnet-final-00",
        attempt=1,
        backbone=BackboneSpec(family="resnet"),
        data=DataSpec(source="digits", train_limit=64, folder=str(tmp_path / "data")),
        seed=0,
        epochs=1,
        checkpoint_folder=str(tmp_path / "checkpoints"),
    )
    (report,) = fine_tune(assignment)
    there = replace(assignment, checkpoint=report.checkpoint)
    gone = replace(assignment, trial_id="resnet-final-01", checkpoint=None)
    measured, missing = measure_trials([there, gone])
    assert measured.speed["batch_1"]["latency_ms"] > 0
    assert (measured.trial, measured.reason) == ("resnet-final-00", None)
    assert missing == SpeedReport(
        trial="resnet-final-01",
        reason="FileNotFoundError: no checkpoint of resnet-final-01 is left",
    )


class Told:
    """The dispatcher's end of a slot's client."""

    def speeds(self, reports: list[SpeedReport]) -> None:
        self.reports = reports


def test_a_worker_carries_the_order_out_and_reports_every_model() -> None:
    gone = Assignment(trial_id="vit-final-00", backbone=BackboneSpec(family="vit"), epochs=1)
    order, told = Order(command=SlotCommand.MEASURE_SPEED, models=(gone,), limit_s=5.0), Told()
    serve._measure_speed(order, cast(DispatcherClient, told), "cpu")
    (report,) = told.reports
    assert (report.trial, report.speed) == ("vit-final-00", {})
    assert "no checkpoint" in str(report.reason)
