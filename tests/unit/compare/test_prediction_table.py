"""The table of predictions, against the files that the finals left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from orchestrator.compare.prediction_table import PREDICTION_COLUMNS, prediction_table
from orchestrator.compare.runs import collect, load
from orchestrator.compare.table_files import write_table
from tests.unit.compare.compare_runs import tournament_run
from tests.unit.compare.predicted_runs import digits, predicted_run
from trainables.errors import UserError


def test_a_row_a_final_split_and_image(tmp_path: Path) -> None:
    run = load(predicted_run(tmp_path, searches=2))
    _, store = digits(tmp_path / "store")
    table = prediction_table([run])
    assert table.column_names == list(PREDICTION_COLUMNS)
    rows = table.to_pandas()
    assert len(rows) == 2 * 2 * (180 + 180)
    for candidate in collect([run]):
        for final in candidate.curves:
            for split in ("test", "val"):
                own = rows.query("trial == @final.name and split == @split")
                kept = final.predictions(split)
                assert kept is not None
                assert own["row"].tolist() == list(range(180))
                assert own["label"].tolist() == [str(label) for label in kept.labels]
                assert own["predicted"].tolist() == [str(one) for one in kept.predicted]
                every = np.stack(own["probabilities"].to_list())
                assert np.array_equal(every, kept.probabilities)
                assert own["probability"].to_numpy() == pytest.approx(every.max(1))
                assert own["path"].tolist() == store.places(split)
                assert set(own["candidate"]) == {candidate.label}


def test_the_path_leads_to_the_image(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    rows = prediction_table([load(predicted_run(tmp_path, searches=1))]).to_pandas()
    numbers = rows["path"].str.removeprefix("row ").astype(int)
    assert [str(label) for label in load_digits().target[numbers]] == rows["label"].tolist()


def test_files_of_both_kinds(tmp_path: Path) -> None:
    runs = [load(predicted_run(tmp_path))]
    for name in ("predictions.parquet", "my-predictions.csv"):
        write_table(runs, tmp_path / name)
    schema = pq.read_schema(tmp_path / "predictions.parquet")
    assert schema.metadata[b"classes"].decode().split("\n") == [str(i) for i in range(10)]
    parquet = pd.read_parquet(tmp_path / "predictions.parquet")
    flat = pd.read_csv(tmp_path / "my-predictions.csv")
    assert set(parquet) - set(flat) == {"probabilities"}
    assert len(parquet) == len(flat)
    assert flat["probability"].to_numpy() == pytest.approx(parquet["probability"].to_numpy())


def test_a_run_without_predictions_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--final-seeds"):
        prediction_table([load(tournament_run(tmp_path / "run"))])
