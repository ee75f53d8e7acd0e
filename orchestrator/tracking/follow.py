"""The process beside a run that keeps MLflow in step with its ledger; the run never waits for it:

    python -m orchestrator.tracking.follow follow runs/NAME --uri URI [--experiment NAME]
    python -m orchestrator.tracking.follow sync   runs/NAME --uri URI [--experiment NAME]

``follow`` goes on until its standard input is closed, by the run or by the run's death, and leaves
MLflow up to date; ``sync`` does that once. Exit code 1: MLflow is behind the ledger; 2: it does not
take the run, and no waiting changes that.

What MLflow should show is compared with what it holds, and the difference is written. Repeating
that from any point changes nothing, so an outage needs no queue.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from orchestrator import logins
from orchestrator.compare.shortlist import FILE_NAME as SHORTLIST
from orchestrator.compare.shortlist import shortlist_of
from orchestrator.compare.winners import SelectedModel, best_models
from orchestrator.ledger.events import FILE_NAME, tail
from orchestrator.ledger.replication import pull_finals
from orchestrator.ledger.state import State, TrialState, TrialStatus, apply
from orchestrator.tracking import store, view
from orchestrator.tracking.best_model import export_to_folder, log_model
from orchestrator.tracking.client import Client, MlflowRun, Outage, talking
from trainables.errors import StorageError, UserError, one_line, raise_if_any
from trainables.printable import PlainFormatter
from trainables.storage.waiting import retry

POLL_S = 5.0  # short epochs of a trial share a request
RETRY_S = 10.0  # after an outage
GIVE_UP_S = 20.0  # of silence, after the run has ended; while it goes on, there is no end
PARENT = ""  # key of the parent run beside the trials' names
REPORT, COMPARISON, PLOTS = "report.html", "comparison.json", "plots"
SERVER_THREADS = 3
ENDS, BEGINS = ("stopped", "closed"), ("created", "extended", "resumed")

log = logging.getLogger("orchestrator.tracking.follow")  # not __main__


class Mirror:
    """One run of ours in MLflow: ``flush``, as often as one likes."""

    def __init__(self, run_folder: Path, uri: str, experiment: str | None) -> None:
        self._folder, self._uri, self._experiment = run_folder, uri, experiment
        self._state = State()
        self._offset = 0  # bytes of the ledger that have been read
        self._ended_at: float | None = None  # time of the ledger's end, None while it is open
        self._over = False  # no more records will come
        self._client: Client | None = None  # None: MLflow may hold runs that are not in _runs
        self._runs: dict[str, MlflowRun] = {}
        self._due: set[str] = set()  # names of the runs that may have differences
        self._given_up: set[str] = set()

    def flush(self, *, last: bool = False, over: bool = False) -> int:
        """Read what is new in the ledger and write every difference; the number of new records.

        The ``last`` time the best models of a run that has closed are written, too: they can be
        large. ``over``: no more records will come, what was running is shown as stopped. Raises
        :class:`Outage`; what was not written stays due.
        """
        count = self._read_ledger()
        if over:
            self._over = True
            self._due |= {PARENT, *self._names}
        if not self._state.begun:
            return count
        with talking(self._uri):
            client = self._connect()
        due = self._due - self._given_up
        with ThreadPoolExecutor(1 if self._uri.startswith("sqlite") else SERVER_THREADS) as pool:
            trials = pool.map(partial(self._show, client), sorted(due - {PARENT}))
            list(trials)  # an outage cancels the rest
        if PARENT in due:  # last, so that its end means that all is there
            self._show(client, PARENT)
        if last and self._state.closed:
            self._log_best_models(client)
        return count

    def _read_ledger(self) -> int:
        ledger = self._folder / FILE_NAME
        if not ledger.exists():
            return 0
        records, self._offset = tail(ledger, self._offset)
        for record in records:
            apply(self._state, record)
            self._due.add(record.get("trial", PARENT))
            if record["event"] == "screened":
                self._due.add(record["candidate"])
            if record["event"] in ENDS + BEGINS:
                self._ended_at = record["time"] if record["event"] in ENDS else None
                self._due |= self._names
        return len(records)

    @property
    def _names(self) -> set[str]:
        """Of what has, or may have, a run below the parent: trials, or a screen's candidates."""
        return {*self._state.trials, *self._state.screen.screened}

    def _connect(self) -> Client:
        """Find every run that MLflow has of ours; create the parent where it is missing."""
        client = self._client
        if client is None:
            client = Client(self._uri, self._experiment or str(self._state.header.run))
            self._runs = client.runs_of(view.run_id(self._state))
            self._client = client
            self._due |= {PARENT, *self._names}
        if PARENT not in self._runs:
            tags = view.run_tags(self._state, self._over)
            self._create(client, PARENT, tags, self._state.created_at)
        return client

    def _create(self, client: Client, key: str, tags: dict[str, str], at: float | None) -> None:
        # Not the tags that say how far the metrics are there, which come after it.
        first = {k: v for k, v in tags.items() if k not in ("epochs", "speed_at", "verdict_at")}
        try:
            self._runs[key] = client.create(key or str(self._state.header.run), first, at)
        except Exception:
            self._client = None  # it may have been created all the same
            raise

    def _show(self, client: Client, name: str) -> None:
        """One run's differences, in as few requests as possible."""
        try:
            with talking(self._uri):
                if name == PARENT:
                    self._show_parent(client, self._runs[PARENT])
                elif name in self._state.screen.screened:
                    self._show_screened(client, name)
                elif view.has_begun(self._state.trials[name]):
                    self._show_trial(client, self._state.trials[name])
        except Outage as outage:
            if outage.forgotten:
                self._client = None
            if not outage.permanent:
                raise
            # For instance a run that somebody deleted in the UI: the others go on.
            self._given_up.add(name)
            log.warning(f"{name or 'the parent run'} is no longer mirrored: {outage}")
        self._due.discard(name)

    def _show_trial(self, client: Client, trial: TrialState) -> None:
        tags = view.trial_tags(self._state, trial, self._runs[PARENT].id, self._over)
        if trial.trial not in self._runs:
            self._create(client, trial.trial, tags, trial.started_at or trial.ended_at)
        run = self._runs[trial.trial]
        status = view.STATUS.get(tags["status"], "RUNNING")
        metrics = view.epoch_metrics(trial, after=run.epochs)
        ends, is_timed = run.status != status, run.tags.get("speed_at") != tags.get("speed_at")
        if ends:
            metrics += view.final_metrics(trial)
        if is_timed:
            metrics += view.speed_metrics(trial)
        if (ends or is_timed) and trial.probes:
            client.put(run, "probes.json", trial.probes)
        client.log(run, metrics, view.trial_params(trial), tags)
        if ends:
            if trial.ended_at is not None and trial.reports:
                client.put(run, "learning_curve.json", view.learning_curve(trial))
            if trial.stage == "final" and trial.status == TrialStatus.FINISHED:
                self._put_classes(client, run, trial)
            if trial.stage == "final" and not run.has_datasets:
                client.log_datasets(run, view.datasets(self._state, trial))
            client.set_status(run, status, trial.ended_at or self._ended_at)

    def _put_classes(self, client: Client, run: MlflowRun, trial: TrialState) -> None:
        """What its model confuses; nothing where it has kept no predictions, or they are not to be
        had."""
        try:
            pull_finals(self._folder)  # of a run in object storage they are not here yet
            classes = view.classes_of_final(self._state, trial, self._folder)
        except (UserError, StorageError) as error:
            log.warning(f"{trial.trial} is recorded without its classes: {one_line(error)}")
            return
        if classes is not None:
            client.put(run, "classes.json", classes)

    def _show_screened(self, client: Client, label: str) -> None:
        """A candidate of a screen, which is on record with all that is known of it."""
        state = self._state
        tags, at = view.screened_tags(state, label, self._runs[PARENT].id), state.screen.landed_at
        if label not in self._runs:
            began = at[label] - (state.screen.screened[label].seconds or 0.0)
            self._create(client, label, tags, began)
        run, status = self._runs[label], view.STATUS[tags["status"]]
        is_new = run.status != status
        metrics = view.screened_metrics(state, label) if is_new else []
        client.log(run, metrics, view.screened_params(state, label), tags)
        if is_new:
            client.set_status(run, status, at[label])

    def _show_parent(self, client: Client, run: MlflowRun) -> None:
        state, tags = self._state, view.run_tags(self._state, self._over)
        status = view.STATUS.get(tags["status"], "RUNNING")
        metrics: list[view.MetricRow] = []
        if run.status != status and self._ended_at:
            metrics += view.run_metrics(state, self._ended_at)
        if run.tags.get("verdict_at") != tags.get("verdict_at"):
            metrics += view.claim_metrics(state)
        client.log(run, metrics, {}, tags)
        if state.verdict:
            client.put(run, "verdict.json", state.verdict["detail"])
        if not run.has_datasets:
            client.log_datasets(run, view.datasets(state))
        client.put(run, "spec.json", (state.header.screen or state.spec).as_dict())
        client.put(run, "environment.json", state.header.environment.as_dict())
        if state.is_screen:
            result = shortlist_of(state)
            client.log(run, [], {}, view.TABLE_TAG)
            client.put(run, view.TABLE, view.shortlist_table(result))
            client.put(run, SHORTLIST, result.as_dict())
        self._put_comparison(client, run)
        if run.status != status:
            client.set_status(run, status, self._ended_at)

    def _put_comparison(self, client: Client, run: MlflowRun) -> None:
        """Report, figures and table, as the run left them beside its ledger."""
        file, page = self._folder / COMPARISON, self._folder / REPORT
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            comparison = json.loads(text)
            client.put(run, view.TABLE, view.summary_table(comparison))
            client.log(run, [], {}, view.comparison_tags(comparison, run.tags))
            client.put(run, COMPARISON, text)
        if page.is_file():
            for figure in sorted((self._folder / PLOTS).glob("*.svg")):
                client.put(run, f"{PLOTS}/{figure.name}", figure.read_text(encoding="utf-8"))
            client.put(run, REPORT, page.read_text(encoding="utf-8"))

    def _log_best_models(self, client: Client) -> None:
        """Every candidate's best model that is not logged yet. What is in the way of one, but an
        outage, must not keep anything from being recorded."""
        for candidate, model in best_models(self._state).items():
            run = self._runs.get(model.trial.trial)
            if run is None or not model.trial.checkpoint:
                continue
            try:
                log_model(client, run, self._state, model, self._folder)
            except Exception as error:
                if isinstance(error, Outage) and not error.permanent:
                    raise
                log.warning(f"the best model of {candidate} is not logged: {one_line(error)}")


