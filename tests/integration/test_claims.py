"""One claim from the command to its verdict, through a kill: ledger, MLflow, report."""

from __future__ import annotations

import json
import signal
import sqlite3

import pytest

from tests.integration.conftest import Shell

pytestmark = pytest.mark.ray

NAME = "cnn-more-shift-invariant"
COMMAND = (
    "claims", "run", NAME, "--name", "c", "--seeds", "2", "--max-epochs", "4",
    "--set", "data.train_limit=400", "--set", "recipe.batch_size_per_worker=20",
)  # fmt: skip


def test_a_claim_survives_a_kill_and_ends_in_a_verdict(shell: Shell) -> None:
    driver = shell.start(*COMMAND)
    before = shell.wait_for("c", lambda state: any(t.reports for t in state.trials.values()))
    declared = before.header["spec"]["claim"]
    assert declared["name"] == NAME
    first = shell.records("c")[0]
    assert (first["event"], first["detail"]["spec"]["claim"]) == ("created", declared)
    driver.send_signal(signal.SIGKILL)
    driver.wait()

    code, out, err = shell(*COMMAND)
    assert code == 0, err
    after = shell.state("c")
    assert {trial.status for trial in after.trials.values()} == {"finished"}
    assert shell.reported_twice("c") == []
    assert after.test_openings == 0
    # The seeds pair the families, on validation images of their own.
    pairs = {
        (t.assignment["seed"], t.assignment["data"]["val_seed"]) for t in after.trials.values()
    }
    assert len(pairs) == 2
    assert len({trial.detail["dataset_hash"] for trial in after.trials.values()}) == 2
    assert "verdict    " in out

    code, out, _ = shell("claims", "show", "c", "--json")
    assert code == 0
    (shown,) = json.loads(out)["claims"]
    assert shown["recorded"]["agrees"] is True
    assert shown["verdict"] in ("supported", "refuted", "undetermined"), shown["reason"]
    assert shown["effects"][0]["n"] == 2
    assert "images of digits at 8 px" in shown["scope"]
    assert '<section id="claim">' in (shell.folder("c") / "report.html").read_text()
    with sqlite3.connect(shell.cwd / "runs" / "mlflow.db") as store:
        tags = dict(store.execute("select key, value from tags where key like 'verdict%'"))
        metrics = {row[0] for row in store.execute("select distinct key from metrics")}
    assert tags["verdict"] == shown["verdict"]
    assert tags["verdict_scope"] == shown["scope"]
    assert {"claim_seeds", "shift_consistency_1px"} <= metrics
    assert any(name.startswith("effect/shift_consistency_of_resnet") for name in metrics)

    code, _, err = shell(*COMMAND[:5], "--seeds", "3", *COMMAND[7:])
    assert code == 2
    assert "a name keeps its spec" in err
