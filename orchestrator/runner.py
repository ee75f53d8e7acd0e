"""Carry a run out: Tune over thin trials, a dispatcher, a pool of slots, a tracker beside them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import cluster, finals, plan, session, tracking
from orchestrator.ledger import FILE_NAME, State
from orchestrator.progress import Progress
from orchestrator.spec import RunSpec
from orchestrator.watch import Watch, stop_on_signals
from trainables.errors import UserError, raise_if_any

TRACKER_PATIENCE_S = 60.0
LEAVE_PATIENCE_S = 15.0
STOP_PATIENCE_S = 5.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """How a run ended; counts are over all families."""

    finished: int
    pruned: int
    failed: int
    interrupted: bool
    run_folder: Path

    @property
    def exit_code(self) -> int:
        """0 done, 4 some trials failed, 5 none succeeded, 130 interrupted."""
        if self.interrupted:
            return 130
        if self.failed:
            return 4 if self.finished + self.pruned else 5
        return 0


def run(
    spec: RunSpec,
    *,
    datasets: dict[str, Any],
    geometry: dict[str, Any],
    say: Say,
    report: Callable[[Path], None],
    reopen_test: bool = False,
) -> Outcome:
    """Create the run, or go on with it where it was left; returns when it has ended.

    ``report`` is given the run's folder once the ledger is complete: what it writes there
    still reaches MLflow.

    Raises :class:`UserError` when the name belongs to another spec, is running already or would
    open its test split again without ``reopen_test`` (exit code 2), and when the cluster can
    never hold one worker (exit code 3).
    """
    with ExitStack() as held:
        folder = held.enter_context(session.claimed(spec))
        raise_if_any(session.name_mistakes(spec))
        uri = spec.tracking_uri or tracking.default_uri(spec.storage)
        before = session.state_of(folder)
        searched = session.searched(spec, before)
        if before.test_openings and not searched and not reopen_test:
            raise UserError(finals.reopening_refused(spec.name))
        waiting = session.open_trials(before)
        if searched and not waiting and not finals.due(spec, before, reopen=reopen_test):
            say(f"{spec.name} is done already: nothing to train; bringing MLflow up to date")
            with _tracker(spec, folder, uri, say):
                report(folder)
            return _outcome(folder)
        say("starting Ray")
        totals = held.enter_context(cluster.attached(namespace="backbone-tournament"))
        lacking = [line for sweep in spec.sweeps for line in plan.feasible(sweep.resources, totals)]
        if lacking:
            raise UserError(*dict.fromkeys(lacking), exit_code=3)
        state, name = session.begin(spec, folder, {"datasets": datasets, "geometry": geometry})
        held.enter_context(_tracker(spec, folder, uri, say))
        _phases(spec, folder, state, name, totals, say, reopen_test)
        if not session.open_trials(session.state_of(folder)):
            report(folder)
    return _outcome(folder)


def _phases(
    spec: RunSpec,
    folder: Path,
    state: State,
    name: str,
    totals: dict[str, float],
    say: Say,
    reopen_test: bool,
) -> None:
    """Search, then finals, each trial to its end or until the stop file appears."""
    from orchestrator.pool import Pool

    trials = session.open_trials(state)
    most = max(len(trials), spec.final_seeds * len(spec.sweeps))
    resources = spec.sweeps[0].resources
    num_slots = min(most, plan.capacity(resources, totals))
    say(f"{len(trials)} trials to train on {num_slots} slot{'s' * (num_slots != 1)}")
    stop_file = folder / session.STOP_FILE
    pool = Pool(spec, folder, name, num_slots, more_to_come=spec.final_seeds > 0)
    watch = Watch(pool, resources.slot_start_timeout_s, stop_file)
    with Progress(spec, folder / FILE_NAME, say), stop_on_signals(stop_file):
        pool.start()
        watch.start()
        try:
            _fit(spec, state, trials, pool, stop_file)
            if spec.final_seeds and not stop_file.exists():
                pool.submit(finals.due(spec, session.state_of(folder), reopen=reopen_test))
                state = session.state_of(folder)
                _fit(spec, state, session.open_trials(state), pool, stop_file)
        finally:
            # A thread that still calls Ray while it shuts down would take the process with it.
            watch.ended.set()
            watch.join()
            # The same file stops Tune whether a user, a signal or the watch wrote it.
            event = "stopped" if stop_file.exists() else "closed"
            pool.close(
                event, watch.error, LEAVE_PATIENCE_S if event == "closed" else STOP_PATIENCE_S
            )
    if watch.error:
        raise UserError(watch.error, exit_code=3)


def _fit(spec: RunSpec, state: State, trials: list[str], pool: Any, stop_file: Path) -> None:
    if not trials:
        return
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the only form that verbose=0 silences
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", str(pool.num_slots + 1))
    from ray import tune

    from orchestrator.scheduler import FamilyScheduler
    from orchestrator.trial import RESOURCES, SlotTrial, StopFile

    scratch = tempfile.mkdtemp(prefix="tune-")
    schedulers = {sweep.family: sweep.scheduler for sweep in spec.sweeps}
    pausing = any(scheduler.kind == "pasha" for scheduler in schedulers.values())
    # One more than the slots, so that a freed slot finds the next trial waiting. A paused trial
    # counts for Tune's own limit, so there the head's room is what limits those that are awake.
    awake = pool.num_slots + 1
    room = {name: 0.9 / awake if pausing else share for name, share in RESOURCES.items()}
    results = tune.Tuner(
        tune.with_resources(SlotTrial, tune.PlacementGroupFactory([room])),
        param_space={"trial": tune.grid_search(trials), "dispatcher": pool.dispatcher},
        tune_config=tune.TuneConfig(
            scheduler=FamilyScheduler(schedulers, state, pool.decide, seed=spec.sweeps[0].seed),
            reuse_actors=True,
            max_concurrent_trials=None if pausing else awake,
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=scratch,
            verbose=0,
            stop=StopFile(str(stop_file)),
            failure_config=tune.FailureConfig(max_failures=3),
        ),
    ).fit()
    for result in results:
        if result.error is not None and result.config:
            reason = f"its driver failed: {' '.join(str(result.error).split())[-300:]}"
            pool.decide("failed", result.config["trial"], reason=reason)


@contextmanager
def _tracker(spec: RunSpec, folder: Path, uri: str, say: Say) -> Iterator[None]:
    """A process that mirrors the ledger into MLflow; ends with the ledger, or with us."""
    command = [sys.executable, "-m", "orchestrator.tracking", "follow", str(folder), "--uri", uri]
    if spec.experiment:
        command += ["--experiment", spec.experiment]
    with (folder / "tracking.log").open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(TRACKER_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
            if process.returncode != 0:
                say(
                    f"MLflow at {uri} is behind the ledger (see {folder / 'tracking.log'}); "
                    "nothing is lost: the same command again brings it up to date"
                )


def _outcome(folder: Path) -> Outcome:
    state = session.state_of(folder)
    count = [trial.status for trial in state.trials.values()].count
    return Outcome(
        finished=count("finished"),
        pruned=count("pruned"),
        failed=count("failed"),
        interrupted=bool(session.open_trials(state)),
        run_folder=folder,
    )
