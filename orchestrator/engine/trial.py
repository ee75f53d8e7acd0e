"""The thin Tune trial: asks the dispatcher for one epoch after the other. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import tune

from orchestrator.ray_cluster.capacity import HEAD
from trainables.worker.actor_client import ActorClient

NAMESPACE = "backbone-tournament"

# Held by the head node alone, so drivers stay on the node that is never a spot instance.
RESOURCES: dict[str, float] = {HEAD: 0.001}


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
        self._call = ActorClient(str(config["dispatcher"]), NAMESPACE)
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
