"""``orchestrator export``: the winner as a folder or a registered model, checked against the run.

Which model that is, ``compare.winners`` says; how it is written, ``tracking.best_model``.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from orchestrator.compare.winners import SelectedModel
from orchestrator.ledger.state import State
from orchestrator.tracking import best_model, follow, store
from orchestrator.tracking.best_model import checkpoint_of, write_model
from trainables.errors import UserError, raise_if_any
from trainables.storage import object_storage

WORST_AGREEMENT = 0.99  # of an exported model with the run's own evaluation

log = logging.getLogger(__name__)


def export_to_folder(state: State, model: SelectedModel, run_folder: Path, folder: Path) -> None:
    """Write the portable model into ``folder``, and check it.

    Raises ``UserError`` as :func:`write_model` and :func:`check` do.
    """
    write_model(state, model, run_folder, folder)
    log.info(check(model, run_folder, folder))


def export_to_registry(
    state: State,
    model: SelectedModel,
    run_folder: Path,
    *,
    storage: str,
    uri: str | None,
    alias: str,
) -> tuple[str, str]:
    """Check the portable model, and register it in MLflow under the run's name and ``alias``, at
    ``uri`` or else where the run was recorded; the URI, and the model's version.

    Raises ``UserError``, also where MLflow fails.
    """
    uri = uri or state.spec.tracking_uri or store.default_uri(storage)
    raise_if_any(store.check(uri))
    with tempfile.TemporaryDirectory() as scratch:
        export_to_folder(state, model, run_folder, Path(scratch) / "model")
    experiment = state.spec.experiment
    register = partial(
        best_model.register, state, model, run_folder, uri=uri, experiment=experiment, alias=alias
    )
    version = register()
    if version is None:
        follow.sync(run_folder, uri, experiment)
        version = register()
    assert version is not None
    return uri, version


def check(model: SelectedModel, run_folder: Path, folder: Path) -> str:
    """Let both classify validation images: the exported model, and the run's own evaluation.

    Returns a sentence; a warning where the images or the first weights are no longer there.
    Raises ``UserError`` where they disagree on more than one in a hundred.
    """
    from trainables.export.folder import agreement

    assignment = model.trial.assignment
    assignment = replace(assignment, remote=object_storage.origin(run_folder))
    try:
        same, count = agreement(assignment, str(checkpoint_of(model, run_folder)), folder)
    except UserError as error:
        return f"warning: not checked against the run's own evaluation: {error.mistakes[0]}"
    if same < WORST_AGREEMENT * count:
        raise UserError(
            f"an exported model must classify as its run did; it does so for {same} of {count} "
            "validation images. This is a mistake of ours. Fix: report it, with config.json"
        )
    return f"checked: the same class as the run's own evaluation for {same} of {count} images"
