"""MLflow's client, cut down to what the mirror needs. With tracking_models all that imports mlflow.

Loading it takes seconds: it belongs into a process beside the run, never into the run's own.

Exported models in MLflow: logged under the trial that trained them, registered by name.

Plain client calls, no active run and no global tracking URI. What is logged holds no pickle: the
portable folder as data, its one Python file as code.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import mlflow.pyfunc
import numpy as np
import numpy.typing as npt
from mlflow.entities import LoggedModelOutput, Metric
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import Schema, TensorSpec

from orchestrator.tracking.view import MetricRow

# Our own loop retries: MLflow's would repeat a run's creation, and wait for minutes. Its talk and
# its usage reports to its makers are off. It reads these when it is imported.
for _name, _value in {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}.items():
    os.environ.setdefault(_name, _value)

from mlflow.entities import (  # noqa: E402
    Dataset,
    DatasetInput,
    InputTag,
    Param,
    Run,
    RunTag,
)
from mlflow.store.artifact.artifact_repository_registry import (  # noqa: E402
    get_artifact_repository,
)

from orchestrator.tracking.store import artifact_root, database_path  # noqa: E402
from orchestrator.tracking.view import milliseconds  # noqa: E402
from trainables.errors import one_line  # noqa: E402

MAX_METRICS = 800  # a request; MLflow takes 1000 entities, tags and params included
MAX_SEARCH = 1000
# Errors that come again however often the same request is sent.
PERMANENT = ("INVALID_PARAMETER_VALUE", "INVALID_STATE", "BAD_REQUEST")


class Outage(RuntimeError):
    """MLflow did not answer, or refused. ``permanent``: the same request would fail again;
    ``forgotten``: MLflow no longer knows the run, so it has to be made anew."""

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
    """What MLflow holds of one run already."""

    id: str
    artifact_uri: str
    status: str = "RUNNING"
    tags: dict[str, str] = field(default_factory=dict)
    params: set[str] = field(default_factory=set)
    epochs: int = 0
    artifacts: dict[str, Any] = field(default_factory=dict)
    has_datasets: bool = False


class Client:
    """One experiment of one store. Call it inside :func:`talking`."""

    def __init__(self, uri: str, experiment: str) -> None:
        self._uri = uri
        self.mlflow = _open(uri)
        self.experiment_id = self._experiment(experiment)

    def _experiment(self, name: str) -> str:
        found = self.mlflow.get_experiment_by_name(name)
        if found is None:
            root = artifact_root(self._uri)
            place = f"{root.as_uri()}/{quote(name, safe='')}" if root else None
            try:
                return str(self.mlflow.create_experiment(name, place))
            except MlflowException:  # another run was first
                found = self.mlflow.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            self.mlflow.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def find(self, tag: str, value: str, key: str) -> dict[str, MlflowRun]:
        """Runs whose ``tag`` is ``value`` by their tag ``key`` (``""`` without); of two for one
        key, which an answer lost on its way can make, the younger is deleted."""
        runs: list[Run] = []
        token: str | None = ""
        while token is not None:
            page = self.mlflow.search_runs(
                [self.experiment_id],
                f"tags.`{tag}` = '{value}'",
                max_results=MAX_SEARCH,
                page_token=token or None,
            )
            runs += page
            token = page.token or None
        held: dict[str, MlflowRun] = {}
        for run in sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id)):
            name = run.data.tags.get(key, "")
            if name in held:
                self.mlflow.delete_run(run.info.run_id)
            else:
                held[name] = _held(run)
        return held

    def create(self, name: str, tags: Mapping[str, str], at: float | None) -> MlflowRun:
        """A new run, begun at unix second ``at``."""
        start = milliseconds(at) if at is not None else None
        run = self.mlflow.create_run(self.experiment_id, start, dict(tags), name)
        return MlflowRun(id=run.info.run_id, artifact_uri=run.info.artifact_uri, tags=dict(tags))

    def log(
        self,
        held: MlflowRun,
        metrics: Sequence[MetricRow],
        params: Mapping[str, str],
        tags: Mapping[str, str],
    ) -> None:
        """Metrics, and what is new of params and tags: one request, none for nothing."""
        due_params = [Param(k, v) for k, v in params.items() if k not in held.params]
        due_tags = [RunTag(k, v) for k, v in tags.items() if held.tags.get(k) != v]
        rows = [Metric(*row) for row in metrics]
        while len(rows) > MAX_METRICS:
            self.mlflow.log_batch(held.id, metrics=rows[:MAX_METRICS])
            rows = rows[MAX_METRICS:]
        # MLflow writes a request's tags after its metrics: no tag tells of what is not there.
        self.mlflow.log_batch(held.id, metrics=rows, params=due_params, tags=due_tags)
        held.params |= {param.key for param in due_params}
        held.tags |= {tag.key: tag.value for tag in due_tags}

    def put_text(self, held: MlflowRun, name: str, text: str) -> None:
        """A text as artifact ``name``, unless it is there already."""
        if held.artifacts.get(name) == text:
            return
        folder, _, file = name.rpartition("/")
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / file
            path.write_text(text, encoding="utf-8")
            self._upload(held, path, folder or None)
        held.artifacts[name] = text

    def lacks(self, held: MlflowRun, path: Path) -> bool:
        """Whether ``path`` is a file that is not there in this version."""
        version = path.stat().st_mtime_ns if path.is_file() else None
        return version is not None and held.artifacts.get(path.name) != version

    def put_file(self, held: MlflowRun, path: Path) -> None:
        """A file as artifact."""
        version = path.stat().st_mtime_ns
        self._upload(held, path, None)
        held.artifacts[path.name] = version

    def _upload(self, held: MlflowRun, path: Path, folder: str | None) -> None:
        # Not log_artifact: that asks first where the run's artifacts lie, for every run.
        repository = get_artifact_repository(held.artifact_uri, tracking_uri=self._uri)
        repository.log_artifact(str(path), folder)

    def log_datasets(self, held: MlflowRun, datasets: Sequence[Mapping[str, str]]) -> None:
        """What the run trains on; the same again changes nothing."""
        context = [InputTag("mlflow.data.context", "training")]
        inputs = [
            DatasetInput(
                Dataset(
                    name=one["name"],
                    digest=one["digest"],
                    source_type="local",
                    source=json.dumps({"uri": one["source"]}),
                    profile=one["profile"],
                ),
                context,
            )
            for one in datasets
        ]
        if inputs:
            self.mlflow.log_inputs(held.id, inputs)
        held.has_datasets = True

    def set_status(self, held: MlflowRun, status: str, at: float | None) -> None:
        """``RUNNING``, or an end at unix second ``at``."""
        if status == "RUNNING":
            self.mlflow.update_run(held.id, status)
        else:
            end = milliseconds(at) if at is not None else None
            self.mlflow.set_terminated(held.id, status, end)
        held.status = status


def _held(run: Run) -> MlflowRun:
    tags = dict(run.data.tags)
    return MlflowRun(
        id=run.info.run_id,
        artifact_uri=run.info.artifact_uri,
        status=run.info.status,
        tags=tags,
        params=set(run.data.params),
        epochs=int(tags.get("epochs", 0)),
        has_datasets=bool(run.inputs and run.inputs.dataset_inputs),
    )


def _open(uri: str) -> MlflowClient:
    """A client whose store is there; of several processes one creates a new database's tables."""
    database = database_path(uri)
    if database is None:
        return MlflowClient(uri)
    database.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{database}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


