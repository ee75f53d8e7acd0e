"""One claim from the command to its verdict: ledger, MLflow, report. Its resume is any run's."""

from __future__ import annotations

import sqlite3

import pytest

from orchestrator.claims.verdict import shown, state_of
from tests.integration.conftest import Shell

pytestmark = pytest.mark.ray

NAME = "cnn-more-shift-invariant"


def test_a_claim_is_declared_measured_and_judged(shell: Shell) -> None:
    code, out, err = shell(
        "claims", "run", NAME, "--name", "c", "--seeds", "2", "--max-epochs", "2",
        "--set", "data.train_limit=1200", "--set", "data.val_fraction=0.05",
        "--set", "recipe.batch_size_per_worker=20", "--set", "recipe.warmup_epochs=0.25",
    )  # fmt: skip
    assert code == 0, err
    first, *rest = shell.records("c")
    assert (first["event"], first["detail"]["spec"]["claim"]["name"]) == ("created", NAME)
    assert [record["event"] for record in rest].count("verdict") == 1
    state = shell.state("c")
    assert {trial.status for trial in state.trials.values()} == {"finished"}
    assert state.test_openings == 0
    # The seeds pair the families, each on training and validation images of its own.
    trials = state.trials.values()
    drawn = {(t.assignment.seed, t.assignment.data.val_seed, t.assignment.data.train_seed)
             for t in trials}  # fmt: skip
    assert len(drawn) == 2
    assert len({trial.detail["dataset_hash"] for trial in trials}) == 2

    verdict = shown(state_of(shell.folder("c")))
    assert verdict["recorded"]["agrees"] is True
    assert verdict["verdict"] in ("supported", "refuted", "undetermined"), verdict["reason"]
    assert verdict["effects"][0]["n"] == 2
    assert "1,200 images of digits at 8 px (others in each seed), 2 epochs" in verdict["scope"]
    assert f"verdict    {verdict['verdict']}" in out
    assert '<section id="claim">' in (shell.folder("c") / "report.html").read_text()
    with sqlite3.connect(shell.cwd / "runs" / "mlflow.db") as store:
        tags = dict(store.execute("select key, value from tags where key like 'verdict%'"))
        metrics = {row[0] for row in store.execute("select distinct key from metrics")}
    assert tags["verdict"] == verdict["verdict"]
    assert tags["verdict_scope"] == verdict["scope"]
    assert {"claim_seeds", "shift_consistency_1px"} <= metrics
    assert any(name.startswith("effect/shift_consistency_of_resnet") for name in metrics)
