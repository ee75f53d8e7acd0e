"""How a run ended, as its ledger tells it and as an exit code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator import session


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
