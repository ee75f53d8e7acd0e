"""What a crash leaves of the books."""

from __future__ import annotations

from orchestrator.dispatcher import Dispatcher
from orchestrator.orders import Orders


def killed(books: Orders | Dispatcher) -> None:
    """Its files are closed, as the kernel closes a killed process's: the next one may write."""
    orders = books if isinstance(books, Orders) else books._orders
    orders._ledger.close()
