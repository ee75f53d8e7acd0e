"""The winner leaves the house: loaded by timm and by MLflow where this project does not exist,
it says of every test image what our own evaluation says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from orchestrator.cli.options import log_to_stderr
from orchestrator.cli.read import export
from orchestrator.ledger.events import FILE_NAME, Ledger, read
from orchestrator.ledger.state import State, replay
from orchestrator.tracking import follow
from orchestrator.tracking import store as tracking_store
from trainables.config import Assignment, BackboneSpec, DataSpec, Recipe
from trainables.data.build import prepare
from trainables.data.store import ImageStore
from trainables.errors import UserError
from trainables.evaluate.model import evaluate_split
from trainables.finetune import fine_tune

pytestmark = pytest.mark.mlflow

FAMILIES = ("resnet", "vit", "hybrid")
NAME = "three"
# Runs the code of each README as it is, then the models on the images of images.npy.
STRANGER = """
import json, os, sys
for name in ("orchestrator", "trainables"):
    sys.modules[name] = None  # importing it raises
import numpy, torch
torch.set_num_threads(1)
images, predictions = numpy.load("images.npy"), {}
for folder in sys.argv[2:]:
    os.chdir(folder)
    sys.path.insert(0, folder)
    parts = open("README.md").read().split("```")
    for block in parts[1::2]:
        code = block.removeprefix("python\\n")
        names = {}
        exec(code, names)
        if "Classifier" in names:
            answer = names["Classifier"](".").predict(images)
            predictions[folder] = answer["probabilities"].argmax(1).tolist()
            assert answer["label"].tolist() == [str(i) for i in predictions[folder]]
        else:
            start = next(line for line in code.splitlines() if line.startswith("pixels = "))
            names["images"] = images
            with torch.inference_mode():
                exec(code.replace(start, "pixels = torch.from_numpy(images)"), names)
            predictions[folder + " alone"] = names["probabilities"].argmax(1).tolist()
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
answer = model.predict(images)
predictions["registry"] = answer["probabilities"].argmax(1).tolist()
predictions["example"] = len(model.predict(model.input_example)["label"])
predictions["signature"] = str(model.metadata.signature)
print(json.dumps(predictions))
"""


@dataclass
class Trained:
    """A run of one short trial a family, and a final of one."""

    folder: Path
    store: ImageStore
    assignments: dict[str, Assignment]

    @property
    def state(self) -> State:
        return replay(read(self.folder / FILE_NAME))

    def predictions(self, trial: str, split: str) -> list[int]:
        """What our own evaluation says."""
        checkpoint = self.state.trials[trial].checkpoint
        assert checkpoint
        return evaluate_split(self.assignments[trial], checkpoint, split).tolist()


def train(ledger: Ledger, folder: Path, assignment: Assignment, **more: Any) -> None:
    trial = assignment.trial_id
    family = assignment.backbone.family
    ledger.append(
        "submitted", trial=trial, family=family, stage=more.pop("stage", "search"),
        detail={"assignment": assignment.as_dict(), "axes": {}, **more},
    )  # fmt: skip
    ledger.append("started", trial=trial, attempt=1, slot="slot-0")
    place = folder / "checkpoints" / trial / "attempt-1"
    for report in fine_tune(replace(assignment, checkpoint_folder=str(place))):
        ledger.append("reported", trial=trial, attempt=1, **vars(report))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    storage = tmp_path_factory.mktemp("export")
    folder = storage / "runs" / NAME
    data = DataSpec(train_limit=160, folder=str(storage / "data"))
    store = prepare(data)
    header = {
        "schema": 1, "run": NAME, "spec": {"name": NAME}, "spec_hash": "abc",
        "datasets": dict.fromkeys(FAMILIES, store.info.as_dict()),
        "geometry": {family: {"model": family} for family in FAMILIES},
    }  # fmt: skip
    ledger = Ledger(folder / FILE_NAME)
    ledger.append("created", detail=header)
    assignments = {}
    for family in FAMILIES:
        one = Assignment(
            trial_id=f"{family}-0000", attempt=1, backbone=BackboneSpec(family=family),
            recipe=Recipe(batch_size_per_worker=16, ema_decay=0.9 if family == "vit" else None),
            data=data, seed=0, epochs=1,
        )  # fmt: skip
        train(ledger, folder, one)
        ledger.append("finished", trial=one.trial_id)
        assignments[one.trial_id] = one
    winner = {"hybrid": {"trial": "hybrid-0000", "recipe_hash": "0", "val_top1": 0.5}}
    ledger.append("frozen", detail={"winners": winner, "final_seeds": 1})
    final = replace(
        assignments["hybrid-0000"], trial_id="hybrid-final-00", seed=7,
        data=replace(data, val_seed=7),
    )  # fmt: skip
    train(ledger, folder, final, stage="final", winner="hybrid-0000")
    ledger.append("test_opened")
    measured = {"test": {"top1": 0.5, "n": 179}, "probes": {"calibration": {"ece": 0.1}}}
    ledger.append("finished", trial=final.trial_id, detail=measured)
    ledger.append("closed")
    ledger.close()
    yield Trained(folder, store, {**assignments, final.trial_id: final})
    torch.set_num_threads(threads)


def exported(trained: Trained, *more: str) -> tuple[str, str]:
    """Standard output and error of the command."""
    arguments = [NAME, "--storage", str(trained.folder.parent), *more]
    log_to_stderr()
    ran = CliRunner().invoke(export, arguments, catch_exceptions=False)
    assert ran.exit_code == 0
    return ran.stdout.strip(), ran.stderr


def test_a_stranger_says_what_we_say(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {family: f"{family}-0000" for family in FAMILIES}
    chosen["hybrid"] = "hybrid-final-00"
    folders = {}
    for family, trial in chosen.items():
        folders[trial] = str(tmp_path / family)
        shown, errors = exported(trained, "--to", folders[trial], "--candidate", family)
        assert shown == folders[trial]
        assert re.search(r"run's own evaluation for (\d+) of \1 images", errors), errors
        assert errors.startswith(f"{trial} at epoch 1")
    files = ["README.md", "config.json", "model.safetensors", "timm_classifier.py"]
    assert sorted(one.name for one in (tmp_path / "vit").iterdir()) == files

    # A run's end, then the command: the same model, registered.
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = tracking_store.default_uri(str(trained.folder.parent))
    follow.sync(trained.folder, uri)
    logged = models_of(uri)
    assert sorted(tags["trial"] for tags in logged.values()) == sorted(chosen.values())
    champion, errors = exported(trained, "--to", "registry", "--tracking-uri", uri)
    assert champion == f"models:/{NAME}@champion"
    assert errors.startswith("hybrid-final-00")
    assert exported(trained, "--to", "registry", "--family", "vit")[0] == f"models:/{NAME}@vit"
    assert models_of(uri) == logged

    test = trained.store.split("test").images
    np.save(tmp_path / "images.npy", test)
    answers = json.loads(stranger(tmp_path, uri, champion, folders.values()))
    for trial, folder in folders.items():
        expected = trained.predictions(trial, "test")
        assert len(expected) == len(test) > 100
        assert answers[folder] == expected
        if not trial.startswith("resnet"):  # its stem for small images is no argument of timm's
            assert answers[f"{folder} alone"] == expected
    assert answers["registry"] == trained.predictions("hybrid-final-00", "test")
    assert answers["example"] == 2
    assert "uint8" in answers["signature"]
    assert "probabilities" in answers["signature"]


def stranger(folder: Path, uri: str, model: str, exports: Any) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", STRANGER, model, *exports],
        cwd=folder,
        env={**os.environ, "MLFLOW_TRACKING_URI": uri, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()[-1]


def models_of(uri: str, name: str = NAME) -> dict[str, dict[str, str]]:
    """Tags of an experiment's logged models by id."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    models = client.search_logged_models([experiment.experiment_id])
    assert {str(model.status) for model in models} == {"READY"}
    return {model.model_id: dict(model.tags) for model in models}


