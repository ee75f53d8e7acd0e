"""Carry a run out: Tune over thin trials, a dispatcher, a pool of slots, a tracker beside them."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import process
from orchestrator.claims.verdict import conclude
from orchestrator.compare.comparison import compare
from orchestrator.compare.report.page import write_report
from orchestrator.compare.runs import load
from orchestrator.compare.table import table_text
from orchestrator.compare.winners import winners
from orchestrator.engine import finals, speed
from orchestrator.launch.forecast import forecast
from orchestrator.launch.prepare import PreparedRun, RunImages
from orchestrator.ledger import replication, retention, session
from orchestrator.ledger.state import State, TrialStatus
from orchestrator.ray_cluster import attach, capacity
from orchestrator.spec.run import RunSpec
from orchestrator.tracking import beside
from trainables.errors import StorageError, UserError, one_line, raise_if_any
from trainables.storage.waiting import bounded

if TYPE_CHECKING:
    from orchestrator.engine.slots import FitSlot, SlotPool
    from orchestrator.ledger.replication import Lease

LEAVE_PATIENCE_S = 15.0
STOP_PATIENCE_S = 5.0
CLOSE_PATIENCE_S = 30.0  # after an error

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a run ended, from its ledger; counts are over all candidates, ``succeeded`` is finished
    or pruned. ``stop_reason`` is of a run that was stopped by something other than its user: its
    budget, or slots that are not there. ``text`` is the result of an ended run, for the terminal:
    see :func:`write_results`."""

    succeeded: int
    failed: int
    interrupted: bool
    run_folder: Path
    stop_reason: str | None
    text: str | None

    @classmethod
    def of(cls, folder: Path, text: str | None) -> Outcome:
        """The outcome of the run in ``folder``."""
        state = session.state_of(folder)
        count = Counter(trial.status for trial in state.trials.values())
        return cls(
            succeeded=count[TrialStatus.FINISHED] + count[TrialStatus.PRUNED],
            failed=count[TrialStatus.FAILED],
            interrupted=bool(session.open_trials(state) or (state.stopped and speed.due(state))),
            run_folder=folder,
            stop_reason=state.stop_reason if state.stopped else None,
            text=text,
        )

    @property
    def exit_code(self) -> int:
        """0 done, 4 some trials failed, 5 none succeeded, 130 interrupted."""
        if self.interrupted:
            return 130
        if self.failed:
            return 4 if self.succeeded else 5
        return 0


def write_results(run_folder: Path) -> str:
    """Write the run's ``report.html``, ``plots/*.svg`` and ``comparison.json``.

    Returns its comparison, or its verdict where it tests a claim, for the terminal.
    """
    replication.pull_finals(run_folder)
    verdict = conclude(run_folder)
    comparison = compare([load(run_folder)])
    (run_folder / "comparison.json").write_text(json.dumps(comparison.as_dict()), encoding="utf-8")
    write_report(comparison, run_folder)
    replication.push_reports(run_folder)
    return verdict or table_text(comparison)


def mirrored(prepared: PreparedRun, folder: Path) -> AbstractContextManager[None]:
    """The process that mirrors the ledger into MLflow; ends with the context."""
    return beside.mirrored(folder, prepared.tracking_uri, prepared.spec.experiment)


def run(
    prepared: PreparedRun,
    *,
    fit_slot: FitSlot | None = None,
    mirror: Callable[[PreparedRun, Path], AbstractContextManager[None]] = mirrored,
    write: Callable[[Path], str] = write_results,
    rehearsal: Future[None] | None = None,
) -> Outcome:
    """Create the run, or go on with it where it was left; returns when it has ended.

    Its images are prepared first; where that takes long, Ray and the slots start meanwhile. Ray
    starts during the ``rehearsal`` too; what that raises ends the run before any slot starts.
    A benchmark of the driver's side brings its own ``fit_slot``, ``mirror`` and ``write``.

    Raises :class:`UserError` when the name belongs to another spec, is running already or would
    open its test split again unasked, when a node holds other versions than this process of what
    trains (exit code 2), and when the cluster can never hold one worker (exit code 3);
    ``StorageError`` when object storage does not answer.
    """
    spec = prepared.spec
    with ExitStack() as stack:
        folder, lease = spec.folder.resolve(), stack.enter_context(session.run_lock(spec))
        raise_if_any(session.name_mistakes(spec))
        before = session.state_of(folder)
        if _is_done(prepared, before):
            log.info(f"{spec.name} is done already: nothing to train; bringing MLflow up to date")
            with mirror(prepared, folder):
                return Outcome.of(folder, write(folder))
        preparing = prepared.prepare_images()
        if process.shadowing_names(Path.cwd()):
            preparing.result()  # it reads relative paths, Ray is started from another directory
        log.info("starting Ray")
        totals = _attach(spec, stack)
        if rehearsal is not None:
            rehearsal.result()  # before slots start: they would have to be taken down
        from orchestrator.engine.slots import SlotPool

        pool = SlotPool(
            spec,
            folder,
            session.session_name(folder),
            capacity.slots_of(spec, session.to_train(spec, before), totals),
            fit_slot,
        )
        pool.start()
        try:
            state = _begin(spec, folder, pool, preparing.result())
        except BaseException:
            pool.abandon()
            raise
        stack.enter_context(mirror(prepared, folder))
        stop_reason = _train(prepared, folder, lease, state, pool)
        if lease is None or stop_reason is None:
            _clean_up_checkpoints(folder)
        # Written while MLflow still follows: what is in the run's folder reaches it.
        ended = not session.open_trials(session.state_of(folder))
        text = write(folder) if ended else None
    return Outcome.of(folder, text)


