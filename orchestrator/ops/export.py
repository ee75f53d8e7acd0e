"""The winner as a model that loads without this project; which one, ``compare.winners`` says."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.compare.winners import SelectedModel
from orchestrator.ledger import retention
from orchestrator.ledger.state import State
from trainables.config import Assignment
from trainables.errors import UserError
from trainables.storage import object_storage
from trainables.storage.trial_files import bring, name_of

WORST_AGREEMENT = 0.99  # of an exported model with the run's own evaluation


class Unchecked(UserError):
    """An exported model could not be compared with the run's own evaluation."""


def checkpoint_of(choice: SelectedModel, run_folder: Path) -> Path:
    """The folder of the choice's epoch, also where the run's folder was moved.

    Raises ``UserError`` where it is gone.
    """
    trial = choice.trial
    if remote := object_storage.origin(run_folder):
        return _fetched(choice, run_folder, remote)
    find = retention.newest if trial.stage == "final" else retention.best
    found, written = find(run_folder, trial), trial.reports[choice.epoch].get("checkpoint")
    if found and written and Path(found).name == Path(written).name:
        return Path(found)
    raise _gone(choice, run_folder)


def _fetched(choice: SelectedModel, run_folder: Path, remote: str) -> Path:
    written = choice.trial.reports[choice.epoch].get("checkpoint")
    assignment = replace(Assignment.from_dict(choice.trial.assignment), remote=remote)
    try:
        if written:
            return Path(bring(assignment, name_of(written)))
    except FileNotFoundError:
        pass
    raise _gone(choice, remote)


def _gone(choice: SelectedModel, place: object) -> UserError:
    return UserError(
        f"only a checkpoint that is kept can be exported; that of {choice.trial.trial}, epoch "
        f"{choice.epoch}, is gone from {place}. Fix: --family OTHER, or reproduce the run"
    )


def write(state: State, choice: SelectedModel, run_folder: Path, folder: Path) -> None:
    """Write the portable model into ``folder``: all of it, or nothing.

    Raises ``UserError`` where ``folder`` is in use or the checkpoint is gone or damaged.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"--to must name a folder that is new or empty; {folder} is not. Fix: --to OTHER"
        )
    checkpoint = checkpoint_of(choice, run_folder)
    from trainables.export import folder as portable

    trial = choice.trial
    info = state.header["datasets"][trial.family]
    trained = facts(state, choice)
    with _beside(folder) as temporary:
        portable.write(
            temporary,
            checkpoint,
            Assignment.from_dict(trial.assignment),
            class_names=info["class_names"],
            height=info["height"],
            width=info["width"],
            trained=trained,
            said=_sentence(trained),
        )


def facts(state: State, choice: SelectedModel) -> dict[str, Any]:
    """Where the model comes from and how good it was; unknown values are left out."""
    trial, header = choice.trial, state.header
    info = header["datasets"][trial.family]
    test = trial.outcome.get("test", {}) if trial.stage == "final" else {}
    known = {
        "run": header.get("run"),
        "trial": trial.trial,
        "family": trial.family,
        "epoch": choice.epoch,
        "dataset": info.get("name"),
        "dataset_hash": info.get("content_hash"),
        "val_top1": choice.val_top1,
        "test_top1": test.get("top1"),
        "test_images": test.get("n"),
        "recipe": trial.assignment.get("recipe"),
        "spec_hash": header.get("spec_hash"),
        "code_version": header.get("code_version"),
    }
    return {key: value for key, value in known.items() if value is not None}


def _sentence(trained: Mapping[str, Any]) -> str:
    test = ""
    if "test_top1" in trained:
        test = f", on {trained.get('test_images', 'the')} test images {trained['test_top1']:.4f}"
    return (
        f"Trial {trained['trial']} of {trained['run']}, epoch {trained['epoch']}, trained on "
        f"{trained['dataset']}: accuracy {trained['val_top1']:.4f} on validation{test}."
    )


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A folder that takes the place of ``folder`` once it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp's are private
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check(choice: SelectedModel, run_folder: Path, folder: Path) -> str:
    """Let both classify validation images: the exported model, and the run's own evaluation.

    Returns a sentence. Raises ``UserError`` where they disagree on more than one in a hundred,
    and ``Unchecked`` where the images or the first weights are no longer there.
    """
    from trainables.export.agreement import agreement

    assignment = Assignment.from_dict(choice.trial.assignment)
    assignment = replace(assignment, remote=object_storage.origin(run_folder))
    try:
        same, count = agreement(assignment, str(checkpoint_of(choice, run_folder)), folder)
    except UserError as error:
        raise Unchecked(*error.mistakes) from error
    if same < WORST_AGREEMENT * count:
        raise UserError(
            f"an exported model must classify as its run did; it does so for {same} of {count} "
            "validation images. This is a mistake of ours. Fix: report it, with config.json"
        )
    return f"checked: the same class as the run's own evaluation for {same} of {count} images"
