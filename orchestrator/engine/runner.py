"""Carry a run out: Tune over thin trials, a dispatcher, a pool of slots, a tracker beside them.

How a run ended, as its ledger tells it and as an exit code.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.claims.verdict import conclude
from orchestrator.compare.comparison import compare
from orchestrator.compare.report.page import write_report
from orchestrator.compare.runs import load
from orchestrator.compare.table import table_text
from orchestrator.compare.winners import winners
from orchestrator.engine import finals
from orchestrator.engine.watchdog import Watch, stop_on_signals
from orchestrator.launch import plan
from orchestrator.launch.forecast import forecast
from orchestrator.launch.prepare import PreparedRun
from orchestrator.ledger import lease, replication, retention, session
from orchestrator.ledger.header import DatasetFacts
from orchestrator.ledger.state import State, TrialStatus
from orchestrator.ray_cluster import attach
from orchestrator.spec.run import RunSpec
from trainables.errors import StorageError, UserError, one_line, raise_if_any

if TYPE_CHECKING:
    from orchestrator.engine.slots import Pool


@dataclass(frozen=True)
class Outcome:
    """How a run ended; counts are over all families. ``stop_reason`` is of a run that was stopped
    by something other than its user: its budget, or slots that are not there. ``text`` is what an
    ended run found, for the terminal: see :func:`write_results`."""

    finished: int
    pruned: int
    failed: int
    interrupted: bool
    run_folder: Path
    stop_reason: str | None = None
    text: str | None = None

    @classmethod
    def of(cls, folder: Path) -> Outcome:
        """The outcome of the run in ``folder``."""
        state = session.state_of(folder)
        count = [trial.status for trial in state.trials.values()].count
        return cls(
            finished=count(TrialStatus.FINISHED),
            pruned=count(TrialStatus.PRUNED),
            failed=count(TrialStatus.FAILED),
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


log = logging.getLogger(__name__)

TRACKER_PATIENCE_S = 180.0  # of catching up: where MLflow is silent it gives up by itself
LEAVE_PATIENCE_S = 15.0
STOP_PATIENCE_S = 5.0


def run(prepared: PreparedRun) -> Outcome:
    """Create the run, or go on with it where it was left; returns when it has ended.

    Its images are prepared first; where that takes long, Ray and the slots start meanwhile.

    Raises :class:`UserError` when the name belongs to another spec, is running already or would
    open its test split again unasked, when a node holds other versions than this process of what
    trains (exit code 2), and when the cluster can never hold one worker (exit code 3);
    ``StorageError`` when object storage does not answer.
    """
    spec, reopen_test = prepared.spec, prepared.reopen_test
    with ExitStack() as held:
        claim = held.enter_context(session.claimed(spec, log.info))
        folder = claim.folder
        raise_if_any(session.name_mistakes(spec))
        uri = prepared.tracking_uri
        before = session.state_of(folder)
        searched = session.searched(spec, before)
        if before.test_openings and not searched and not reopen_test:
            raise UserError(finals.reopening_refused(spec.name))
        waiting = session.open_trials(before)
        if searched and not waiting and not finals.due(spec, before, reopen=reopen_test):
            log.info(f"{spec.name} is done already: nothing to train; bringing MLflow up to date")
            with _tracker(spec, folder, uri):
                return replace(Outcome.of(folder), text=write_results(folder))
        preparing = prepared.prepare_images()
        log.info("starting Ray")
        totals = _attach(spec, held)
        name = session.session_name(folder)
        pool = _pool(spec, folder, name, session.to_train(spec, before), totals)
        pool.start()
        try:
            images = preparing.result()
            state = session.begin(
                spec,
                folder,
                name,
                datasets={
                    family: DatasetFacts.from_dict(info.as_dict())
                    for family, info in images.datasets.items()
                },
                geometry={family: one.as_dict() for family, one in images.geometry.items()},
                forecast=forecast(spec, images.costs, slots=pool.num_slots),
            )
            _tidy(folder)
            pool.open()
        except BaseException:
            pool.abandon()
            raise
        held.enter_context(_tracker(spec, folder, uri))
        reason = _phases(spec, claim, state, pool, reopen_test)
        if claim.lease is None or reason is None:
            _tidy(folder)
        # Written while MLflow still follows: what is in the run's folder reaches it.
        ended = not session.open_trials(session.state_of(folder))
        text = write_results(folder) if ended else None
    return replace(Outcome.of(folder), text=text)


def write_results(run_folder: Path) -> str:
    """Write the run's ``report.html``, ``plots/*.svg`` and ``comparison.json``.

    Returns its comparison, or its verdict where it tests a claim, for the terminal.
    """
    replication.pull_finals(run_folder)
    verdict = conclude(run_folder)
    runs = [load(run_folder)]
    comparison = compare(runs)
    (run_folder / "comparison.json").write_text(json.dumps(comparison.as_dict()), encoding="utf-8")
    write_report(comparison, run_folder)
    replication.push_reports(run_folder)
    return verdict or table_text(comparison)


def _attach(spec: RunSpec, held: ExitStack) -> Mapping[str, float]:
    """Hold a Ray that can carry the run out, for as long as ``held``; what it can ever hold."""
    shared = attach.known_address() is not None
    totals = held.enter_context(attach.attached(namespace="backbone-tournament"))
    lacking = [
        line for sweep in spec.sweeps for line in plan.capacity_mistakes(sweep.resources, totals)
    ]
    if lacking:
        raise UserError(*dict.fromkeys(lacking), exit_code=3)
    if shared:
        from orchestrator.ray_cluster.nodes import refuse_other_versions

        refuse_other_versions(log.info)
    return totals


def _pool(
    spec: RunSpec, folder: Path, name: str, num_trials: int, totals: Mapping[str, float]
) -> Pool:
    from orchestrator.engine.slots import Pool

    num_slots = plan.slots_of(spec, num_trials, totals)
    return Pool(spec, folder, name, num_slots, more_to_come=spec.final_seeds > 0)


def _phases(
    spec: RunSpec, claim: session.RunLock, state: State, pool: Pool, reopen_test: bool
) -> str | None:
    """Search, then finals, each trial to its end or until the stop file appears; why it did, where
    that was no user's wish."""
    folder = claim.folder
    trials, slots = session.open_trials(state), pool.num_slots
    log.info(f"{len(trials)} trials to train on {slots} slot{'s' * (slots != 1)}")
    stop_file = folder / lease.STOP_FILE
    watch = Watch(pool, spec.sweeps[0].resources, stop_file, claim.lost)
    with stop_on_signals(stop_file):
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
def _tracker(spec: RunSpec, folder: Path, uri: str) -> Iterator[None]:
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
    with (folder / "tracking.log").open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
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
                log.info(
                    f"MLflow at {uri} is behind the ledger (see {folder / 'tracking.log'}); "
                    "nothing is lost: the same command again brings it up to date"
                )