def _is_done(prepared: PreparedRun, state: State) -> bool:
    """Whether nothing is left to train. Raises ``UserError`` where what is left would open the
    test split again unasked."""
    spec = prepared.spec
    searched = session.searched(spec, state)
    if state.test_openings and not searched and not prepared.options.reopen_test:
        raise UserError(finals.reopening_refused(spec.name))
    if not searched or session.open_trials(state):
        return False
    if speed.due(state) and not state.closed:
        return False
    return finals.due(spec, state, reopen=prepared.options.reopen_test) is None


def _attach(spec: RunSpec, stack: ExitStack) -> Mapping[str, float]:
    """Hold a Ray that can carry the run out until ``stack`` closes; what it can ever hold."""
    shared = attach.known_address() is not None
    totals = stack.enter_context(attach.attached(namespace="backbone-tournament"))
    raise_if_any(capacity.capacity_mistakes(spec.sweeps[0].resources, totals), exit_code=3)
    if shared:
        attach.refuse_other_versions()
    return totals


def _begin(spec: RunSpec, folder: Path, pool: SlotPool, images: RunImages) -> State:
    """Put on record what is to be trained, and open the dispatcher for the slots that wait."""
    state = session.begin(
        spec,
        folder,
        pool.session,
        datasets=images.datasets,
        geometry={name: geometry.as_dict() for name, geometry in images.geometry.items()},
        forecast=forecast(spec, images.costs, slots=pool.num_slots),
    )
    _clean_up_checkpoints(folder)
    pool.dispatcher("open")
    return state


def _train(
    prepared: PreparedRun, folder: Path, lease: Lease | None, state: State, pool: SlotPool
) -> str | None:
    """Search, finals and their speed, to the end or until the stop file appears; why it did, where
    that was no user's wish. Raises ``UserError`` where the slots ended the run (exit code 3)."""
    from orchestrator.engine.slots import Watchdog, stop_on_signals

    spec, stop_file = prepared.spec, folder / replication.STOP_FILE
    num_trials, num_slots = len(session.open_trials(state)), pool.num_slots
    log.info(f"{num_trials} trials to train on {num_slots} slot{'s' * (num_slots != 1)}")
    watchdog = Watchdog(
        pool, spec.sweeps[0].resources, stop_file, lambda: lease.problem if lease else None
    )
    with stop_on_signals(stop_file):
        try:
            with watchdog:
                _search_and_judge(prepared, folder, state, pool, stop_file)
        except BaseException as error:
            stop_file.touch()
            _close_if_possible(pool, watchdog.error or one_line(error))
            raise
        # The same file stops Tune whether a user, a signal or the watchdog wrote it.
        stop_reason = watchdog.reason or pool.dispatcher("health").over
        if stop_reason or stop_file.exists():
            pool.close("stopped", watchdog.error or stop_reason, STOP_PATIENCE_S)
        else:
            pool.close("closed", watchdog.error, LEAVE_PATIENCE_S)
    if stop_reason and not session.state_of(folder).stopped:
        raise StorageError(stop_reason)  # not even that could be written
    if watchdog.error:
        raise UserError(watchdog.error, exit_code=3)
    return stop_reason


def _close_if_possible(pool: SlotPool, reason: str) -> None:
    """Write the last record after an error, which may be that Ray is lost."""
    with suppress(Exception):
        bounded(lambda: pool.close("stopped", reason, STOP_PATIENCE_S), CLOSE_PATIENCE_S)


def _search_and_judge(
    prepared: PreparedRun, folder: Path, state: State, pool: SlotPool, stop_file: Path
) -> None:
    from orchestrator.engine.trial import fit_trials

    spec, fit = prepared.spec, partial(fit_trials, num_slots=pool.num_slots, stop_file=stop_file)
    fit(spec, state, pool.dispatcher)
    searched = session.state_of(folder)
    if spec.final_seeds and not stop_file.exists() and not session.open_trials(searched):
        due = finals.due(spec, searched, reopen=prepared.options.reopen_test)
        if due is not None:
            replication.share_stores(folder, [final.assignment.data for final in due.finals])
        pool.dispatcher("submit", [] if due is None else due.records())
        fit(spec, session.state_of(folder), pool.dispatcher)
    _measure_speeds(spec, session.state_of(folder), pool, stop_file)


def _measure_speeds(spec: RunSpec, state: State, pool: SlotPool, stop_file: Path) -> None:
    """Have one slot measure how fast the final models are, if the run has come to that. Whatever
    keeps it from it becomes a note."""
    models, resources = len(speed.due(state)), spec.sweeps[0].resources
    if not models or stop_file.exists():
        return
    log.info(f"measuring the speed of {models} final model{'s' * (models != 1)}, one slot alone")
    attempt_s = resources.epoch_timeout_s + resources.slot_start_timeout_s
    limit_s = attempt_s * (1 + resources.max_failures_per_trial)
    deadline = time.monotonic() + limit_s
    while not stop_file.exists() and pool.dispatcher("measure_speeds"):
        if not pool.alive() or time.monotonic() > deadline:
            why = "every slot had ended" if not pool.alive() else f"{limit_s:.0f} s were over"
            pool.dispatcher("give_up_speeds", why)


def _clean_up_checkpoints(folder: Path) -> None:
    """While no slot is at work: remove the checkpoints that nothing will ask for again."""
    state = session.state_of(folder)
    retention.at_rest(folder, state, [trial.trial for trial in winners(state).values()])
