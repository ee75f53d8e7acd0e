"""Each family's best model: as a folder that others can load, and in MLflow as an output of the
run that trained it. Loads mlflow only for the latter.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from orchestrator.compare.winners import SelectedModel, best_models
from orchestrator.ledger import retention
from orchestrator.ledger.state import State
from orchestrator.tracking import view
from trainables.config import Assignment
from trainables.errors import UserError, one_line
from trainables.storage.object_storage import origin
from trainables.storage.trial_files import fetch_checkpoint, name_of

if TYPE_CHECKING:
    from orchestrator.tracking.client import Client, MlflowRun

MODEL_TAG = "model"  # of a trial's run: the id of its logged model
EXAMPLE_IMAGES = 2

log = logging.getLogger(__name__)


def checkpoint_of(model: SelectedModel, run_folder: Path) -> Path:
    """The folder of the model's epoch, also where the run's folder was moved; brought here where
    the run is kept in object storage.

    Raises ``UserError`` where it is gone.
    """
    trial, remote = model.trial, origin(run_folder)
    recorded = trial.reports[model.epoch].checkpoint
    if remote and recorded:
        try:
            assignment = replace(trial.assignment, remote=remote)
            return Path(fetch_checkpoint(assignment, name_of(recorded)))
        except FileNotFoundError:
            pass
    elif recorded:
        kept = (retention.newest if trial.stage == "final" else retention.best)(run_folder, trial)
        if kept and Path(kept).name == Path(recorded).name:
            return Path(kept)
    raise UserError(
        f"only a checkpoint that is kept can be exported; that of {trial.trial}, epoch "
        f"{model.epoch}, is gone from {remote or run_folder}. Fix: --family OTHER, or reproduce "
        "the run"
    )


def write_model(state: State, model: SelectedModel, run_folder: Path, folder: Path) -> None:
    """Write the portable model into ``folder``: all of it, or nothing.

    Raises ``UserError`` where ``folder`` is in use or the checkpoint is gone or damaged.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"--to must name a folder that is new or empty; {folder} is not. Fix: --to OTHER"
        )
    checkpoint = checkpoint_of(model, run_folder)
    from trainables.export import folder as portable

    dataset = state.header.datasets[model.trial.family]
    facts = view.model_facts(state, model)
    test = ""
    if "test_top1" in facts:
        test = f", on {facts.get('test_images', 'the')} test images {facts['test_top1']:.4f}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        portable.write(
            temporary,
            checkpoint,
            model.trial.assignment,
            class_names=dataset.class_names,
            height=dataset.height,
            width=dataset.width,
            trained=facts,
            summary=f"Trial {facts['trial']} of {facts['run']}, epoch {facts['epoch']}, trained on "
            f"{facts['dataset']}: accuracy {facts['val_top1']:.4f} on validation{test}.",
        )
        temporary.chmod(0o755)  # mkdtemp's are private
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def log_best_models(
    client: Client, state: State, run_folder: Path, runs: Mapping[str, MlflowRun]
) -> None:
    """Log every family's best model that is not logged yet under its trial's run.

    Raises ``Outage``. What else is in the way of a model is logged as a warning: it must not keep
    anything from being recorded.
    """
    from orchestrator.tracking.client import Outage

    for family, model in best_models(state).items():
        run = runs.get(model.trial.trial)
        if run is None or MODEL_TAG in run.tags or not model.trial.checkpoint:
            continue
        try:
            log_model(client, state, model, run_folder, run)
        except Exception as error:
            if isinstance(error, Outage) and not error.permanent:
                raise
            log.warning(f"the best model of {family} is not logged: {one_line(error)}")


def log_model(
    client: Client, state: State, model: SelectedModel, run_folder: Path, run: MlflowRun
) -> str:
    """The id of the model in MLflow, logged now if it was not.

    Raises ``Outage``, and ``UserError`` as :func:`write_model` does.
    """
    from orchestrator.tracking.client import talking

    if MODEL_TAG in run.tags:
        return run.tags[MODEL_TAG]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        write_model(state, model, run_folder, folder)
        example = _example(model.trial.assignment, origin(run_folder))
        with talking():
            model_id = client.log_model(
                run,
                folder,
                name=f"{state.header.run}-{model.trial.family}",
                example=example,
                tags=view.model_tags(state, model),
                metrics=view.final_metrics(model.trial),
                epoch=model.epoch,
            )
            client.log(run, [], {}, {MODEL_TAG: model_id})
    return model_id


def register(
    state: State,
    model: SelectedModel,
    run_folder: Path,
    *,
    uri: str,
    experiment: str | None,
    alias: str,
) -> str | None:
    """Make the model a version of the registered model that has the run's name, under ``alias``;
    the version, or ``None`` where MLflow does not hold the trial yet.

    Raises ``UserError`` as :func:`write_model` does, and where MLflow fails.
    """
    from orchestrator.tracking.client import Client, Outage, talking

    name = str(state.header.run)
    try:
        with talking():
            client = Client(uri, experiment or name)
            run = client.runs_of(view.run_id(state)).get(model.trial.trial)
        if run is None:
            return None
        model_id = log_model(client, state, model, run_folder, run)
        with talking():
            tags = view.model_tags(state, model)
            return client.register(run, model_id, name=name, alias=alias, tags=tags)
    except Outage as outage:
        raise UserError(f"MLflow at {uri} failed: {outage}. Fix: try again") from outage


def _example(assignment: Assignment, remote: str | None) -> npt.NDArray[np.uint8]:
    """Validation images of the search, (N, H, W, 3); their store is where the run began."""
    from trainables.data.build import prepare

    store = prepare(replace(assignment.data, val_seed=None), remote=remote)
    return np.array(store.split("val").images[:EXAMPLE_IMAGES])