def follow(
    run_folder: Path, tracking_uri: str, experiment: str | None, ended: threading.Event
) -> bool:
    """Keep MLflow in step with a ledger until ``ended``; whether it was in step at the end.

    While MLflow is down it tries again every 10 s, for as long as the run goes on, and for at most
    20 s after its end. A ledger that is still open then is shown as a stopped run, and a
    ``report.html`` beside it becomes the run's artifact. Raises ``UserError`` where another process
    mirrors the run and does not end.
    """
    delay_s = POLL_S
    out_since: float | None = None

    def tell_that_it_is_back() -> None:
        nonlocal out_since
        if out_since is not None:
            log.info(f"MLflow is back after {time.monotonic() - out_since:.0f} s, in step")
            out_since = None

    with _only_mirror_of(run_folder, ended.is_set, GIVE_UP_S):
        mirror = Mirror(run_folder, tracking_uri, experiment)
        while not ended.wait(delay_s):
            began = time.monotonic()
            try:
                mirror.flush()
            except Outage as outage:
                if out_since is None:
                    out_since = time.monotonic()
                    place = store.shown(tracking_uri)
                    log.warning(f"MLflow at {place} is out, records wait: {outage}")
                delay_s = RETRY_S
                continue
            tell_that_it_is_back()
            # Behind a busy run, half of the time is left to training.
            delay_s = max(POLL_S, time.monotonic() - began)
        try:
            retry(lambda: mirror.flush(last=True, over=True), on=Outage, patience_s=GIVE_UP_S)
        except Outage as outage:
            log.warning(f"gave up ({outage}); `sync` brings MLflow up to date from the ledger")
            return False
        tell_that_it_is_back()  # the run may end before an outage is seen to be over
        return True


