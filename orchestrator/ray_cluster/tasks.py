"""Calls of one function as Ray tasks that outlive their workers and their nodes.

Ray itself starts a task again as soon as the connection to its worker breaks. A node that is cut
off the network breaks none: who asked for the task waits for gRPC's keepalive, for minutes. So each
task first says on which node it runs, and is asked for again once the cluster has lost that node.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from orchestrator.ray_cluster.capacity import alive_nodes
from trainables.errors import one_line

MOST_ATTEMPTS = 4  # at a call whose workers are lost
POLL_S = 0.5
NODES_POLL_S = 5.0  # Ray itself takes longer to miss a node

log = logging.getLogger(__name__)

Call = TypeVar("Call")


@dataclass(frozen=True)
class Attempt(Generic[Call]):
    """The ``number``-th task for ``call``, on ``node`` (its id) once it has said so."""

    call: Call
    number: int = 1
    node: str | None = None


class Tasks(Generic[Call]):
    """Tasks of ``function(call, **arguments)``, each on ``cpus`` cores and ``gpus`` GPUs of a
    node."""

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: Mapping[str, Any],
        *,
        cpus: int,
        gpus: int,
    ) -> None:
        import ray

        self._pickled = ray.cloudpickle.dumps((function, dict(arguments)))
        self._task = ray.remote(_on_its_node).options(
            name=function.__name__,
            num_cpus=cpus,
            num_gpus=gpus,
            num_returns="streaming",
            max_retries=0,
        )
        self._waiting: dict[Any, Attempt[Call]] = {}  # by the generator of its answers
        self._nodes = _alive()

    def results(
        self, calls: Sequence[Call], has_ended: Callable[[], bool]
    ) -> Iterator[tuple[Call, Any]]:
        """Each of ``calls`` with what the function returned, as it comes, or with the ``RayError``
        that it ended in. Those that have not answered are cancelled once ``has_ended``, and where
        that raises."""
        import ray

        for call in calls:
            self._begin(Attempt(call))
        nodes_due = time.monotonic() + NODES_POLL_S
        try:
            while self._waiting and not has_ended():
                ready, _ = ray.wait(list(self._waiting), num_returns=1, timeout=POLL_S)
                for answers in ready:
                    yield from self._take(answers)
                if time.monotonic() > nodes_due:
                    self._leave_lost_nodes()
                    nodes_due = time.monotonic() + NODES_POLL_S
        finally:
            for answers in self._waiting:
                ray.cancel(answers, force=True)

    def _begin(self, attempt: Attempt[Call]) -> None:
        answers = self._task.remote(self._pickled, attempt.call)
        self._waiting[answers] = attempt

    def _take(self, answers: Any) -> Iterator[tuple[Call, Any]]:
        """The next answer: the task's node at first, then the result."""
        import ray

        attempt = self._waiting.pop(answers)
        try:
            answer = ray.get(next(answers))
        except ray.exceptions.RayTaskError as error:
            answer = error  # the function's own
        except ray.exceptions.RayError as error:
            if attempt.number < MOST_ATTEMPTS:
                self._begin_again(attempt, f"{type(error).__name__}: {one_line(error)[:200]}")
                return
            answer = error
        else:
            if attempt.node is None:
                self._waiting[answers] = replace(attempt, node=answer)
                return
        yield attempt.call, answer

    def _begin_again(self, attempt: Attempt[Call], why: str) -> None:
        log.info(f"a task is asked for again ({why})")
        self._begin(Attempt(attempt.call, attempt.number + 1))

    def _leave_lost_nodes(self) -> None:
        """Ask again for what ran on nodes that are lost, and for what has not said where it runs:
        that may have been on its way there."""
        import ray

        nodes = _alive()
        lost, self._nodes = self._nodes - nodes, nodes
        for answers, attempt in list(self._waiting.items()) if lost else ():
            if attempt.node is not None and attempt.node not in lost:
                continue
            del self._waiting[answers]
            ray.cancel(answers, force=True)
            if attempt.node is None:
                self._begin(attempt)
            else:
                self._begin_again(attempt, f"node {attempt.node[:6]} is lost")


def _alive() -> set[str]:
    return {node.id for node in alive_nodes()}


def _on_its_node(pickled: bytes, call: object) -> Iterator[Any]:
    """``pickled`` is what to call and its arguments: importing it takes longer than all a node
    needs to say that it is there."""
    import ray

    yield ray.get_runtime_context().get_node_id()
    function, arguments = ray.cloudpickle.loads(pickled)
    yield function(call, **arguments)
