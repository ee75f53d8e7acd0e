"""Exported models in MLflow: logged under the trial that trained them, registered by name.

Plain client calls, no active run and no global tracking URI. What is logged holds no pickle: the
portable folder as data, its one Python file as code.
"""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import numpy.typing as npt
from mlflow.entities import LoggedModelOutput, Metric
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import Schema, TensorSpec

from orchestrator.tracking_view import MetricRow

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