def sync(run_folder: Path, tracking_uri: str, experiment: str | None = None) -> int:
    """Bring MLflow up to date once, from the ledger's start; the number of records read.

    Raises :class:`UserError` where there is no ledger, MLflow does not answer, or a follower of
    this run is at work.
    """
    if not (run_folder / FILE_NAME).exists():
        raise UserError(f"a run's folder holds {FILE_NAME}; {run_folder} does not. Fix: the path")
    with _only_mirror_of(run_folder, lambda: True, 0.0):
        try:
            return Mirror(run_folder, tracking_uri, experiment).flush(last=True)
        except Outage as outage:
            failed = f"MLflow at {store.shown(tracking_uri)} failed: {outage}. Fix: try again"
            raise UserError(*(store.check(tracking_uri) or [failed])) from outage


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
    name, run_id = str(state.header.run), view.run_id(state)
    try:
        with talking(uri):
            client = Client(uri, state.spec.experiment or name)
            runs = client.runs_of(run_id)
        if model.trial.trial not in runs:
            sync(run_folder, uri, state.spec.experiment)
            with talking(uri):
                runs = client.runs_of(run_id)
        run = runs[model.trial.trial]
        log_model(client, run, state, model, run_folder)
        with talking(uri):
            return uri, client.register(run, name, alias, view.model_tags(state, model))
    except Outage as outage:
        place = store.shown(uri)
        raise UserError(f"MLflow at {place} failed: {outage}. Fix: try again") from outage


