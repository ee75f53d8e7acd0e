"""A candidate's best model as a folder that others can load, checked against the run, and in MLflow
as an output of the trial that trained it. Loads mlflow only for the latter.

Which model that is, ``compare.winners`` says.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import uuid
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.compare.winners import SelectedModel
from orchestrator.ledger.retention import trial_folder
from orchestrator.ledger.state import State
from orchestrator.tracking import view
from trainables.errors import UserError
from trainables.storage.object_storage import origin
from trainables.storage.trial_files import checkpoint_path, fetch_checkpoint, name_of

if TYPE_CHECKING:
    from orchestrator.tracking.client import Client, MlflowRun

EXAMPLE_IMAGES = 2
WORST_AGREEMENT = 0.99  # of an exported model with the run's own evaluation

log = logging.getLogger(__name__)


def checkpoint_of(model: SelectedModel, run_folder: Path) -> Path:
    """The folder of the model's epoch, also where the run's folder was moved; brought here where
    the run is kept in object storage.

    Raises ``UserError`` where it is gone.
    """
    trial, remote = model.trial, origin(run_folder)
    recorded = trial.reports[model.epoch].checkpoint
    if recorded and remote:
        with suppress(FileNotFoundError):
            assignment = replace(trial.assignment, remote=remote)
            return Path(fetch_checkpoint(assignment, name_of(recorded)))
    elif recorded:
        place = checkpoint_path(trial_folder(run_folder, trial.trial), recorded)
        if place.is_dir():
            return place
    raise UserError(
        f"only a checkpoint that is kept can be exported; that of {trial.trial}, epoch "
        f"{model.epoch}, is gone from {remote or run_folder}. Fix: --candidate OTHER, or reproduce "
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

    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    temporary.mkdir(parents=True)
    try:
        portable.write(
            temporary,
            checkpoint,
            model.trial.assignment,
            dataset=state.header.datasets[model.trial.candidate],
            trained=view.model_facts(state, model),
        )
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def export_to_folder(state: State, model: SelectedModel, run_folder: Path, folder: Path) -> None:
    """Write the portable model into ``folder``, and let it and the run's own evaluation classify
    validation images; a warning where these or the first weights are no longer there.

    Raises ``UserError`` as :func:`write_model` does, and where the two disagree on more than one in
    a hundred.
    """
    write_model(state, model, run_folder, folder)
    from trainables.export.folder import agreement

    assignment = replace(model.trial.assignment, remote=origin(run_folder))
    try:
        same, count = agreement(assignment, str(checkpoint_of(model, run_folder)), folder)
    except UserError as error:
        log.info(f"warning: not checked against the run's own evaluation: {error.mistakes[0]}")
        return
    if same < WORST_AGREEMENT * count:
        raise UserError(
            f"an exported model must classify as its run did; it does so for {same} of {count} "
            "validation images. This is a mistake of ours. Fix: report it, with config.json"
        )
    log.info(f"checked: the same class as the run's own evaluation for {same} of {count} images")


def log_model(
    client: Client, run: MlflowRun, state: State, model: SelectedModel, run_folder: Path
) -> None:
    """Make the model an output of its trial's ``run``, unless that has one.

    Raises ``Outage``, and ``UserError`` as :func:`write_model` does.
    """
    from orchestrator.tracking.client import talking
    from trainables.data.build import prepare

    if run.logged_model:
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        write_model(state, model, run_folder, folder)
        # The search's validation images; their store is where the run began.
        data = replace(model.trial.assignment.data, val_seed=None)
        images = prepare(data, remote=origin(run_folder)).split("val").images
        with talking(client.uri):
            client.log_model(run, folder, np.array(images[:EXAMPLE_IMAGES]), state, model)
