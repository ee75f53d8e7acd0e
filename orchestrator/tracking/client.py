"""MLflow's client, cut down to what the mirror needs: runs, their records, and logged models.

The only module that imports mlflow. Loading it takes seconds: it belongs into a process beside
the run, never into the run's own. Plain client calls, no active run and no global tracking URI.
A logged model holds no pickle: the portable folder as data, its one Python file as code.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from filelock import FileLock

# Our own loop retries: MLflow's would repeat a run's creation, and wait for minutes. Its talk and
# its usage reports to its makers are off. It reads these when it is imported.
os.environ.update(
    {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    | os.environ
)

import mlflow.pyfunc
from mlflow import entities
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import Schema, TensorSpec

from orchestrator.compare.winners import SelectedModel
from orchestrator.ledger.state import State
from orchestrator.tracking import view
from orchestrator.tracking.store import artifact_root, connection_uri, database_path, refusal
from trainables.errors import UserError, one_line

MAX_METRICS = 800  # a request; MLflow takes 1000 entities, tags and params included
# Errors that come again however often the same request is sent.
PERMANENT = ("INVALID_PARAMETER_VALUE", "INVALID_STATE", "BAD_REQUEST")
DATABASE_LIBRARIES = ("sqlalchemy", "alembic")  # their errors come through MLflow as they are
PROBE_TAG, PROBE_FILE = "orchestrator.probe", "probe.txt"
MODEL_CODE = "timm_classifier"
MODEL_ID = re.compile("m-[0-9a-f]{32}")  # as MLflow gives them to logged models
MODEL_LIBRARIES = ("mlflow", "torch", "timm", "safetensors", "numpy")


class Outage(RuntimeError):
    """MLflow did not answer, or refused. ``permanent``: the same request would fail again;
    ``forgotten``: MLflow no longer knows the run, so it has to be created again."""

    def __init__(self, error: Exception) -> None:
        super().__init__(one_line(error)[:300])
        code = getattr(error, "error_code", None)
        self.permanent, self.forgotten = code in PERMANENT, code == "RESOURCE_DOES_NOT_EXIST"


@contextmanager
def talking(uri: str) -> Iterator[None]:
    """Whatever goes wrong in talking to MLflow at ``uri`` is an :class:`Outage`; a ``UserError``
    where no waiting mends it."""
    try:
        yield
    except ImportError as error:
        raise UserError(str(refusal(uri, "", error.name or one_line(error)))) from error
    except Exception as error:
        library = type(error).__module__.partition(".")[0]
        if not isinstance(error, MlflowException | OSError) and library not in DATABASE_LIBRARIES:
            raise
        line = refusal(uri, one_line(error))
        raise (Outage(error) if line is None else UserError(line)) from error


def recorded_run(uri: str, experiment: str, run_id: str) -> tuple[str, dict[str, str]] | None:
    """Where MLflow at ``uri`` has our run: the experiment's id, and MLflow's run ids by trial;
    ``None`` where it does not. Nothing is written. Call it inside :func:`talking`."""
    client = MlflowClient(connection_uri(uri))
    present = client.get_experiment_by_name(experiment)
    if present is None:
        return None
    experiment_id = str(present.experiment_id)
    runs = _all_runs(client, experiment_id, run_id)
    by_trial = {run.data.tags.get("trial", ""): str(run.info.run_id) for run in runs}
    if not by_trial:
        return None
    return experiment_id, {trial: run for trial, run in by_trial.items() if trial}


def _all_runs(client: MlflowClient, experiment_id: str, run_id: str) -> list[entities.Run]:
    query = [experiment_id], f"tags.`{view.RUN_ID_TAG}` = '{run_id}'"
    page = client.search_runs(*query)
    runs = list(page)
    while page.token:
        page = client.search_runs(*query, page_token=page.token)
        runs += page
    return runs


class Probe:
    """The run that shows whether MLflow at ``uri`` takes one: in ``experiment`` where it exists,
    which ``is_own`` says, else in the newest one. Call it inside :func:`talking`."""

    def __init__(self, uri: str, experiment: str | None) -> None:
        with _creating(uri):
            self._client = MlflowClient(connection_uri(uri))
            own = self._client.get_experiment_by_name(experiment) if experiment else None
        self.is_own = own is not None and own.lifecycle_stage == "active"
        newest = self._client.search_experiments(max_results=1)
        self._experiment = own if self.is_own else next(iter(newest), None)

    @property
    def artifact_folder(self) -> str | None:
        """Where the experiment's artifacts go; ``None`` in a store without any experiment."""
        return str(self._experiment.artifact_location) if self._experiment else None

    def write_and_delete(self) -> None:
        """Write and delete one run with one artifact. It is the same run every time, in MLflow's
        bin meanwhile, which ``mlflow gc`` empties."""
        if self._experiment is None:
            return
        experiment_id, client = self._experiment.experiment_id, self._client
        query = [experiment_id], f"tags.`{PROBE_TAG}` = 'yes'"
        deleted = client.search_runs(*query, entities.ViewType.DELETED_ONLY, max_results=1)
        if deleted:
            run = deleted[0]
            client.restore_run(run.info.run_id)
        else:
            run = client.create_run(experiment_id, tags={PROBE_TAG: "yes"}, run_name="probe")
        try:
            client.log_text(run.info.run_id, "a run can be recorded here", PROBE_FILE)
            if PROBE_FILE not in {file.path for file in client.list_artifacts(run.info.run_id)}:
                raise MlflowException(f"an artifact did not arrive at {run.info.artifact_uri}")
        finally:
            client.delete_run(run.info.run_id)


