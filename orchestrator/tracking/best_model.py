"""Each family's best model in MLflow, as an output of the run that trained it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from orchestrator.compare.winners import SelectedModel, best_models
from orchestrator.ledger.state import State
from orchestrator.ops import export
from orchestrator.tracking import view
from orchestrator.tracking.client import Client, MlflowRun, Outage, talking
from trainables.config import Assignment
from trainables.errors import one_line
from trainables.storage.object_storage import origin

MODEL_TAG = "model"  # of a trial's run: the id of its logged model
EXAMPLE_IMAGES = 2


def log_best(
    client: Client,
    state: State,
    run_folder: Path,
    held: Mapping[str, MlflowRun],
    say: Callable[[str], None],
) -> None:
    """Log every family's best model that is not logged yet. Raises ``Outage``; what else is in
    the way of a model is said: it must not keep anything from being recorded."""
    for family, choice in best_models(state).items():
        run = held.get(choice.trial.trial)
        if run is None or MODEL_TAG in run.tags or not choice.trial.checkpoint:
            continue
        try:
            log_choice(client, state, choice, run_folder, run)
        except Exception as error:
            if isinstance(error, Outage) and not error.permanent:
                raise
            say(f"the best model of {family} is not logged: {one_line(error)}")


def log_choice(
    client: Client, state: State, choice: SelectedModel, run_folder: Path, held: MlflowRun
) -> str:
    """The id of the choice's model in MLflow, logged now if it was not.

    Raises ``Outage``, and ``UserError`` as :func:`orchestrator.ops.export.write` does.
    """
    if MODEL_TAG in held.tags:
        return held.tags[MODEL_TAG]
    from orchestrator.tracking import client as mlflow_client

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        export.write(state, choice, run_folder, folder)
        example = _example(Assignment.from_dict(choice.trial.assignment), origin(run_folder))
        with talking():
            model = mlflow_client.log_model(
                client.mlflow,
                client.experiment_id,
                held.id,
                folder,
                name=f"{state.header['run']}-{choice.trial.family}",
                example=example,
                tags=model_tags(state, choice),
                metrics=view.final_metrics(choice.trial),
                epoch=choice.epoch,
            )
            client.log(held, [], {}, {MODEL_TAG: model})
    return model


def run_of(
    state: State, choice: SelectedModel, uri: str, experiment: str | None
) -> tuple[Client, MlflowRun | None]:
    """MLflow's client and the run of the choice's trial there, if it has one. Raises ``Outage``."""
    with talking():
        client = Client(uri, experiment or str(state.header["run"]))
        runs = client.find(view.RUN_ID_TAG, view.run_id(state), "trial")
    return client, runs.get(choice.trial.trial)


def register(
    client: Client,
    held: MlflowRun,
    state: State,
    choice: SelectedModel,
    run_folder: Path,
    *,
    alias: str,
) -> str:
    """Make the choice's model a version of the registered model that has the run's name, under
    ``alias``; the version. Raises as :func:`log_choice` does."""
    from orchestrator.tracking import client as mlflow_client

    model = log_choice(client, state, choice, run_folder, held)
    with talking():
        return mlflow_client.register(
            client.mlflow,
            str(state.header["run"]),
            model,
            held.id,
            alias=alias,
            tags=model_tags(state, choice),
        )


def model_tags(state: State, choice: SelectedModel) -> dict[str, str]:
    """Tags of a logged model and of its registered versions."""
    told = {key: value for key, value in export.facts(state, choice).items() if key != "recipe"}
    return view.texts({view.RUN_ID_TAG: view.run_id(state), **told}, view.MAX_TAG)


def _example(assignment: Assignment, remote: str | None) -> npt.NDArray[np.uint8]:
    """Validation images of the search, (N, H, W, 3); their store is where the run began."""
    from trainables.data.build import prepare

    store = prepare(replace(assignment.data, val_seed=None), remote=remote)
    return np.array(store.split("val").images[:EXAMPLE_IMAGES])
