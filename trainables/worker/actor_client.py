"""A line to a named Ray actor that outlasts the actor's restarts. Imports no torch."""

from __future__ import annotations

from typing import Any

import ray

from trainables.storage.waiting import retry

OUTAGE_PATIENCE_S, PAUSE_S = 120.0, 0.2
# ValueError: the name is unknown while the actor restarts.
AWAY = (ray.exceptions.RayActorError, ValueError)


class ActorClient:
    """Calls methods of the actor ``name`` in ``namespace``, from any thread.

    The handle is looked up once, not for every call; pickled without it, because Tune pickles
    what schedulers hold. A call raises the last Ray error when the actor stays away for
    ``OUTAGE_PATIENCE_S``.
    """

    def __init__(self, name: str, namespace: str) -> None:
        self.name, self.namespace = name, namespace
        self._actor: Any = None

    def __call__(self, method: str, *arguments: Any, **named: Any) -> Any:
        def call() -> Any:
            try:
                actor = self._actor or ray.get_actor(self.name, namespace=self.namespace)
                self._actor = actor
                answer = getattr(actor, method).remote(*arguments, **named)
                return ray.get(answer, timeout=OUTAGE_PATIENCE_S)
            except AWAY:
                self._actor = None
                raise

        return retry(
            call,
            on=AWAY,
            patience_s=OUTAGE_PATIENCE_S,
            first_pause_s=PAUSE_S,
            longest_pause_s=PAUSE_S,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_actor": None}
