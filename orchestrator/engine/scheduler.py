"""Which trials go on: one bracket for each search, asked report by report, without Ray or a clock.

:class:`Scheduler` asks the bracket (``brackets.py``) of each trial's search, draws who is audited,
and takes up again what an earlier session decided. Tune (``engine/trial.py``) and the simulator
call it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.engine.brackets import (
    Action,
    AshaBracket,
    NoiseRule,
    PashaBracket,
    TopKBracket,
    figure_text,
)
from orchestrator.ledger.state import Stage, State
from orchestrator.spec.limits import SchedulerSpec

NEVER_PRUNED = "the published recipe trains to the end, to be compared there"


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """The paused ``trial`` that goes on, if one does; ``over`` are those whose race has ended."""

    trial: str | None = None
    over: tuple[str, ...] = ()


Decide = Callable[..., None]  # (event, trial, rung=…, epoch=…, reason=…)


class Scheduler:
    """One bracket a search on a shared pool of slots; searches never prune each other.

    ``history`` replays an earlier session, whose decisions are facts: a report that was judged is
    not judged again. The last report of an unfinished trial on which no decision is on record is
    left out: the trial serves it again, and it is judged then. ``decide`` has each decision on
    record before anybody acts on it. ``seed`` draws the audit: a share ``SchedulerSpec.audit`` of
    the trials that ASHA would prune goes on to the end, outside the race.

    The published recipe of a search is never pruned by ASHA or top-K: what tuning gained is a
    difference at full length, and a pruned trial has no value there. It races like the others, its
    values count in every cut-off, and it may win. It is not audited: an audit's trials stand for
    all pruned ones because a lot drew them. PASHA, which compares all at one length, treats it as
    the others.
    """

    def __init__(
        self, schedulers: Mapping[str, SchedulerSpec], history: State, decide: Decide, *, seed: int
    ) -> None:
        self._decide, self._seed = decide, seed
        search = [trial for trial in history.trials.values() if trial.stage == Stage.SEARCH]
        self._search = {trial.trial: trial.search_name for trial in search}
        self._audited = {trial.trial for trial in search if trial.audited}
        self._published = {trial.trial for trial in search if trial.published}
        self._open: dict[str, set[str]] = {name: set() for name in self._search.values()}
        for trial in search:
            if not trial.status.is_final:
                self._open[trial.search_name].add(trial.trial)
        self._specs = {trial.search_name: schedulers[trial.candidate] for trial in search}
        images, candidate = history.header.datasets, {t.search_name: t.candidate for t in search}
        self.metric = history.spec.metric
        noise = {
            name: NoiseRule.of(spec, images.get(candidate[name]), self.metric)
            for name, spec in self._specs.items()
        }
        self._asha = {
            name: AshaBracket(spec, noise[name], self.metric)
            for name, spec in self._specs.items()
            if spec.kind == "asha"
        }
        counts = Counter(self._search.values())
        self._pausing: dict[str, PashaBracket | TopKBracket] = {}
        for name, spec in self._specs.items():
            factor = spec.reduction_factor
            if spec.kind == "pasha":
                rungs = [*spec.rungs(), spec.max_epochs]
                self._pausing[name] = PashaBracket(rungs, factor, noise[name])
            elif spec.kind == "top_k":
                grace = spec.grace_epochs
                self._pausing[name] = TopKBracket(grace, counts[name], factor, noise[name])
        self._replay(history)

    @property
    def pauses(self) -> bool:
        """Whether trials may wait at rungs: then :meth:`promote` says who goes on."""
        return bool(self._pausing)

    def on_report(self, name: str, epoch: int, value: float | None) -> Action:
        """Go on, pause or stop; the decision is on record before anybody acts on it. ``value`` is
        what the report has of ``metric`` on validation, ``None`` where it has none."""
        search = self._search.get(name)
        if value is None or search is None or name in self._audited:
            return Action.CONTINUE
        if epoch >= self._specs[search].max_epochs:
            return Action.CONTINUE
        if value != value:  # NaN passes every comparison
            self._record("pruned", name, epoch, f"{self.metric.val_key} is not a number")
            self.on_end(name)
            return Action.STOP
        score = float(self.metric.score(value))
        if search in self._pausing:
            return self._ask_pausing(self._pausing[search], name, epoch, score)
        return (
            self._ask_asha(search, name, epoch, score) if search in self._asha else Action.CONTINUE
        )

    def _ask_asha(self, search: str, name: str, epoch: int, value: float) -> Action:
        goes_on, rung, reason = self._asha[search].observe(name, epoch, value)
        if rung is None:
            return Action.CONTINUE
        if not goes_on and name in self._published:
            goes_on, reason = True, f"{reason}; {NEVER_PRUNED}"
        event = "promoted" if goes_on else "pruned"
        lot = random.Random(f"{self._seed}/audit/{name}").random()
        if not goes_on and lot < self._specs[search].audit:
            event = "audited"
            self._audited.add(name)
        self._record(event, name, epoch, reason, rung)
        if event != "pruned":
            return Action.CONTINUE
        self.on_end(name)
        return Action.STOP

    def _ask_pausing(
        self, race: PashaBracket | TopKBracket, name: str, epoch: int, value: float
    ) -> Action:
        race.observe(name, epoch, value)
        reached = figure_text(self.metric, value)
        if (decided := race.decided(name, epoch)) is not None:
            return decided
        if isinstance(race, TopKBracket) and name in self._published:
            race.restore(name, epoch, "promoted")
            self._record("promoted", name, epoch, f"{reached}; {NEVER_PRUNED}")
            return Action.CONTINUE
        if race.may_pass(name, epoch):
            self._record("promoted", name, epoch, f"{reached} is among the best")
            return Action.CONTINUE
        self._record("paused", name, epoch, f"{reached}, the cap is {race.cap} epochs")
        return Action.PAUSE

    def promote(self, paused: Collection[str]) -> Promotion:
        """Who of the ``paused`` goes on, asked when no new trial is left to begin."""
        for search, race in self._pausing.items():
            of_search = [name for name in paused if self._search[name] == search]
            running = self._open[search] - set(of_search)
            if (name := race.promote(of_search, running)) is not None:
                epoch = race.epoch(name)
                self._record("promoted", name, epoch, "it is among the best of its rung by now")
                return Promotion(trial=name)
            if of_search and race.is_over(of_search, running):
                return Promotion(over=self._close(race, of_search))
        return Promotion()

    def on_end(self, name: str) -> None:
        """Nothing more will come of this trial. One that the budget sends away is still open."""
        if (search := self._search.get(name)) is not None:
            self._open[search].discard(name)

    def _close(self, race: PashaBracket | TopKBracket, paused: Sequence[str]) -> tuple[str, ...]:
        """Nobody of those who wait is promoted any more: the ranking has settled."""
        for name in paused:
            event, reason = race.end(name)
            self._record(event, name, race.epoch(name), reason)
            self.on_end(name)
        return tuple(paused)

    def _record(
        self, event: str, name: str, epoch: int, reason: str, rung: int | None = None
    ) -> None:
        self._decide(event, name, rung=rung or epoch, epoch=epoch, reason=reason)

    def _replay(self, history: State) -> None:
        reports = [
            (report.place, trial, epoch, report.metrics.get(self.metric.val_key))
            for trial in history.trials.values()
            if trial.trial in self._search
            for epoch, report in trial.reports.items()
            if trial.status.is_final or epoch < trial.epoch or epoch in trial.rungs
        ]
        # In the ledger's order: a clock may have been set back between two reports.
        for _, trial, epoch, value in sorted(reports, key=lambda report: report[0]):
            # What an audited trial does after its rung does not count.
            outside = any(e == "audited" and epoch > rung for rung, e in trial.rungs.items())
            if value is None or value != value or outside:
                continue
            score = float(self.metric.score(value))
            if trial.search_name in self._asha:
                self._asha[trial.search_name].observe(trial.trial, epoch, score)
            elif trial.search_name in self._pausing:
                went_on = epoch < trial.epoch and epoch in trial.rungs
                decision = "promoted" if went_on else trial.rungs.get(epoch)
                self._pausing[trial.search_name].observe(trial.trial, epoch, score)
                self._pausing[trial.search_name].restore(trial.trial, epoch, decision)
