"""The cap on what a run may cost, where epochs are handed out.

Each search has an equal share, so that none can spend what another was promised. An epoch is
handed out only when what the search has spent, what its epochs under way will come to and this
one stay within the share. An epoch is expected to cost what the costliest one seen of the candidate
did, and a margin; before the first one, what the plan measured. Where the plan has only an
estimate, or none, a first epoch is handed out all the same, and others beside it only if there is
room for far more than that estimate.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.ledger.cost import epoch_seconds, resources_of
from orchestrator.ledger.header import Forecast
from orchestrator.ledger.state import ReportedEpoch, State
from orchestrator.spec import limits

ESTIMATE_MARGIN = 5.0


@dataclass
class Slot:
    """One Ray Train run, as last heard of; times are of the dispatcher's clock."""

    trial: str | None = None
    incarnation: str | None = None
    heard_at: float | None = None
    free_since: float | None = None
    ordered_at: float | None = None  # what it was ordered to do is under way since then
    measures: bool = False  # the speed of the final models, which are no trials of its own
    nodes: tuple[str, ...] = ()  # of its workers, by rank
    grown_at: float | None = None  # the change of the cluster that it last started again for
    restarts: bool = False  # its workers are about to be told so


class BudgetGuard:
    """What is left of the cap in the header of ``state``; affords everything where it has none.

    ``slots`` is the dispatcher's own table of slots, by name, ``clock`` what its times are of.
    """

    def __init__(self, state: State, slots: dict[str, Slot], clock: Callable[[], float]) -> None:
        self._state, self._slots, self._clock = state, slots, clock
        self._refused: set[str] = set()  # searches of which an epoch was asked for in vain
        self._spent_s: dict[str, float] = defaultdict(float)
        self._largest_s: dict[str, float] = {}
        self._planned_s: dict[str, float] = {}
        self._known: set[str] = set()  # candidates of which an epoch was measured or seen
        self._share_s = state.spec.search_share_s()
        self._num_workers = resources_of(state).num_workers
        forecast = state.header.forecast or Forecast()
        for candidate, cost in forecast.families.items():
            if cost:
                self._planned_s[candidate] = cost.epoch_seconds + cost.first_setup_seconds
                if cost.basis == limits.MEASURED:
                    self._known.add(candidate)
                else:
                    self._planned_s[candidate] *= ESTIMATE_MARGIN
        self._held_s: dict[str, float] = {}  # by trial, of an epoch that its report will name whole
        for trial in state.trials.values():
            self._spent_s[trial.search_name] += trial.unreported_s
            for report in trial.reports.values():
                self.charge(trial.trial, report)
            self._spent_s[trial.search_name] += trial.held_s
            self._held_s[trial.trial] = trial.held_s

    @property
    def capped(self) -> bool:
        """Whether there is a cap: then what one trial spends decides what another may."""
        return self._share_s is not None

    def charge(self, trial: str, report: ReportedEpoch) -> None:
        """An epoch was reported, with what was charged of it before it was interrupted."""
        candidate, seconds = self._candidate(trial), epoch_seconds(report, self._num_workers)
        self._spent_s[self._search(trial)] += seconds - self._held_s.pop(trial, 0.0)
        self._largest_s[candidate] = max(seconds, self._largest_s.get(candidate, 0.0))
        self._known.add(candidate)

    def charge_lost(self, slot: Slot | None, *, waited: bool = False) -> float | None:
        """Charge the seconds of the slot's last order, which ended without a report, and return
        them. Of a slot that has ``waited`` for another node since then, no more than the costliest
        epoch seen."""
        if slot is None or slot.trial is None or slot.ordered_at is None:
            return None
        candidate, seconds = self._candidate(slot.trial), self._clock() - slot.ordered_at
        slot.ordered_at = None
        if waited:
            seconds = min(seconds, self._largest_s.get(candidate, seconds))
        seconds = round(seconds, 3)
        self._spent_s[self._search(slot.trial)] += seconds
        return seconds

    def hold(self, trial: str, seconds: float) -> None:
        """Of what was charged, these ``seconds`` are on the clock of the trial's checkpoint, and
        will be in the report of its epoch."""
        self._held_s[trial] = self._held_s.get(trial, 0.0) + seconds

    def charge_part(self, trial: str, seconds: float) -> float:
        """Charge the trial's part of an order that was for several, and return it."""
        seconds = round(seconds, 3)
        self._spent_s[self._search(trial)] += seconds
        return seconds

    def nothing_left(self, trial: str) -> str | None:
        """Why nothing more may be spent on the trial; ``None`` while something may."""
        search = self._search(trial)
        if self._share_s is None or self._spent_s[search] < self._share_s:
            return None
        return f"{self._caps}: nothing is left of the share of {search}"

    def shared_limit_s(self, trials: Sequence[str]) -> float | None:
        """Seconds of an order for all of the ``trials``, in equal parts, in which each of them
        stays within its search's share; ``None`` without a cap."""
        if self._share_s is None:
            return None
        parts = Counter(map(self._search, trials))
        each_s = min((self._share_s - self._spent_s[name]) / n for name, n in parts.items())
        return len(trials) * max(0.0, each_s)

    def affords(self, trial: str) -> bool:
        """Whether the trial may train one more epoch now."""
        if self._share_s is None:
            return True
        candidate, search = self._candidate(trial), self._search(trial)
        under_way = self._under_way_s(search)
        left = self._share_s - self._spent_s[search]
        if candidate not in self._known and not under_way:
            return left > 0
        each = self._each_s(candidate)
        return each + sum(max(each, elapsed) for elapsed in under_way) <= left

    def limit_s(self, trial: str) -> float | None:
        """Seconds after which the trial's next epoch must stop where it is, lest it pass the cap;
        ``None`` without one. Reached where an epoch costs far more than any before it."""
        if self._share_s is None:
            return None
        search, each = self._search(trial), self._each_s(self._candidate(trial))
        others = sum(max(each, elapsed) for elapsed in self._under_way_s(search))
        return max(0.0, self._share_s - self._spent_s[search] - others)

    def refusal(self, trial: str) -> str | None:
        """Why the trial's search gets no epoch any more; ``None`` while it may get one."""
        search = self._search(trial)
        if not self.affords(trial) and not self._under_way_s(search):
            self._refused.add(search)
        if search not in self._refused:
            return None
        return self._no_room([search])

    def over(self) -> str | None:
        """Why nothing that is left can be trained; ``None`` while something can, or nothing is."""
        if not self._refused:
            return None
        left = {t.search_name for t in self._state.trials.values() if not t.status.is_final}
        return self._no_room(sorted(left)) if left and left <= self._refused else None

    def _no_room(self, searches: list[str]) -> str:
        spec, names = self._state.spec, ", ".join(searches)
        count = len(spec.sweeps) * spec.searches
        share = f", in an equal share for each of {count} searches" if count > 1 else ""
        return f"{self._caps}: no room for another epoch of {names}{share}"

    @property
    def _caps(self) -> str:
        caps = self._state.spec.budget or {}
        return "budget " + ", ".join(f"{unit}={amount:g}" for unit, amount in caps.items())

    def _each_s(self, candidate: str) -> float:
        """What one more epoch may come to; infinite where nothing is known of it."""
        largest_s = self._largest_s.get(candidate, self._planned_s.get(candidate, math.inf))
        return limits.EPOCH_MARGIN * largest_s

    def _candidate(self, trial: str) -> str:
        return self._state.trials[trial].candidate

    def _search(self, trial: str) -> str:
        return self._state.trials[trial].search_name

    def _under_way_s(self, search: str) -> list[float]:
        now = self._clock()
        return [
            now - slot.ordered_at
            for slot in self._slots.values()
            if slot.ordered_at is not None and slot.trial and self._search(slot.trial) == search
        ]