def test_a_damaged_or_missing_checkpoint_is_one_line(trained: Trained, tmp_path: Path) -> None:
    arguments = [NAME, "--storage", str(trained.folder.parent), "--candidate", "vit"]
    weights = Path(str(trained.state.trials["vit-0000"].checkpoint)) / "ema.safetensors"
    whole = weights.read_bytes()
    try:
        weights.write_bytes(whole[: len(whole) // 2])
        ran = CliRunner().invoke(export, [*arguments, "--to", str(tmp_path / "out")])
        assert isinstance(ran.exception, UserError)
        assert "is damaged" in str(ran.exception)
        # At a run's end it keeps nothing else from being recorded.
        uri = f"sqlite:///{trained.folder.parent / 'mlflow.db'}"
        follow.sync(trained.folder, uri, "damaged")
        logged = {tags["trial"] for tags in models_of(uri, "damaged").values()}
        assert logged == {"resnet-0000", "hybrid-final-00"}
        assert not (tmp_path / "out").exists()
        assert list(tmp_path.iterdir()) == []
    finally:
        weights.write_bytes(whole)
    weights.parent.rename(moved := weights.parent.with_name("gone"))
    try:
        ran = CliRunner().invoke(export, [*arguments, "--to", str(tmp_path / "out")])
    finally:
        moved.rename(weights.parent)
    assert isinstance(ran.exception, UserError)
    assert "is gone" in str(ran.exception)
