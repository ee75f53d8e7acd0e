"""Carry a run out: Tune over thin trials, a dispatcher, a pool of slots, a tracker beside them.

How a run ended, as its ledger tells it and as an exit code.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.compare.winners import winners
from orchestrator.engine import finals
from orchestrator.engine.watchdog import Watch, stop_on_signals
from orchestrator.launch import plan
from orchestrator.launch.forecast import Cost, forecast
from orchestrator.ledger import lease, replication, retention, session
from orchestrator.ledger.state import State
from orchestrator.ops.status import live_view
from orchestrator.ray_cluster import attach
from orchestrator.spec.run import RunSpec
from orchestrator.tracking import store
from trainables.errors import StorageError, UserError, one_line, raise_if_any
from trainables.storage.waiting import in_background

if TYPE_CHECKING:
    from orchestrator.engine.slots import Pool


@dataclass(frozen=True)
class Outcome:
    """How a run ended; counts are over all families. ``stop_reason`` is of a run that was stopped
    by something other than its user: its budget, or slots that are not there."""

    finished: int
    pruned: int
    failed: int
    interrupted: bool
    run_folder: Path
    stop_reason: str | None = None

    @classmethod
    def of(cls, folder: Path) -> Outcome:
        """The outcome of the run in ``folder``."""
        state = session.state_of(folder)
        count = [trial.status for trial in state.trials.values()].count
        return cls(
            finished=count("finished"),
            pruned=count("pruned"),
            failed=count("failed"),
            interrupted=bool(session.open_trials(state)),
            run_folder=folder,
            stop_reason=state.stop_reason if state.stopped else None,
        )

    @property
    def exit_code(self) -> int:
        """0 done, 4 some trials failed, 5 none succeeded, 130 interrupted."""
        if self.interrupted:
            return 130
        if self.failed:
            return 4 if self.finished + self.pruned else 5
        return 0


TRACKER_PATIENCE_S = 180.0  # of catching up: where MLflow is silent it gives up by itself
LEAVE_PATIENCE_S = 15.0
STOP_PATIENCE_S = 5.0
# Data that take longer than this to prepare are prepared while Ray and its slots start. Most
# mistakes in them show sooner, and then there is nothing to take down.
HEAD_START_S = 2.0

Say = Callable[[str], None]
# Datasets, geometry and costs, by family.
Prepared = tuple[dict[str, Any], dict[str, Any], dict[str, Cost | None]]


def run(
    spec: RunSpec,
    *,
    prepare: Callable[[], Prepared],
    say: Say,
    report: Callable[[Path], None],
    reopen_test: bool = False,
) -> Outcome:
    """Create the run, or go on with it where it was left; returns when it has ended.

    ``prepare`` makes the pixel stores; where that takes long, Ray and the slots start beside it.
    ``report`` is given the run's folder once the ledger is complete: what it writes there
    still reaches MLflow.

    Raises :class:`UserError` when the name belongs to another spec, is running already or would
    open its test split again without ``reopen_test``, when a node holds other versions than this
    process of what trains (exit code 2), and when the cluster can never hold one worker (exit
    code 3); ``StorageError`` when object storage does not answer.
    """
    with ExitStack() as held:
        claim = held.enter_context(session.claimed(spec, say))
        folder = claim.folder
        raise_if_any(session.name_mistakes(spec))
        uri = spec.tracking_uri or store.default_uri(spec.storage)
        before = session.state_of(folder)
        searched = session.searched(spec, before)
        if before.test_openings and not searched and not reopen_test:
            raise UserError(finals.reopening_refused(spec.name))
        waiting = session.open_trials(before)
        if searched and not waiting and not finals.due(spec, before, reopen=reopen_test):
            say(f"{spec.name} is done already: nothing to train; bringing MLflow up to date")
            with _tracker(spec, folder, uri, say):
                report(folder)
            return Outcome.of(folder)
        preparing = in_background(prepare)
        if not wait([preparing], HEAD_START_S).not_done:
            preparing.result()
        say("starting Ray")
        totals = _attach(spec, held, say)
        name = session.session_name(folder)
        pool = _pool(spec, folder, name, session.to_train(spec, before), totals)
        pool.start()
        try:
            datasets, geometry, costs = preparing.result()
            told = forecast(spec, costs, slots=pool.num_slots)
            header = {"datasets": datasets, "geometry": geometry, "forecast": told}
            state = session.begin(spec, folder, name, header)
            _tidy(folder)
            pool.open()
        except BaseException:
            pool.abandon()
            raise
        held.enter_context(_tracker(spec, folder, uri, say))
        reason = _phases(spec, claim, state, pool, say, reopen_test)
        if claim.lease is None or reason is None:
            _tidy(folder)
        if not session.open_trials(session.state_of(folder)):
            report(folder)
    return Outcome.of(folder)


def _attach(spec: RunSpec, held: ExitStack, say: Say) -> Mapping[str, float]:
    """Hold a Ray that can carry the run out, for as long as ``held``; what it can ever hold."""
    shared = attach.known_address() is not None
    totals = held.enter_context(attach.attached(namespace="backbone-tournament"))
    lacking = [line for sweep in spec.sweeps for line in plan.feasible(sweep.resources, totals)]
    if lacking:
        raise UserError(*dict.fromkeys(lacking), exit_code=3)
    if shared:
        from orchestrator.ray_cluster.nodes import refuse_other_versions

        refuse_other_versions(say)
    return totals


def _pool(
    spec: RunSpec, folder: Path, name: str, num_trials: int, totals: Mapping[str, float]
) -> Pool:
    from orchestrator.engine.slots import Pool

    num_slots = plan.slots_of(spec, num_trials, totals)
    return Pool(spec, folder, name, num_slots, more_to_come=spec.final_seeds > 0)


def _phases(
    spec: RunSpec, claim: session.RunLock, state: State, pool: Pool, say: Say, reopen_test: bool
) -> str | None:
    """Search, then finals, each trial to its end or until the stop file appears; why it did, where
    that was no user's wish."""
    folder = claim.folder
    trials, slots = session.open_trials(state), pool.num_slots
    say(f"{len(trials)} trials to train on {slots} slot{'s' * (slots != 1)}")
    stop_file = folder / lease.STOP_FILE
    watch = Watch(pool, spec.sweeps[0].resources, stop_file, claim.lost)
    with live_view(folder), stop_on_signals(stop_file):
        watch.start()
        try:
            _fit(spec, state, trials, pool, stop_file)
            if spec.final_seeds and not stop_file.exists() and not pool.open_trials():
                records = finals.due(spec, session.state_of(folder), reopen=reopen_test)
                replication.share_stores(folder, finals.data_of(records))
                pool.submit(records)
                state = session.state_of(folder)
                _fit(spec, state, session.open_trials(state), pool, stop_file)
        except StorageError:
            stop_file.touch()
            raise
        finally:
            # A thread that still calls Ray while it shuts down would take the process with it.
            watch.ended.set()
            watch.join()
            # The same file stops Tune whether a user, a signal or the watch wrote it.
            over = watch.reason or pool.over_budget()
            stopped = over or stop_file.exists()
            event, patience_s = (
                ("stopped", STOP_PATIENCE_S) if stopped else ("closed", LEAVE_PATIENCE_S)
            )
            pool.close(event, watch.error or over, patience_s)
    if watch.error:
        raise UserError(watch.error, exit_code=3)
    return over


def _tidy(folder: Path) -> None:
    """While no slot is at work: remove the checkpoints that nothing will ask for again."""
    state = session.state_of(folder)
    retention.at_rest(folder, state, [won.trial for won in winners(state).values()])


def _fit(spec: RunSpec, state: State, trials: list[str], pool: Pool, stop_file: Path) -> None:
    if not trials:
        return
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the only form that verbose=0 silences
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", str(pool.num_slots + 1))
    # The ledger is the memory: no second one of Tune's, in files nobody reads.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "86400")
    from ray import tune

    from orchestrator.engine.scheduler import FamilyScheduler
    from orchestrator.engine.trial import RESOURCES, SlotTrial, StopFile

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
            reason = f"its driver failed: {one_line(result.error)[-300:]}"
            pool.decide("failed", result.config["trial"], reason=reason)


@contextmanager
def _tracker(spec: RunSpec, folder: Path, uri: str, say: Say) -> Iterator[None]:
    """A process that mirrors the ledger into MLflow; ends with the ledger, or with us."""
    command = [
        sys.executable,
        "-m",
        "orchestrator.tracking.follow",
        "follow",
        str(folder),
        "--uri",
        uri,
    ]
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