CODE = "timm_classifier"
LIBRARIES = ("mlflow", "torch", "timm", "safetensors", "numpy")


def log_model(
    client: MlflowClient,
    experiment_id: str,
    run_id: str,
    folder: Path,
    *,
    name: str,
    example: npt.NDArray[np.uint8],
    tags: Mapping[str, str],
    metrics: Sequence[MetricRow],
    epoch: int,
) -> str:
    """Log the portable model in ``folder`` as an output of a run; its id.

    ``example`` is (N, H, W, 3) as the dataset stores images; ``metrics`` are rows of the run that
    describe the model too, which is of its ``epoch``.
    """
    made = client.create_logged_model(
        experiment_id, name=name, source_run_id=run_id, tags=dict(tags), model_type="classifier"
    )
    identity = str(made.model_id)
    client.log_outputs(run_id, [LoggedModelOutput(identity, step=epoch)])
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "model"
        mlflow.pyfunc.save_model(
            str(place),
            loader_module=CODE,
            data_path=str(folder),
            code_paths=[str(folder / f"{CODE}.py")],
            signature=_signature(folder),
            input_example=example,
            pip_requirements=[f"{one}=={importlib.metadata.version(one)}" for one in LIBRARIES],
            mlflow_model=Model(
                artifact_path=made.artifact_location,
                model_uuid=identity,
                run_id=run_id,
                model_id=identity,
            ),
        )
        client.log_model_artifacts(identity, str(place))
    client.finalize_logged_model(identity, "READY")
    rows = [Metric(*row, model_id=identity, run_id=run_id) for row in metrics]
    client.log_batch(run_id, metrics=rows)
    return identity


def _signature(folder: Path) -> ModelSignature:
    """uint8 images of any size in; labels and probabilities out."""
    classes = len(json.loads((folder / "config.json").read_text())["label_names"])
    label = TensorSpec(np.dtype(np.str_), (-1,), "label")
    probabilities = TensorSpec(np.dtype(np.float32), (-1, classes), "probabilities")
    images = TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))
    return ModelSignature(inputs=Schema([images]), outputs=Schema([label, probabilities]))


def register(
    client: MlflowClient,
    name: str,
    model_id: str,
    run_id: str,
    *,
    alias: str,
    tags: Mapping[str, Any],
) -> str:
    """A new version of the registered model ``name`` under ``alias``; the version's number.

    The version that this model has already is taken again.
    """
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # Not models:/ID: a local store looks that up wherever the process's global URI points.
    source = client.get_logged_model(model_id).artifact_location
    known = client.search_model_versions(f"name = '{name}'")
    versions = [one.version for one in known if one.source == source]
    if not versions:
        made = client.create_model_version(
            name, source, run_id, tags={k: str(v) for k, v in tags.items()}, model_id=model_id
        )
        versions = [made.version]
    client.set_registered_model_alias(name, alias, versions[0])
    return str(versions[0])
