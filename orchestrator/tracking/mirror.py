"""Bring MLflow in step with a ledger: compare what it should show with what it holds, write the
difference. Repeating that from any point changes nothing, so an outage needs no queue.
"""

from __future__ import annotations

import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from orchestrator.ledger.events import FILE_NAME, tail
from orchestrator.ledger.state import State, TrialState, apply
from orchestrator.tracking import view
from orchestrator.tracking.best_model import log_best_models
from orchestrator.tracking.client import Client, MlflowRun, Outage, talking

PARENT = ""  # key of the parent run beside the trials' names
REPORT, COMPARISON, PLOTS = "report.html", "comparison.json", "plots"
SERVER_THREADS = 3
REST_S = 5.0  # between two requests about a trial that goes on: short epochs share one
ENDS, BEGINS = ("stopped", "closed"), ("created", "extended", "resumed")

log = logging.getLogger(__name__)


class Mirror:
    """One run of ours in MLflow: ``read_ledger``, then ``flush``, as often as one likes."""

    def __init__(self, run_folder: Path, uri: str, experiment: str | None) -> None:
        self.state = State()
        self._folder, self._uri, self._experiment = run_folder, uri, experiment
        self._offset = 0  # bytes of the ledger that have been read
        self._ended_at: float | None = None  # time of the ledger's end, None while it is open
        self._interrupted = False
        self._client: Client | None = None
        self._runs: dict[str, MlflowRun] = {}
        self._runs_complete = False  # or MLflow may hold runs that are not in it
        self._due: set[str] = set()  # names of the runs that may have differences
        self._shown_at: dict[str, float] = {}
        self._given_up: set[str] = set()

    def read_ledger(self) -> int:
        """Fold in what the ledger has that is new; the number of records."""
        try:
            records, self._offset = tail(self._folder / FILE_NAME, self._offset)
        except FileNotFoundError:
            return 0
        for record in records:
            apply(self.state, record)
            if "trial" in record:
                self._due.add(record["trial"])
                continue
            self._due.add(PARENT)
            if record["event"] in ENDS + BEGINS:
                self._ended_at = record["time"] if record["event"] in ENDS else None
                self._touch_all()
        return len(records)

    def finish(self) -> None:
        """No more records will come: look for the report, show what was running as stopped."""
        self._due.add(PARENT)
        if self._ended_at is None and not self._interrupted:
            self._interrupted = True
            self._touch_all()

    def _touch_all(self) -> None:
        self._due |= {PARENT, *self.state.trials}

    def flush(self, *, last: bool = False) -> None:
        """Write every difference, and the ``last`` time the best models of a run that has closed:
        they can be large. Raises :class:`Outage`; what was not written stays due."""
        if not self.state.begun:
            return
        with talking():
            client = self._connect()
        due = self._due - self._given_up
        trials = sorted(name for name in due - {PARENT} if self._may_show(name))
        outages: list[Outage] = []

        def show(name: str) -> None:
            try:
                if not outages:
                    self._show(client, name)
            except Outage as outage:
                outages.append(outage)

        with ThreadPoolExecutor(1 if self._uri.startswith("sqlite") else SERVER_THREADS) as pool:
            list(pool.map(show, trials))
        if PARENT in due:  # last, so that its end means that all is there
            show(PARENT)
        if outages:
            raise outages[0]
        if last and self.state.closed:
            log_best_models(client, self.state, self._folder, self._runs)

    def _may_show(self, name: str) -> bool:
        over = self._ended_at or self._interrupted or self.state.trials[name].ended_at
        return bool(over) or time.monotonic() - self._shown_at.get(name, -REST_S) >= REST_S

    def _connect(self) -> Client:
        """Find every run that MLflow has of ours; create the parent where it is missing."""
        name = str(self.state.header.run)
        if not self._runs_complete or self._client is None:
            self._client = Client(self._uri, self._experiment or name)
            self._runs = self._client.runs_of(view.run_id(self.state))
            self._runs_complete = True
            self._touch_all()
        if PARENT not in self._runs:
            tags = view.run_tags(self.state, self._interrupted)
            self._create(self._client, PARENT, name, tags, self.state.created_at)
        return self._client

    def _create(
        self, client: Client, key: str, name: str, tags: dict[str, str], at: float | None
    ) -> MlflowRun:
        try:
            # Not the tags that say how far the metrics are there, which come after it.
            first = {k: v for k, v in tags.items() if k not in ("epochs", "verdict_at")}
            run = self._runs[key] = client.create(name, first, at)
        except Exception:
            self._runs_complete = False  # it may have been created all the same
            raise
        return run

    def _show(self, client: Client, name: str) -> None:
        """One run's differences, in as few requests as possible."""
        try:
            with talking():
                if name == PARENT:
                    self._show_parent(client, self._runs[PARENT])
                elif view.has_begun(self.state.trials[name]):
                    self._show_trial(client, self.state.trials[name])
                    self._shown_at[name] = time.monotonic()
        except Outage as outage:
            if outage.forgotten:
                self._runs_complete = False
            if not outage.permanent:
                raise
            # For instance a run that somebody deleted in the UI: the others go on.
            self._given_up.add(name)
            log.warning(f"{name or 'the parent run'} is no longer mirrored: {outage}")
        self._due.discard(name)

    def _show_trial(self, client: Client, trial: TrialState) -> None:
        tags = view.trial_tags(self.state, trial, self._runs[PARENT].id, self._interrupted)
        run = self._runs.get(trial.trial)
        if run is None:
            began = trial.started_at or trial.ended_at
            run = self._create(client, trial.trial, trial.trial, tags, began)
        status = view.STATUS.get(tags["status"], "RUNNING")
        new = [epoch for epoch in sorted(trial.reports) if epoch > run.epochs]
        metrics = [row for epoch in new for row in view.epoch_metrics(trial.reports[epoch])]
        if run.status != status:
            metrics += view.final_metrics(trial)
        client.log(run, metrics, view.trial_params(trial), tags)
        run.epochs = trial.epoch
        if run.status != status:
            if trial.ended_at is not None and trial.reports:
                client.put_text(run, "learning_curve.json", view.learning_curve(trial))
            if trial.stage == "final" and not run.has_datasets:
                client.log_datasets(run, view.datasets(self.state, trial))
            if trial.outcome.get("probes"):
                client.put_text(run, "probes.json", view.as_json(trial.outcome["probes"]))
            client.set_status(run, status, trial.ended_at or self._ended_at)

    def _show_parent(self, client: Client, run: MlflowRun) -> None:
        tags = view.run_tags(self.state, self._interrupted)
        status = view.STATUS.get(tags["status"], "RUNNING")
        metrics: list[view.MetricRow] = []
        if run.status != status and self._ended_at:
            metrics += view.run_metrics(self.state, self._ended_at)
        if run.tags.get("verdict_at") != tags.get("verdict_at"):
            metrics += view.claim_metrics(self.state)
        client.log(run, metrics, {}, tags)
        if self.state.verdict:
            client.put_text(run, view.VERDICT, view.as_json(self.state.verdict["detail"]))
        if not run.has_datasets:
            client.log_datasets(run, view.datasets(self.state))
        header = self.state.header
        client.put_text(run, "spec.json", view.as_json(header.spec.as_dict()))
        client.put_text(run, "environment.json", view.as_json(header.environment.as_dict()))
        self._put_comparison(client, run)
        if run.status != status:
            client.set_status(run, status, self._ended_at)

    def _put_comparison(self, client: Client, run: MlflowRun) -> None:
        """Report, figures and table, as the run left them beside its ledger."""
        page, file = self._folder / REPORT, self._folder / COMPARISON
        if client.lacks(run, file):
            comparison = json.loads(file.read_text(encoding="utf-8"))
            client.put_text(run, view.TABLE, view.as_json(view.summary_table(comparison)))
            client.log(run, [], {}, view.comparison_tags(comparison, run.tags))
            client.put_file(run, file)
        if client.lacks(run, page):
            for figure in sorted((self._folder / PLOTS).glob("*.svg")):
                client.put_text(run, f"{PLOTS}/{figure.name}", figure.read_text(encoding="utf-8"))
            client.put_file(run, page)
