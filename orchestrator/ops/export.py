"""The winner as a model that loads without this project.

Chosen by validation alone: among the finals where there are any, else among the search trials
that finished. The test split is read by nothing here.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from orchestrator.engine import finals
from orchestrator.ledger import retention
from orchestrator.ledger.state import State, TrialState
from trainables.config import Assignment
from trainables.errors import UserError
from trainables.storage import object_storage
from trainables.storage.trial_files import bring, name_of

WORST_AGREEMENT = 0.99  # of an exported model with the run's own evaluation


class Unchecked(UserError):
    """An exported model could not be compared with the run's own evaluation."""


@dataclass(frozen=True, kw_only=True)
class SelectedModel:
    """A trial and the epoch of it that is taken; ``why`` is a sentence for people."""

    trial: TrialState
    epoch: int
    val_top1: float
    why: str


def choose(state: State, family: str | None = None) -> SelectedModel:
    """The best model of the run, or of one ``family``.

    A final is taken as it met the test split, at its last epoch, hence compared there; the family
    is the one whose finals are best on average. A search trial is taken at its best epoch.
    Raises ``UserError`` where the family is unknown or has no finished trial.
    """
    found = best_of_each(state)
    known = list(dict.fromkeys(trial.family for trial in state.trials.values()))
    name = state.header.get("run")
    if family is not None and family not in known:
        raise UserError(
            f"--family must be one of {', '.join(known)}; got {family!r}. Fix: --family {known[0]}"
            if known
            else f"the run {name} has no trial yet. Fix: orchestrator status {name}"
        )
    if family is not None:
        found = {one: choice for one, choice in found.items() if one == family}
    if not found:
        of = f"no trial of {family}" if family else "none of its trials"
        raise UserError(
            f"a trial must have finished to be exported; {of} in {name} has. "
            f"Fix: orchestrator status {name}"
        )
    finalists = {one: _finals(state, one) for one in found}
    rated = {one: fmean(map(_last, trials)) for one, trials in finalists.items() if trials}
    if family is None and rated:
        best = max(rated, key=lambda one: rated[one])
        others = f"; {best} has the best mean of {len(rated)} families" if len(rated) > 1 else ""
    else:
        best = max(found, key=lambda one: found[one].val_top1)
        others = f", and of {len(found)} families" if len(found) > 1 else ""
    return replace(found[best], why=found[best].why + others)


def best_of_each(state: State) -> dict[str, SelectedModel]:
    """Each family's best final, or its best search trial where it has no final."""
    chosen = {}
    for family, trial in finals.winners(state).items():
        ended = _finals(state, family)
        if ended:
            trial = max(ended, key=_last)
            epoch, value = trial.epoch, _last(trial)
            among = f"{len(ended)} finals of {family}"
        else:
            best, at = trial.best()
            epoch, value = at or 0, best or 0.0
            among = f"the finished search trials of {family}"
        why = f"{trial.trial} at epoch {epoch}: the best of {among} on validation, {value:.4f}"
        chosen[family] = SelectedModel(trial=trial, epoch=epoch, val_top1=value, why=why)
    return chosen


def _finals(state: State, family: str) -> list[TrialState]:
    """Finished finals of the winner that was frozen last."""
    winner = state.frozen.get("winners", {}).get(family, {}).get("trial")
    return [
        trial
        for trial in state.trials.values()
        if trial.stage == "final"
        and trial.status == "finished"
        and trial.winner == winner
        and math.isfinite(_last(trial))
    ]


def _last(trial: TrialState) -> float:
    last = trial.reports.get(trial.epoch, {"metrics": {}})
    return float(last["metrics"].get("val_top1", math.nan))


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
