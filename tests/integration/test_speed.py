"""A whole tournament measures the speed of its final models once everything is trained."""

from __future__ import annotations

import json
import sqlite3

import pytest

from tests.integration.conftest import Shell

pytestmark = pytest.mark.ray

TOURNAMENT = (
    "tournament", "resnet", "vit", "--name", "t", "--trials", "1", "--max-epochs", "2",
    "--searches", "1", "--final-seeds", "2", "--no-measure", "--set", "data.train_limit=200",
    "--set", "recipe.batch_size_per_worker=50",
)  # fmt: skip


def test_the_speed_of_the_final_models_is_measured_after_the_last_of_them(shell: Shell) -> None:
    code, _, err = shell(*TOURNAMENT)
    assert code == 0, err
    records = shell.records("t")
    measured = [record for record in records if record["event"] == "speed_measured"]
    assert sorted(record["trial"] for record in measured) == ["resnet-final-00", "vit-final-00"]
    assert measured[0]["slot_seconds"] == measured[1]["slot_seconds"] > 0
    events = [record["event"] for record in records]
    assert events.index("speed_measured") > max(i for i, e in enumerate(events) if e == "finished")

    _, out, _ = shell("compare", "t", "--json")
    for family in json.loads(out)["families"]:
        numbers = family["final"]["probes"]["numbers"]
        latency = numbers["speed.batch_1.latency_ms"]
        assert 0 <= latency["low"] < latency["mean"] < latency["high"]
        assert numbers["speed.batch_256.images_per_second"]["n"] == 1
        assert family["final"]["probes"]["facts"]["speed.models"] == 2
        assert numbers["calibration.temperature"]["n"] == 2
        assert 0 <= numbers["calibration.ece_scaled"]["mean"] <= 1
    with sqlite3.connect(shell.cwd / "runs" / "mlflow.db") as store:
        rows = store.execute(
            "select t.value from latest_metrics m join tags t on m.run_uuid = t.run_uuid "
            "where m.key = 'latency_ms' and t.key = 'trial' and m.value > 0 order by t.value"
        ).fetchall()
    assert rows == [("resnet-final-00",), ("vit-final-00",)]

    # Nothing is left to do: the same command measures nothing again.
    code, _, err = shell(*TOURNAMENT)
    assert code == 0, err
    assert "nothing to train" in err
    assert shell.records("t") == records
