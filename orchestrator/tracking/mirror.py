"""Bring MLflow in step with a ledger: compare what it should show with what it holds, write the
difference. Repeating that from any point changes nothing, so an outage needs no queue.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from orchestrator.ledger.state import Record, State, TrialState, apply
from orchestrator.tracking import report, view
from orchestrator.tracking.best_model import log_best
from orchestrator.tracking.client import Client, MlflowRun, Outage, talking

PARENT = ""  # key of the parent run beside the trials' names
REPORT, COMPARISON = "report.html", "comparison.json"
PROBES = "probes.json"
SERVER_THREADS = 3
REST_S = 5.0  # between two requests about a trial that goes on: short epochs share one
ENDS, BEGINS = ("stopped", "closed"), ("created", "extended", "resumed")


class Mirror:
    """One run of ours in MLflow: ``add`` records, then ``flush``, as often as one likes."""

    def __init__(
        self, run_folder: Path, uri: str, experiment: str | None, say: Callable[[str], None]
    ) -> None:
        self.state = State()
        self.ended_at: float | None = None  # time of the ledger's end, None while it is open
        self._interrupted = False
        self._folder, self._uri, self._experiment, self._say = run_folder, uri, experiment, say
        self._client: Client | None = None
        self._held: dict[str, MlflowRun] = {}
        self._dirty: set[str] = set()
        self._shown_at: dict[str, float] = {}
        self._given_up: set[str] = set()
        self._unsure = True  # whether MLflow may hold runs that we do not know of

    def add(self, records: Iterable[Record]) -> None:
        """Fold new records in."""
        for record in records:
            apply(self.state, record)
            if "trial" in record:
                self._dirty.add(record["trial"])
                continue
            self._dirty.add(PARENT)
            if record["event"] in ENDS + BEGINS:
                self.ended_at = record["time"] if record["event"] in ENDS else None
                self._touch_all()

    def finish(self) -> None:
        """No more records will come: look for the report, show what was running as stopped."""
        self._dirty.add(PARENT)
        if self.ended_at is None and not self._interrupted:
            self._interrupted = True
            self._touch_all()

    def _touch_all(self) -> None:
        self._dirty |= {PARENT, *self.state.trials}

    def flush(self, *, last: bool = False) -> None:
        """Write every difference, and the ``last`` time the best models of a run that has closed:
        they can be large. Raises :class:`Outage`; what was not written stays due."""
        if not self.state.header:
            return
        with talking():
            client = self._ready()
        trials = {name for name in self._dirty - self._given_up - {PARENT} if self._due(name)}
        broken: list[Outage] = []

        def show(name: str) -> None:
            try:
                if not broken:
                    self._show(client, name)
            except Outage as outage:
                broken.append(outage)

        with ThreadPoolExecutor(1 if self._uri.startswith("sqlite") else SERVER_THREADS) as pool:
            list(pool.map(show, sorted(trials)))
        if PARENT in self._dirty - self._given_up:  # last, so that its end means that all is there
            show(PARENT)
        if broken:
            raise broken[0]
        if last and self.state.closed:
            log_best(client, self.state, self._folder, self._held, self._say)

    def _due(self, name: str) -> bool:
        over = self.ended_at or self._interrupted or self.state.trials[name].ended_at
        return bool(over) or time.monotonic() - self._shown_at.get(name, -REST_S) >= REST_S

    def _ready(self) -> Client:
        """Know every run that MLflow has of ours, the parent among them."""
        if self._unsure or self._client is None:
            self._client = Client(self._uri, self._experiment or str(self.state.header["run"]))
            self._held = self._client.find(view.RUN_ID_TAG, view.run_id(self.state), "trial")
            self._unsure = False
            self._touch_all()
        if PARENT not in self._held:
            tags = view.run_tags(self.state, self._interrupted)
            begun = self.state.created_at
            self._held[PARENT] = self._create(
                self._client, str(self.state.header["run"]), tags, begun
            )
        return self._client

    def _create(
        self, client: Client, name: str, tags: dict[str, str], at: float | None
    ) -> MlflowRun:
        try:
            # Not the tags that say how far the metrics are there, which come after it.
            known = {k: v for k, v in tags.items() if k not in ("epochs", "verdict_at")}
            return client.create(name, known, at)
        except Exception:
            self._unsure = True  # it may have been created all the same
            raise

    def _show(self, client: Client, name: str) -> None:
        """One run's differences, in as few requests as possible."""
        try:
            with talking():
                if name == PARENT:
                    self._show_parent(client, self._held[PARENT])
                elif view.has_begun(self.state.trials[name]):
                    self._show_trial(client, self.state.trials[name])
                    self._shown_at[name] = time.monotonic()
        except Outage as outage:
            if outage.forgotten:
                self._unsure = True
            if not outage.permanent:
                raise
            # For instance a run that somebody deleted in the UI: the others go on.
            self._given_up.add(name)
            self._say(f"{name or 'the parent run'} is no longer mirrored: {outage}")
        self._dirty.discard(name)

    def _show_trial(self, client: Client, trial: TrialState) -> None:
        parent = self._held[PARENT].id
        tags = view.trial_tags(self.state, trial, parent, self._interrupted)
        held = self._held.get(trial.trial)
        if held is None:
            begun = trial.started_at or trial.ended_at
            held = self._held[trial.trial] = self._create(client, trial.trial, tags, begun)
        target = view.STATUS.get(tags["status"], "RUNNING")
        new = [epoch for epoch in sorted(trial.reports) if epoch > held.epochs]
        metrics = [row for epoch in new for row in view.epoch_metrics(trial.reports[epoch])]
        if held.status != target:
            metrics += view.final_metrics(trial)
        client.log(held, metrics, view.trial_params(trial), tags)
        held.epochs = trial.epoch
        if held.status != target:
            if trial.ended_at is not None and trial.reports:
                client.put_text(held, "learning_curve.json", view.learning_curve(trial))
            if trial.stage == "final" and not held.has_datasets:
                client.log_datasets(held, view.datasets(self.state, trial))
            if trial.outcome.get("probes"):
                client.put_text(held, PROBES, view.as_json(trial.outcome["probes"]))
            client.set_status(held, target, trial.ended_at or self.ended_at)

    def _show_parent(self, client: Client, held: MlflowRun) -> None:
        tags = view.run_tags(self.state, self._interrupted)
        target = view.STATUS.get(tags["status"], "RUNNING")
        metrics = view.run_metrics(self.state, self.ended_at) if self.ended_at else []
        due = metrics if held.status != target else []
        if held.tags.get("verdict_at") != tags.get("verdict_at"):
            due = [*due, *view.claim_metrics(self.state)]
        client.log(held, due, {}, tags)
        if self.state.verdict:
            verdict = view.as_json(self.state.verdict["detail"])
            client.put_text(held, view.ARTIFACT, verdict)
        if not held.has_datasets:
            client.log_datasets(held, view.datasets(self.state))
        for name in ("spec", "environment"):
            client.put_text(held, f"{name}.json", view.as_json(self.state.header.get(name, {})))
        self._put_comparison(client, held)
        if held.status != target:
            client.set_status(held, target, self.ended_at)

    def _put_comparison(self, client: Client, held: MlflowRun) -> None:
        """Report, figures and table, as the run left them beside its ledger."""
        page, comparison = self._folder / REPORT, self._folder / COMPARISON
        if client.lacks(held, comparison):
            told = json.loads(comparison.read_text(encoding="utf-8"))
            client.put_text(held, report.TABLE, view.as_json(report.summary(told)))
            client.log(held, [], {}, report.tags(told, held.tags))
            client.put_file(held, comparison)
        if client.lacks(held, page):
            for name, svg in report.figures(self._folder).items():
                client.put_text(held, f"{report.PLOTS}/{name}", svg)
            client.put_file(held, page)
