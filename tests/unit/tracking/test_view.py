"""What MLflow should show, computed from a ledger's state alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.compare.shortlist import shortlist
from orchestrator.ledger.header import RunHeader
from orchestrator.ledger.session import state_of
from orchestrator.ledger.state import ReportedEpoch, State, TrialState, TrialStatus, replay
from orchestrator.spec.run import RunSpec, SweepSpec
from orchestrator.tracking import view
from tests.unit.compare.compare_runs import probes
from tests.unit.compare.predicted_runs import predicted_run
from tests.unit.screen import screens
from trainables.config import Assignment, BackboneSpec, DatasetFacts, Recipe


def trial_of(accuracies: list[float], **fields: Any) -> TrialState:
    reports = {
        epoch: ReportedEpoch(
            epoch=epoch,
            time=100.0 + epoch,
            metrics={"val_top1": value, "train_seconds": 2.0, "eval_seconds": 0.5},
        )
        for epoch, value in enumerate(accuracies, 1)
    }
    assignment = Assignment(
        trial_id="vit-0000",
        backbone=BackboneSpec(family="vit"),
        recipe=Recipe(learning_rate=0.001),
        seed=7,
        epochs=9,
    )
    return TrialState("vit-0000", "vit", assignment, reports=reports, **fields)


def finals(trial: TrialState) -> dict[str, float]:
    return {name: value for name, value, _, _ in view.final_metrics(trial)}


def test_a_running_trial_has_no_final_metrics() -> None:
    assert view.final_metrics(trial_of([0.1, 0.2])) == []


def test_final_metrics_by_hand() -> None:
    detail = {"params_m": 1.5, "gflops_per_image": 0.02}
    trial = trial_of([0.2, 0.7, 0.8, 0.75], ended_at=200.0, detail=detail, num_workers=2)

    assert finals(trial) == {
        "best_val_top1": 0.8,
        "epochs_to_90pct_of_best": 3.0,  # 0.72 is first reached in epoch 3
        "convergence_auc": pytest.approx((0.45 + 0.75 + 0.775) / 3),
        "device_seconds": 20.0,  # 4 epochs, 2.5 s each, 2 workers
        "params_m": 1.5,
        "gflops_per_image": 0.02,
    }
    assert {row[2:] for row in view.final_metrics(trial)} == {(200_000, 0)}


def test_a_final_shows_its_test_scores_and_its_probes_in_single_numbers() -> None:
    trial = trial_of([0.5], ended_at=2.0)
    plain = finals(trial)
    trial.outcome = {"test": {"top1": 0.75, "loss": 0.5, "n": 64}, "probes": probes(4)}
    measured = trial.outcome["probes"]

    assert {name: v for name, v in finals(trial).items() if name not in plain} == {
        "test_top1": 0.75,
        "test_loss": 0.5,
        "test_n": 64.0,
        "latency_ms": measured["speed"]["batch_1"]["latency_ms"],
        "inference_images_per_second": measured["speed"]["batch_256"]["images_per_second"],
        "calibration_ece": measured["calibration"]["ece"],
        "shift_consistency_1px": measured["shift"]["consistency"]["axis"][1],
        "occluded_half_top1": measured["occlusion"]["top1"][1],
    }


def test_speed_and_its_cost_are_told_when_they_are_measured() -> None:
    trial = trial_of([0.5], ended_at=2.0)
    assert view.speed_metrics(trial) == []
    trial.outcome = {"test": {"top1": 0.75}}
    trial.speed = {"batch_1": {"latency_ms": 1.5}, "batch_256": {"images_per_second": 900.0}}
    trial.speed_measured_at, trial.unreported_s = 9.0, 4.0
    assert "latency_ms" not in finals(trial)
    rows = {name: (value, at) for name, value, at, _ in view.speed_metrics(trial)}
    assert rows.pop("device_seconds")[0] == finals(trial)["device_seconds"]
    assert rows == {"latency_ms": (1.5, 9000), "inference_images_per_second": (900.0, 9000)}


def test_datasets_of_a_run_are_told_apart_by_their_content() -> None:
    facts = DatasetFacts(
        name="digits", height=8, width=8, content_hash="c0ffee", counts={"val": 180}
    )
    sweeps = tuple(SweepSpec(backbone=BackboneSpec(family=family)) for family in ("a", "b"))
    header = RunHeader(spec=RunSpec(name="r", sweeps=sweeps), datasets={"a": facts, "b": facts})
    (shown,) = view.datasets(State(header=header))
    assert (shown["name"], shown["digest"]) == ("digits", "c0ffee")
    assert shown["source"] == '{"uri": "digits"}'
    assert '"val": 180' in shown["profile"]
    changed = {"a": facts, "b": replace(facts, content_hash="decade")}
    assert len(view.datasets(State(header=replace(header, datasets=changed)))) == 2


def test_a_trial_says_which_candidate_it_is_of_and_which_backbone_that_is() -> None:
    trial = trial_of([0.5])
    backbone = BackboneSpec(family="timm", model="test_vit", weights="w.safetensors")
    trial.candidate, trial.assignment = "small", replace(trial.assignment, backbone=backbone)
    sweeps = (
        SweepSpec(backbone=backbone, label="small"),
        SweepSpec(backbone=BackboneSpec(family="vit")),
    )
    header = RunHeader(
        spec=RunSpec(name="r", sweeps=sweeps), geometry={"small": {"model": "test_vit"}, "vit": {}}
    )
    state = State(header=header, trials={trial.trial: trial})
    tags = view.trial_tags(state, trial, "parent", False)
    assert {name: tags[name] for name in ("candidate", "family", "model", "weights")} == {
        "candidate": "small", "family": "timm", "model": "test_vit", "weights": "w.safetensors",
    }  # fmt: skip
    of_run = view.run_tags(state, False)
    assert (of_run["candidates"], of_run["families"]) == ("small, vit", "timm, vit")


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12))
def test_convergence_matches_the_trapezoid_rule(accuracies: list[float]) -> None:
    shown = finals(trial_of(accuracies, ended_at=1.0))
    expected = np.trapezoid(accuracies) / (len(accuracies) - 1)
    assert shown["convergence_auc"] == pytest.approx(expected)
    reached = np.flatnonzero(np.array(accuracies) >= 0.9 * max(accuracies))
    assert shown["epochs_to_90pct_of_best"] == reached[0] + 1


def test_a_diverged_epoch_is_no_accuracy() -> None:
    shown = finals(trial_of([0.4, math.nan], ended_at=1.0))
    assert shown["best_val_top1"] == shown["convergence_auc"] == 0.4
    assert "best_val_top1" not in finals(trial_of([math.nan], ended_at=1.0))


def test_params_are_the_flat_recipe_and_geometry_only_once_it_is_known() -> None:
    trial = trial_of([])
    early = view.trial_params(trial)
    assert early["learning_rate"] == "0.001"
    assert early["ema_decay"] == "None"
    assert (early["seed"], early["max_epochs"]) == ("7", "9")
    assert not {"patch", "stem", "weights"} & set(early)  # a param cannot change later

    trial.detail.update({"model": "test_vit", "patch": 4, "tokens": 64, "stem": None})
    late = view.trial_params(trial)
    assert early.items() <= late.items()
    assert (late["patch"], late["tokens"], late["weights"]) == ("4", "64", "none")


@pytest.mark.parametrize(
    ("trial_status", "events", "interrupted", "shown"),
    [
        ("running", (), False, "running"),
        ("running", (), True, "stopped"),
        ("running", ("stopped",), False, "stopped"),
        ("running", ("stopped", "resumed"), False, "running"),
        ("pruned", ("stopped",), True, "pruned"),
        ("failed", ("closed",), False, "failed"),
    ],
)
def test_status_of_a_trial(
    trial_status: str, events: tuple[str, ...], interrupted: bool, shown: str
) -> None:
    state = replay({"event": event, "time": 1.0} for event in events)
    trial = trial_of([0.5], status=TrialStatus(trial_status))
    assert view.trial_tags(state, trial, "parent", interrupted)["status"] == shown


@pytest.mark.parametrize(
    ("statuses", "shown"),
    [
        (("finished", "failed"), ("done", "FINISHED")),
        (("failed", "failed"), ("failed", "FAILED")),
    ],
)
def test_status_of_a_closed_run(statuses: tuple[str, ...], shown: tuple[str, str]) -> None:
    trials = {str(n): trial_of([], status=TrialStatus(status)) for n, status in enumerate(statuses)}
    status = view.run_tags(State(closed=True, trials=trials), False)["status"]
    assert (status, view.STATUS[status]) == shown


@pytest.mark.parametrize(
    ("stopped", "interrupted", "shown"),
    [
        (False, False, ("running", "RUNNING")),
        (True, False, ("stopped", "KILLED")),
        (False, True, ("interrupted", "KILLED")),
    ],
)
def test_status_of_an_open_run(stopped: bool, interrupted: bool, shown: tuple[str, str]) -> None:
    state = State(stopped=stopped, trials={"vit-0000": trial_of([0.5])})
    status = view.run_tags(state, interrupted)["status"]
    assert (status, view.STATUS.get(status, "RUNNING")) == shown


def test_long_texts_fit_mlflow_and_missing_ones_are_absent() -> None:
    assert view.texts({"a": "x" * 9000, "b": None, "c": ""}, 5000) == {"a": "x" * 5000}


def test_two_ledgers_of_one_spec_are_two_runs() -> None:
    header = RunHeader(run="demo", spec_hash="abc")
    first = State(header=header, created_at=1.0)
    assert view.run_id(first) == view.run_id(State(header=replace(header), created_at=1.0))
    assert view.run_id(first) != view.run_id(State(header=header, created_at=2.0))


def test_a_screened_candidate_shows_its_probes_and_a_failed_one_its_reason(tmp_path: Path) -> None:
    screens.write(tmp_path, screens.spec(screens.FOUND), *screens.FOUND.values(), closed=True)
    state = state_of(tmp_path)
    metrics = {name: value for name, value, _, _ in view.screened_metrics(state, "a")}
    assert metrics == {
        "linear_top1": 390 / screens.IMAGES,
        "neighbours_top1": 390 / screens.IMAGES,
        "latency_ms": 30.0,
        "inference_images_per_second": 50.0,
        "params_m": 5.0,
        "device_seconds": 3.0,
    }
    tags = view.screened_tags(state, "f", "parent")
    assert (tags["stage"], tags["status"]) == ("screen", "failed")
    assert tags["reason"] == "OutOfMemory: no room"
    assert view.screened_metrics(state, "f") == []
    parent = view.run_tags(state, interrupted=False)
    assert (parent["stage"], parent["candidates"]) == ("screen", "a, b, c, d, e, f")
    assert parent["status"] == "done"


def test_the_table_of_a_screen_has_everybody() -> None:
    result = shortlist(screens.spec(screens.FOUND), screens.FOUND, {"g": "too large"})
    table = view.shortlist_table(result)
    assert [row[0] for row in table["data"]] == ["a", "b", "c", "d", "e", "g", "f"]
    roles = [row[table["columns"].index("role")] for row in table["data"]]
    assert roles == ["chosen", "chosen", "not told apart", None, None, None, None]
    reasons = [row[table["columns"].index("reason")] for row in table["data"]]
    assert reasons[-2:] == ["too large", "OutOfMemory: no room"]


def test_a_final_shows_what_its_model_confuses(tmp_path: Path) -> None:
    folder = predicted_run(tmp_path)
    state = state_of(folder)
    final = next(trial for trial in state.trials.values() if trial.candidate == "vit")
    shown = view.classes_of_final(state, final, folder)
    assert shown is not None
    assert shown["trial"] == final.trial
    matrix = np.array(shown["matrix"])
    assert matrix.sum() == 180
    assert np.trace(matrix) / 180 == pytest.approx(final.outcome["test"]["top1"])
    assert shown["covers"] == "new images, for this one model"
    recalls = [one["recall"]["mean"] for one in shown["scores"]]
    assert recalls == pytest.approx(np.diag(matrix) / matrix.sum(1))
    (folder / "finals" / final.trial / "test_predictions.arrow").unlink()
    assert view.classes_of_final(state, final, folder) is None
