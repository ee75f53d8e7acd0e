"""MLflow's client, cut down to what the mirror needs: runs, their records, and logged models.

The only module that imports mlflow. Loading it takes seconds: it belongs into a process beside
the run, never into the run's own. Plain client calls, no active run and no global tracking URI.
A logged model holds no pickle: the portable folder as data, its one Python file as code.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient
from mlflow.types import Schema, TensorSpec

from orchestrator.tracking.store import artifact_root, database_path
from orchestrator.tracking.view import RUN_ID_TAG, DatasetView, MetricRow, milliseconds
from trainables.errors import one_line

MAX_METRICS = 800  # a request; MLflow takes 1000 entities, tags and params included
MAX_SEARCH = 1000
# Errors that come again however often the same request is sent.
PERMANENT = ("INVALID_PARAMETER_VALUE", "INVALID_STATE", "BAD_REQUEST")
MODEL_CODE = "timm_classifier"
MODEL_LIBRARIES = ("mlflow", "torch", "timm", "safetensors", "numpy")


class Outage(RuntimeError):
    """MLflow did not answer, or refused. ``permanent``: the same request would fail again;
    ``forgotten``: MLflow no longer knows the run, so it has to be created again."""

    def __init__(self, message: str, *, permanent: bool, forgotten: bool) -> None:
        super().__init__(message)
        self.permanent, self.forgotten = permanent, forgotten


@contextmanager
def talking() -> Iterator[None]:
    """Whatever goes wrong in talking to MLflow is an :class:`Outage`."""
    try:
        yield
    except (MlflowException, OSError) as error:
        code = getattr(error, "error_code", None)
        raise Outage(
            one_line(error)[:300],
            permanent=code in PERMANENT,
            forgotten=code == "RESOURCE_DOES_NOT_EXIST",
        ) from error


@dataclass
class MlflowRun:
    """What MLflow holds of one run already; ``artifacts`` are texts, or times of files."""

    id: str
    artifact_uri: str
    status: str = "RUNNING"
    tags: dict[str, str] = field(default_factory=dict)
    params: set[str] = field(default_factory=set)
    epochs: int = 0
    artifacts: dict[str, str | int] = field(default_factory=dict)
    has_datasets: bool = False


class Client:
    """One experiment of one store. Call it inside :func:`talking`."""

    def __init__(self, uri: str, experiment: str) -> None:
        self._uri = uri
        self._client = _open(uri)
        self._experiment_id = self._find_or_create_experiment(experiment)

    def _find_or_create_experiment(self, name: str) -> str:
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            root = artifact_root(self._uri)
            place = f"{root.as_uri()}/{quote(name, safe='')}" if root else None
            try:
                return str(self._client.create_experiment(name, place))
            except MlflowException:  # another run was first
                experiment = self._client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage == "deleted":
            self._client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)

    def runs_of(self, run_id: str) -> dict[str, MlflowRun]:
        """Our run's runs there by trial, the parent as ``""``; of two for one trial, which an
        answer lost on its way can make, the younger is deleted."""
        runs: list[Run] = []
        token: str | None = ""
        while token is not None:
            page = self._client.search_runs(
                [self._experiment_id],
                f"tags.`{RUN_ID_TAG}` = '{run_id}'",
                max_results=MAX_SEARCH,
                page_token=token or None,
            )
            runs += page
            token = page.token or None
        by_trial: dict[str, MlflowRun] = {}
        for run in sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id)):
            tags = dict(run.data.tags)
            trial = tags.get("trial", "")
            if trial in by_trial:
                self._client.delete_run(run.info.run_id)
                continue
            by_trial[trial] = MlflowRun(
                id=run.info.run_id,
                artifact_uri=run.info.artifact_uri,
                status=run.info.status,
                tags=tags,
                params=set(run.data.params),
                epochs=int(tags.get("epochs", 0)),
                has_datasets=bool(run.inputs and run.inputs.dataset_inputs),
            )
        return by_trial

    def create(self, name: str, tags: Mapping[str, str], at: float | None) -> MlflowRun:
        """A new run, begun at unix second ``at``."""
        start = milliseconds(at) if at is not None else None
        run = self._client.create_run(self._experiment_id, start, dict(tags), name)
        return MlflowRun(id=run.info.run_id, artifact_uri=run.info.artifact_uri, tags=dict(tags))

    def log(
        self,
        run: MlflowRun,
        metrics: Sequence[MetricRow],
        params: Mapping[str, str],
        tags: Mapping[str, str],
    ) -> None:
        """Metrics, and what is new of params and tags: one request, none for nothing."""
        new_params = [Param(k, v) for k, v in params.items() if k not in run.params]
        new_tags = [RunTag(k, v) for k, v in tags.items() if run.tags.get(k) != v]
        rows = [Metric(*row) for row in metrics]
        while len(rows) > MAX_METRICS:
            self._client.log_batch(run.id, metrics=rows[:MAX_METRICS])
            rows = rows[MAX_METRICS:]
        # MLflow writes a request's tags after its metrics: no tag tells of what is not there.
        self._client.log_batch(run.id, metrics=rows, params=new_params, tags=new_tags)
        run.params |= {param.key for param in new_params}
        run.tags |= {tag.key: tag.value for tag in new_tags}

    def put_text(self, run: MlflowRun, name: str, text: str) -> None:
        """A text as artifact ``name``, unless it is there already."""
        if run.artifacts.get(name) == text:
            return
        folder, _, file = name.rpartition("/")
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / file
            path.write_text(text, encoding="utf-8")
            self._upload(run, path, folder or None)
        run.artifacts[name] = text

    def lacks(self, run: MlflowRun, path: Path) -> bool:
        """Whether ``path`` is a file that is not there in this version."""
        return path.is_file() and run.artifacts.get(path.name) != path.stat().st_mtime_ns

    def put_file(self, run: MlflowRun, path: Path) -> None:
        """A file as artifact."""
        version = path.stat().st_mtime_ns
        self._upload(run, path, None)
        run.artifacts[path.name] = version

    def _upload(self, run: MlflowRun, path: Path, folder: str | None) -> None:
        # Not log_artifact: that asks first where the run's artifacts lie, for every run.
        repository = get_artifact_repository(run.artifact_uri, tracking_uri=self._uri)
        repository.log_artifact(str(path), folder)

    def log_datasets(self, run: MlflowRun, datasets: Sequence[DatasetView]) -> None:
        """What the run trains on; the same again changes nothing."""
        inputs = [
            DatasetInput(
                Dataset(
                    name=dataset.name,
                    digest=dataset.digest,
                    source_type="local",
                    source=json.dumps({"uri": dataset.source}),
                    profile=dataset.profile,
                ),
                [InputTag("mlflow.data.context", "training")],
            )
            for dataset in datasets
        ]
        if inputs:
            self._client.log_inputs(run.id, inputs)
        run.has_datasets = True

    def set_status(self, run: MlflowRun, status: str, at: float | None) -> None:
        """``RUNNING``, or an end at unix second ``at``."""
        if status == "RUNNING":
            self._client.update_run(run.id, status)
        else:
            end = milliseconds(at) if at is not None else None
            self._client.set_terminated(run.id, status, end)
        run.status = status

    def log_model(
        self,
        run: MlflowRun,
        folder: Path,
        *,
        name: str,
        example: npt.NDArray[np.uint8],
        tags: Mapping[str, str],
        metrics: Sequence[MetricRow],
        epoch: int,
    ) -> str:
        """Log the portable model in ``folder`` as an output of a run; its id.

        ``example`` is (N, H, W, 3) as the dataset stores images; ``metrics`` are rows of the run
        that describe the model too, which is of its ``epoch``.
        """
        logged = self._client.create_logged_model(
            self._experiment_id,
            name=name,
            source_run_id=run.id,
            tags=dict(tags),
            model_type="classifier",
        )
        model_id = str(logged.model_id)
        self._client.log_outputs(run.id, [LoggedModelOutput(model_id, step=epoch)])
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
        rows = [Metric(*row, model_id=model_id, run_id=run.id) for row in metrics]
        self._client.log_batch(run.id, metrics=rows)
        return model_id

    def register(
        self, run: MlflowRun, model_id: str, *, name: str, alias: str, tags: Mapping[str, str]
    ) -> str:
        """A new version of the registered model ``name`` under ``alias``; the version's number.

        The version that this model has already is taken again.
        """
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # Not models:/ID: a local store looks that up wherever the process's global URI points.
        source = self._client.get_logged_model(model_id).artifact_location
        existing = self._client.search_model_versions(f"name = '{name}'")
        versions = [model.version for model in existing if model.source == source]
        if not versions:
            created = self._client.create_model_version(
                name, source, run.id, tags=dict(tags), model_id=model_id
            )
            versions = [created.version]
        self._client.set_registered_model_alias(name, alias, versions[0])
        return str(versions[0])


def _open(uri: str) -> MlflowClient:
    """A client whose store is there; of several processes one creates a new database's tables."""
    database = database_path(uri)
    if database is None:
        return MlflowClient(uri)
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock"):
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def _signature(folder: Path) -> ModelSignature:
    """uint8 images of any size in; labels and probabilities out."""
    classes = len(json.loads((folder / "config.json").read_text())["label_names"])
    label = TensorSpec(np.dtype(np.str_), (-1,), "label")
    probabilities = TensorSpec(np.dtype(np.float32), (-1, classes), "probabilities")
    images = TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))
    return ModelSignature(inputs=Schema([images]), outputs=Schema([label, probabilities]))
