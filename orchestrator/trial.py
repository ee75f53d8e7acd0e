"""The thin Tune trial: asks the dispatcher for one epoch after the other. Imports no torch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ray
from ray import tune

NAMESPACE = "backbone-tournament"
OUTAGE_PATIENCE_S = 120.0

# Held by the head node alone, so drivers stay on the node that is never a spot instance.
RESOURCES: dict[str, float] = {"node:__internal_head__": 0.001}


class Line:
    """A line to the named dispatcher actor that outlasts its restarts.

    The handle is looked up once, not for every call; pickled without it, because Tune pickles
    what schedulers hold. A call raises the last Ray error when the actor stays away for
    ``OUTAGE_PATIENCE_S``.
    """

    def __init__(self, dispatcher: str) -> None:
        self.dispatcher = dispatcher
        self._actor: Any = None

    def __call__(self, method: str, *arguments: Any, **named: Any) -> Any:
        deadline = time.monotonic() + OUTAGE_PATIENCE_S
        while True:
            try:
                if self._actor is None:
                    self._actor = ray.get_actor(self.dispatcher, namespace=NAMESPACE)
                answer = getattr(self._actor, method).remote(*arguments, **named)
                return ray.get(answer, timeout=OUTAGE_PATIENCE_S)
            except (ray.exceptions.RayActorError, ValueError):
                # ValueError: the name is unknown while the actor restarts.
                self._actor = None
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def __getstate__(self) -> dict[str, Any]:
        return {"dispatcher": self.dispatcher, "_actor": None}


def call(dispatcher: str, method: str, *arguments: Any, **named: Any) -> Any:
    """One call to the named dispatcher actor, as :class:`Line` makes it."""
    return Line(dispatcher)(method, *arguments, **named)


class SlotTrial(tune.Trainable):  # type: ignore[misc]
    """One trial as Tune sees it; config holds ``trial`` and ``dispatcher``, both names.

    The result of a step is ``epoch``, ``val_top1`` and ``done``. A trial that failed on its
    slot ends here without a metric: the ledger holds the reason, and Tune must not retry it.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._open(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._open(new_config)
        return True

    def _open(self, config: dict[str, Any]) -> None:
        self._trial = str(config["trial"])
        self._call = Line(str(config["dispatcher"]))
        self._epoch = int(self._call("resume_epoch", self._trial))

    def step(self) -> dict[str, Any]:
        while True:
            answer = self._call("ask", self._trial, self._epoch + 1)
            if "metrics" in answer:
                self._epoch += 1
                return {
                    "epoch": self._epoch,
                    "val_top1": answer["metrics"].get("val_top1", float("nan")),
                    "done": answer["done"],
                }
            if "ended" in answer:
                return {"ended": answer["ended"], "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to save: what the trial knows is in the ledger."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load: ``setup`` has asked the dispatcher."""


class StopFile(tune.Stopper):  # type: ignore[misc]
    """Stops every trial once a file exists: one road for users, signals and the watch."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        """Tune asks between any two events of its loop."""
        return self._path.exists()