def _only_mirror_of(
    run_folder: Path, has_ended: Callable[[], bool], patience_s: float
) -> AbstractContextManager[object]:
    """One process mirrors a run. After a kill and a quick restart the old one may be at it yet:
    it is waited for, at most ``patience_s`` longer than the run goes on."""
    lock = FileLock(run_folder / "tracking.lock")
    try:
        try:
            return lock.acquire(cancel_check=has_ended)
        except Timeout:
            return lock.acquire(timeout=patience_s)
    except Timeout:
        raise UserError(
            f"one process at a time may mirror a run; {run_folder} has one already. "
            "Fix: wait for its end"
        ) from None


def main(arguments: list[str] | None = None) -> int:
    """``follow`` or ``sync``; see the module's docstring."""
    if arguments is None:
        logins.hide_in_process()
    else:
        arguments = logins.hide(arguments)
    parser = argparse.ArgumentParser(prog="orchestrator.tracking.follow", description=__doc__)
    parser.add_argument("action", choices=("follow", "sync"))
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--uri", required=True)
    parser.add_argument("--experiment")
    options = parser.parse_args(arguments)
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("orchestrator").setLevel(logging.INFO)
    if options.action == "sync":
        try:
            count = sync(options.run_folder, options.uri, options.experiment)
        except UserError as error:
            print("\n".join(error.mistakes), file=sys.stderr)
            return error.exit_code
        print(f"{count} records mirrored to {options.uri}")
        return 0

    ended = threading.Event()

    def wait_for_parent() -> None:
        while os.read(0, 4096):
            pass
        ended.set()

    # Ctrl-C reaches the whole process group; the end of the run is still to be mirrored.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: ended.set())
    threading.Thread(target=wait_for_parent, daemon=True).start()
    os.nice(19)  # training comes first, and Ray's workers run at 15
    try:
        in_step = follow(options.run_folder, options.uri, options.experiment, ended)
    except UserError as error:
        log.error("\n".join(error.mistakes))
        return store.REFUSED
    except Exception as error:
        log.exception("the mirror failed")
        log.error(f"{type(error).__name__}: {one_line(error)}")
        return store.REFUSED
    return 0 if in_step else store.BEHIND


if __name__ == "__main__":
    sys.exit(main())
