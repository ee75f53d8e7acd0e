"""What a crash leaves of the books."""

from __future__ import annotations

from orchestrator.engine.dispatcher import Dispatcher
from orchestrator.engine.dispatcher_state import DispatcherState


def killed(books: DispatcherState | Dispatcher) -> None:
    """Its files are closed, as the kernel closes a killed process's: the next one may write."""
    orders = books if isinstance(books, DispatcherState) else books._orders
    orders._ledger.close()
