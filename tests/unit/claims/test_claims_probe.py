"""Shift consistency as a model learns: what the epochs report is what the finished model shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.train.engine_store import assignment, small_store
from trainables.config import SHIFT_IMAGES, Assignment
from trainables.evaluate.model import model_of
from trainables.evaluate.probes import probe
from trainables.finetune import fine_tune

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_each_epoch_reports_the_consistency_that_the_probe_finds(
    family: str, tmp_path: Path
) -> None:
    store = small_store()
    plain = assignment(family, checkpoint_folder=tmp_path, ema_decay=0.9)
    asked = Assignment.from_dict({**plain.as_dict(), "shift_offsets_px": [1, 2]})
    assert Assignment.from_dict(json.loads(json.dumps(asked.as_dict()))) == asked
    reports = list(fine_tune(asked, store=store))
    assert all(set(one.metrics) > {f"shift_consistency_{o}px" for o in (1, 2)}
               for one in reports)  # fmt: skip
    last = reports[-1]
    assert last.checkpoint is not None
    val = store.split("val")
    model = model_of(asked, last.checkpoint, store)
    found = probe(model, val.images[:SHIFT_IMAGES], val.labels[:SHIFT_IMAGES])["shift"]
    for offset in (1, 2):
        expected = found["consistency"]["axis"][found["offsets_px"].index(offset)]
        assert last.metrics[f"shift_consistency_{offset}px"] == pytest.approx(expected)
    # To look does not change what is learned, and who does not ask is not told.
    unasked = list(fine_tune(plain, store=store))
    assert [one.metrics["val_loss"] for one in unasked] == [r.metrics["val_loss"] for r in reports]
    assert not any(name.startswith("shift") for name in unasked[0].metrics)
