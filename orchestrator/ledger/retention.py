"""Which checkpoints of a run stay on disk.

==================================  ==============================================================
a trial that has not ended          its best, and its newest, from which it resumes
finished in the search              its best; when the run has closed, only its search's winner's
a finished final                    its newest: the weights that met the test split
pruned, failed                      none
==================================  ==============================================================

Best is by the metric that the run is judged by, on validation. An audited or a paused trial has
not ended. A winner once beaten never wins again, however many
trials are added, and finals are trained from scratch, so nothing that goes is ever asked for.

The worker removes, after each report that is on record and when it lets a trial go; nobody else
writes there meanwhile. The dispatcher removes for trials that end with no slot. What crashes
leave behind goes when the run is next at rest, at the begin and at the end of a session. In object
storage the same stays as on a disk.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from orchestrator.ledger.state import State, TrialState
from trainables.storage import object_storage, trial_files
from trainables.storage.trial_files import checkpoint_path, delete_checkpoints_except

FOLDER = trial_files.FOLDER
_DISK = ThreadPoolExecutor(1, thread_name_prefix="retention")


def trial_folder(run_folder: Path, trial: str) -> Path:
    """Where the trial's attempts write their checkpoints."""
    return run_folder / FOLDER / trial


def newest(run_folder: Path, trial: TrialState) -> str | None:
    """The newest checkpoint on record that is still there: what a resume starts from."""
    return _first_there(run_folder, trial, trial.checkpoints)


def best(run_folder: Path, trial: TrialState) -> str | None:
    """The best checkpoint, or the newest one that is there where it got lost."""
    best_first = [trial.best_checkpoint, *trial.checkpoints]
    return _first_there(run_folder, trial, filter(None, best_first))


def kept(run_folder: Path, trial: TrialState) -> list[str]:
    """The trial's checkpoints that stay, by the rule above, before the run has closed."""
    of_finished = newest if trial.stage == "final" else best
    rules = {"pruned": (), "failed": (), "finished": (of_finished,)}
    wanted = {rule(run_folder, trial) for rule in rules.get(trial.status, (best, newest))}
    return sorted(path for path in wanted if path is not None)


def at_rest(run_folder: Path, state: State, winners: Collection[str]) -> None:
    """Bring disk and storage in line with the rule while no slot works on the run. Raises
    ``StorageError`` where the storage does not answer."""
    uri = object_storage.origin(run_folder)
    stored = trial_files.stored_by_trial(uri) if uri else {}
    for trial in state.trials.values():
        done = trial.stage == "search" and trial.status == "finished"
        beaten = state.closed and done and trial.trial not in winners
        wanted = [] if beaten else kept(run_folder, trial)
        delete_checkpoints_except(trial_folder(run_folder, trial.trial), wanted)
        if names := stored.get(trial.trial):
            trial_files.delete_stored_except(f"{uri}/{FOLDER}/{trial.trial}", wanted, names=names)


def _first_there(run_folder: Path, trial: TrialState, recorded: Iterable[str]) -> str | None:
    places = (checkpoint_path(trial_folder(run_folder, trial.trial), path) for path in recorded)
    # A worker finds out whether the storage has lost one: here, that would be a request each time.
    trusted = object_storage.origin(run_folder) is not None
    return next((str(path) for path in places if trusted or path.is_dir()), None)


def clear(run_folder: Path, trial: TrialState) -> Future[None]:
    """Apply the rule to a trial that no slot holds, beside the caller: disks are slow."""
    name, wanted = trial.trial, kept(run_folder, trial)

    def remove() -> None:
        delete_checkpoints_except(trial_folder(run_folder, name), wanted)
        if uri := object_storage.origin(run_folder):
            trial_files.delete_stored_except(f"{uri}/{FOLDER}/{name}", wanted)

    return _DISK.submit(remove)
