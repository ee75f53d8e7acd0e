"""What a crash leaves of a dispatcher, and a slot that asks one."""

from __future__ import annotations

from orchestrator.engine.dispatcher import Dispatcher
from orchestrator.engine.dispatcher_state import DispatcherState
from trainables.worker.messages import Order


def killed(dispatcher: DispatcherState | Dispatcher) -> None:
    """Its files are closed, as the kernel closes a killed process's: the next one may write."""
    state = dispatcher if isinstance(dispatcher, DispatcherState) else dispatcher._session
    state._ledger.close()


def order_for(
    dispatcher: DispatcherState, slot: str, incarnation: str, running: str | None
) -> Order | None:
    """What a slot is told that asks for an order."""
    dispatcher.register_heartbeat(slot, incarnation, running)
    return dispatcher.order(slot, running)
