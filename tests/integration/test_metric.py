"""Runs on a local Ray that are judged by other metrics than accuracy."""

from __future__ import annotations

import json
import sqlite3

import numpy as np
import pytest
from sklearn import metrics as sk

from orchestrator.compare.winners import winners
from tests.integration.conftest import Shell
from trainables.evaluate.predictions import read_predictions
from trainables.storage.trial_files import predictions_file

pytestmark = pytest.mark.ray

QUICK = ("--set", "data.train_limit=200", "--set", "recipe.batch_size_per_worker=50",
         "--set", "backbone.image_size=16", "--no-measure")  # fmt: skip


def metrics_in_mlflow(shell: Shell, trial: str) -> dict[str, float]:
    with sqlite3.connect(shell.cwd / "runs" / "mlflow.db") as store:
        rows = store.execute(
            "select m.key, m.value from latest_metrics m join tags t on m.run_uuid = t.run_uuid "
            "where t.key = 'trial' and t.value = ?",
            (trial,),
        )
        return dict(rows.fetchall())


def test_a_tournament_by_macro_f1(shell: Shell) -> None:
    code, out, err = shell(
        "tournament", "resnet", "vit", "--name", "m", "--metric", "macro_f1", "--trials", "2",
        "--searches", "1", "--final-seeds", "2", "--max-epochs", "2", *QUICK,
    )  # fmt: skip
    assert code == 0, err
    assert "macro F1" in out
    state = shell.state("m")
    assert {trial.assignment.metric for trial in state.trials.values()} == {"macro_f1"}
    for winner in winners(state).values():
        rivals = [
            trial.best()[0]
            for trial in state.trials.values()
            if (trial.stage, trial.search_name) == ("search", winner.search_name)
            and trial.status == "finished"
        ]
        assert winner.best()[0] == max(rivals)
        assert state.frozen is not None
        frozen = state.frozen.detail["winners"][winner.search_name]
        assert frozen["val_macro_f1"] == winner.best()[0]
        row = metrics_in_mlflow(shell, winner.trial)
        assert row["best_val_macro_f1"] == pytest.approx(winner.best()[0])
        assert {"val_macro_f1", "val_balanced_accuracy", "val_auroc", "val_top1"} <= row.keys()
    finals = [trial for trial in state.trials.values() if trial.stage == "final"]
    for final in finals:
        folder = shell.cwd / "runs" / "m" / "finals" / final.trial
        made = read_predictions(predictions_file(folder, "test"))
        assert made is not None
        tested = final.outcome["test"]
        labels, predicted = made.labels, made.predicted
        f1 = sk.f1_score(labels, predicted, average="macro", zero_division=0)
        assert tested["macro_f1"] == pytest.approx(f1)
        areas = [sk.roc_auc_score(labels == c, made.probabilities[:, c]) for c in range(10)]
        assert tested["auroc"] == pytest.approx(np.mean(areas), abs=1e-6)
        assert metrics_in_mlflow(shell, final.trial)["test_macro_f1"] == tested["macro_f1"]
    code, out, _ = shell("compare", "m", "--json")
    assert code == 0
    comparison = json.loads(out)
    assert comparison["metric"]["name"] == "macro_f1"
    (pair,) = comparison["pairs"]
    assert pair["method"] == "Welch's t over seeds and images"
    assert pair["n"]["images"] == len(read_labels(shell, finals[0].trial))
    assert "validation macro F1, %" in (shell.cwd / "runs" / "m" / "report.html").read_text()
    code, out, _ = shell("status", "m", "--json")
    assert code == 0
    assert json.loads(out)["runs"][0]["metric"] == "macro_f1"


def read_labels(shell: Shell, trial: str) -> np.ndarray:
    folder = shell.cwd / "runs" / "m" / "finals" / trial
    made = read_predictions(predictions_file(folder, "test"))
    assert made is not None
    return made.labels


def test_a_sweep_by_the_precision_of_a_class_on_two_workers(shell: Shell) -> None:
    """Its name is none that MLflow takes."""
    name = "precision:3@0.5"
    code, _, err = shell(
        "sweep", "vit", "--name", "p", "--metric", name, "--trials", "1", "--max-epochs", "1",
        "--workers", "2", *QUICK,
    )  # fmt: skip
    assert code == 0, err
    (trial,) = shell.state("p").trials.values()
    value = trial.reports[1].metrics[f"val_{name}"]
    assert 0 < value <= 1
    assert metrics_in_mlflow(shell, trial.trial)["best_val_precision:3_0.5"] == value
    code, _, err = shell("sweep", "vit", "--name", "q", "--metric", "recall:three", *QUICK)
    assert code == 2
    assert "needs a class of the images; got 'three'" in err
    code, _, err = shell("sweep", "vit", "--name", "q", "--metric", "f1", *QUICK)
    assert code == 2
    assert "metric must be one of top1" in err