class MlflowRun:
    """What MLflow holds of one run already; of ``artifacts``, the texts that we put there."""

    def __init__(self, run: entities.Run) -> None:
        self.id, self.status = str(run.info.run_id), str(run.info.status)
        self.tags, self.params = dict(run.data.tags), set(run.data.params)
        former = self.tags.get(view.FORMER_MODEL_TAG, "")
        # To be written under today's name before another value takes the former one's place.
        self.moved_tags = {view.MODEL_TAG: former} if MODEL_ID.fullmatch(former) else {}
        self.has_datasets = bool(run.inputs and run.inputs.dataset_inputs)
        self.artifacts: dict[str, str] = {}

    @property
    def logged_model(self) -> str | None:
        """The id of the model that was logged as the run's output."""
        return self.tags.get(view.MODEL_TAG) or self.moved_tags.get(view.MODEL_TAG)

    @property
    def epochs(self) -> int:
        """Up to this one, the metrics of all epochs are there."""
        return int(self.tags.get("epochs", 0))


class Client:
    """One experiment of the store at ``uri``. Call it inside :func:`talking`."""

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri = uri
        with _creating(uri):
            self._client = MlflowClient(connection_uri(uri))
            present = self._client.get_experiment_by_name(experiment)
        if present is None:
            root = artifact_root(uri)
            place = f"{root.as_uri()}/{quote(experiment, safe='')}" if root else None
            try:
                self._client.create_experiment(experiment, place)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another run was first
                    raise
            present = self._client.get_experiment_by_name(experiment)
        self._experiment_id = str(present.experiment_id)
        if present.lifecycle_stage == "deleted":
            self._client.restore_experiment(self._experiment_id)

    def runs_of(self, run_id: str) -> dict[str, MlflowRun]:
        """Our run's runs there by trial, a screen's by candidate, the parent as ``""``; of two for
        one trial, which an answer lost on its way can make, the younger is deleted."""
        runs = _all_runs(self._client, self._experiment_id, run_id)
        by_trial: dict[str, MlflowRun] = {}
        for run in sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id)):
            trial = run.data.tags.get("trial") or run.data.tags.get(view.CANDIDATE_TAG, "")
            if trial in by_trial:
                self._client.delete_run(run.info.run_id)
            else:
                by_trial[trial] = MlflowRun(run)
        return by_trial

    def create(self, name: str, tags: Mapping[str, str], at: float | None) -> MlflowRun:
        """A new run, begun at unix second ``at``."""
        start = view.milliseconds(at) if at else None
        return MlflowRun(self._client.create_run(self._experiment_id, start, dict(tags), name))

    def log(
        self,
        run: MlflowRun,
        metrics: Sequence[view.MetricRow],
        params: Mapping[str, str],
        tags: Mapping[str, str],
    ) -> None:
        """Metrics, and what is new of params and tags: one request, none for nothing."""
        new_params = {k: v for k, v in params.items() if k not in run.params}
        tags = {**run.moved_tags, **tags}
        new_tags = {k: v for k, v in tags.items() if run.tags.get(k) != v}
        rows = [entities.Metric(*row) for row in metrics]
        if len(rows) > MAX_METRICS:  # several requests
            self._client.log_batch(run.id, metrics=rows)
            rows = []
        # MLflow writes a request's tags after its metrics: no tag tells of what is not there.
        self._client.log_batch(
            run.id,
            metrics=rows,
            params=[entities.Param(*param) for param in new_params.items()],
            tags=[entities.RunTag(*tag) for tag in new_tags.items()],
        )
        run.params |= new_params.keys()
        run.tags |= new_tags

    def put(self, run: MlflowRun, name: str, content: object) -> None:
        """A text, or a document as JSON, as artifact ``name``, unless it is there already."""
        text = content if isinstance(content, str) else json.dumps(content, indent=1, default=str)
        if run.artifacts.get(name) != text:
            self._client.log_text(run.id, text, name)
            run.artifacts[name] = text

    def log_datasets(self, run: MlflowRun, datasets: Sequence[Mapping[str, str]]) -> None:
        """What the run trains on, as :func:`view.datasets` says it; the same again changes
        nothing."""
        training = [entities.InputTag("mlflow.data.context", "training")]
        if datasets:
            inputs = [
                entities.DatasetInput(entities.Dataset(**dataset), training) for dataset in datasets
            ]
            self._client.log_inputs(run.id, inputs)
        run.has_datasets = True

    def set_status(self, run: MlflowRun, status: str, at: float | None) -> None:
        """``RUNNING``, or an end at unix second ``at``."""
        if status == "RUNNING":
            self._client.update_run(run.id, status)
        else:
            self._client.set_terminated(run.id, status, view.milliseconds(at) if at else None)
        run.status = status

    def log_model(
        self,
        run: MlflowRun,
        folder: Path,
        example: npt.NDArray[np.uint8],
        state: State,
        model: SelectedModel,
    ) -> None:
        """Log the portable model in ``folder`` as an output of its trial's run, with the trial's
        final metrics. ``example`` is (N, H, W, 3) as the dataset stores images."""
        logged = self._client.create_logged_model(
            self._experiment_id,
            # MLflow allows no dots here, which runs and candidates may have.
            name=f"{state.header.run}-{model.trial.candidate}".replace(".", "-"),
            source_run_id=run.id,
            tags=view.model_tags(state, model),
            model_type="classifier",
        )
        model_id = str(logged.model_id)
        self._client.log_outputs(run.id, [entities.LoggedModelOutput(model_id, step=model.epoch)])
        with tempfile.TemporaryDirectory() as scratch:
            place = str(Path(scratch) / "model")
            mlflow.pyfunc.save_model(
                place,
                loader_module=MODEL_CODE,
                data_path=str(folder),
                code_paths=[str(folder / f"{MODEL_CODE}.py")],
                signature=_signature(folder),
                input_example=example,
                pip_requirements=[
                    f"{library}=={importlib.metadata.version(library)}"
                    for library in MODEL_LIBRARIES
                ],
                mlflow_model=Model(
                    artifact_path=logged.artifact_location,
                    model_uuid=model_id,
                    run_id=run.id,
                    model_id=model_id,
                ),
            )
            self._client.log_model_artifacts(model_id, place)
        self._client.finalize_logged_model(model_id, "READY")
        rows = view.final_metrics(model.trial) + view.speed_metrics(model.trial)
        metrics = [entities.Metric(*row, model_id=model_id, run_id=run.id) for row in rows]
        self._client.log_batch(run.id, metrics=metrics)
        self.log(run, [], {}, {view.MODEL_TAG: model_id})

    def register(self, run: MlflowRun, name: str, alias: str, tags: Mapping[str, str]) -> str:
        """Make the run's logged model a version of the registered model ``name``, under ``alias``;
        the version's number. The version that this model has already is taken again."""
        if not self._client.search_registered_models(f"name = '{name}'"):
            self._client.create_registered_model(name)
        model_id = run.logged_model
        # Not models:/ID: a local store looks that up wherever the process's global URI points.
        source = self._client.get_logged_model(model_id).artifact_location
        versions = self._client.search_model_versions(f"name = '{name}'")
        version = next((model for model in versions if model.source == source), None)
        if version is None:
            version = self._client.create_model_version(
                name, source, run.id, tags=dict(tags), model_id=model_id
            )
        self._client.set_registered_model_alias(name, alias, version.version)
        return str(version.version)


def _creating(uri: str) -> AbstractContextManager[object]:
    """Of several processes one creates a new database's tables."""
    database = database_path(uri)
    if database is None:
        return nullcontext()
    database.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{database}.lock")


def _signature(folder: Path) -> ModelSignature:
    """uint8 images of any size in; labels and probabilities out."""
    classes = len(json.loads((folder / "config.json").read_text())["label_names"])
    label = TensorSpec(np.dtype(np.str_), (-1,), "label")
    probabilities = TensorSpec(np.dtype(np.float32), (-1, classes), "probabilities")
    images = TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))
    return ModelSignature(inputs=Schema([images]), outputs=Schema([label, probabilities]))
