"""MLflow's client, cut down to what the mirror needs. With tracking_models all that imports mlflow.

Loading it takes seconds: it belongs into a process beside the run, never into the run's own.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

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
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.store.artifact.artifact_repository_registry import (  # noqa: E402
    get_artifact_repository,
)
from mlflow.tracking import MlflowClient  # noqa: E402

from orchestrator.tracking_store import artifact_root, database_path  # noqa: E402
from orchestrator.tracking_view import MetricRow, milliseconds  # noqa: E402
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
class Held:
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

    def find(self, tag: str, value: str, key: str) -> dict[str, Held]:
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
        held: dict[str, Held] = {}
        for run in sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id)):
            name = run.data.tags.get(key, "")
            if name in held:
                self.mlflow.delete_run(run.info.run_id)
            else:
                held[name] = _held(run)
        return held

    def create(self, name: str, tags: Mapping[str, str], at: float | None) -> Held:
        """A new run, begun at unix second ``at``."""
        start = milliseconds(at) if at is not None else None
        run = self.mlflow.create_run(self.experiment_id, start, dict(tags), name)
        return Held(id=run.info.run_id, artifact_uri=run.info.artifact_uri, tags=dict(tags))

    def log(
        self,
        held: Held,
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

    def put_text(self, held: Held, name: str, text: str) -> None:
        """A text as artifact ``name``, unless it is there already."""
        if held.artifacts.get(name) == text:
            return
        folder, _, file = name.rpartition("/")
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / file
            path.write_text(text, encoding="utf-8")
            self._upload(held, path, folder or None)
        held.artifacts[name] = text

    def lacks(self, held: Held, path: Path) -> bool:
        """Whether ``path`` is a file that is not there in this version."""
        version = path.stat().st_mtime_ns if path.is_file() else None
        return version is not None and held.artifacts.get(path.name) != version

    def put_file(self, held: Held, path: Path) -> None:
        """A file as artifact."""
        version = path.stat().st_mtime_ns
        self._upload(held, path, None)
        held.artifacts[path.name] = version

    def _upload(self, held: Held, path: Path, folder: str | None) -> None:
        # Not log_artifact: that asks first where the run's artifacts lie, for every run.
        repository = get_artifact_repository(held.artifact_uri, tracking_uri=self._uri)
        repository.log_artifact(str(path), folder)

    def log_datasets(self, held: Held, datasets: Sequence[Mapping[str, str]]) -> None:
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

    def set_status(self, held: Held, status: str, at: float | None) -> None:
        """``RUNNING``, or an end at unix second ``at``."""
        if status == "RUNNING":
            self.mlflow.update_run(held.id, status)
        else:
            end = milliseconds(at) if at is not None else None
            self.mlflow.set_terminated(held.id, status, end)
        held.status = status


def _held(run: Run) -> Held:
    tags = dict(run.data.tags)
    return Held(
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
