"""The dispatcher and its slots as the driver holds them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import ray

from orchestrator.dispatcher import Dispatcher
from orchestrator.ledger import FILE_NAME
from orchestrator.session import open_trials, state_of
from orchestrator.slots import SlotPool, worker_resources
from orchestrator.spec import RunSpec
from orchestrator.trial import NAMESPACE, RESOURCES
from trainables.line import Line
from trainables.storage import is_remote

CONCURRENT_CALLS = 1000
ABANDON_PATIENCE_S = 3.0


class Decider:
    """Writes a decision through the dispatcher; plain data, because Tune pickles schedulers."""

    def __init__(self, dispatcher: str) -> None:
        self._call = Line(dispatcher, NAMESPACE)

    def __call__(self, event: str, trial: str | None = None, **fields: Any) -> None:
        self._call("record", event, trial, **fields)


class Pool:
    """One session's dispatcher actor and ``num_slots`` slots."""

    def __init__(
        self, spec: RunSpec, folder: Path, session: str, num_slots: int, *, more_to_come: bool
    ) -> None:
        resources = spec.sweeps[0].resources
        self.num_slots = num_slots
        self.dispatcher = f"dispatcher-{spec.name}-{session}"
        self.decide = Decider(self.dispatcher)
        self._call = Line(self.dispatcher, NAMESPACE)
        self._folder = folder
        self._uncapped = not spec.budget and not is_remote(spec.storage)
        self._actor = (
            ray.remote(Dispatcher)
            .options(
                name=self.dispatcher,
                namespace=NAMESPACE,
                num_cpus=0,
                resources=RESOURCES,
                max_restarts=-1,
                max_concurrency=CONCURRENT_CALLS,
            )
            .remote(
                str(folder / FILE_NAME),
                session=session,
                more_to_come=more_to_come,
                max_failures_per_trial=resources.max_failures_per_trial,
                worker=worker_resources(resources),
                full_workers=resources.num_workers if resources.elastic else None,
            )
        )
        self._slots = SlotPool(
            num_slots=num_slots,
            resources=resources,
            dispatcher=self.dispatcher,
            namespace=NAMESPACE,
            session=session,
            folder=folder / "slots",
            lost=lambda slot, reason: self._call("slot_lost", slot, reason),
        )

    def start(self) -> None:
        """Ask Ray Train for the slots; they wait until the books are opened."""
        self._slots.start()

    def open(self) -> None:
        """The ledger holds what to train."""
        self._call("open")

    def ready(self) -> int:
        """Slots that have asked for work."""
        return int(self._call("slots_ready"))

    def silent_s(self) -> float:
        """Seconds since any slot asked for an order."""
        return float(self._call("silent_s"))

    def alive(self) -> int:
        """Slots whose Ray Train run has not ended."""
        return self._slots.alive()

    def errors(self) -> list[str]:
        """Why slots ended, where they ended in error."""
        return self._slots.errors

    def submit(self, records: list[dict[str, Any]]) -> None:
        """Write the records that begin the last phase."""
        self._call("submit", records)

    def over_budget(self) -> str | None:
        """Why nothing that is left may be trained, if the budget or the storage ends the run."""
        if self._uncapped:
            return None
        reason: str | None = self._call("over_budget")
        return reason

    def open_trials(self) -> list[str]:
        """Trials that have not ended, from the ledger."""
        return open_trials(state_of(self._folder))

    def stop(self) -> None:
        """Wake every trial and slot that waits, so that they end at once."""
        self._call("stop")

    def close(self, event: str, reason: str | None, patience_s: float) -> None:
        """Let the slots leave, for at most ``patience_s``, then write the last record."""
        self.stop()
        self._slots.join(patience_s)
        self._call("close", event, reason=reason)
        ray.kill(self._actor)

    def abandon(self) -> None:
        """Leave no trace of a session that never began."""
        self.stop()
        self._slots.join(ABANDON_PATIENCE_S)
        ray.kill(self._actor)
        shutil.rmtree(self._folder / "slots", ignore_errors=True)
