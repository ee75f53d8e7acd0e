"""Decides what trains next and says what it meant.

    import orchestrator as bt

    run = bt.load("runs/demo")
    run.trials, run.epochs          # Arrow tables; .to_pandas()
    run.compare().answer
    bt.sweep("vit", bt.RunOptions(trials=4))
    bt.tournament(["resnet", "vit"], bt.RunOptions(max_epochs=9))

What is exported is in ``api``; importing this package loads nothing of it. Rooms, top to bottom,
each of which imports only rooms below it, are in ARCHITECTURE.md. Start with ``cli/main.py``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.api.runs import Run, load
    from orchestrator.api.start import sweep, tournament
    from orchestrator.launch.options import RunOptions
    from trainables.errors import UserError

__all__ = ["Run", "RunOptions", "UserError", "load", "sweep", "tournament"]

_HOMES = {
    "Run": "orchestrator.api.runs",
    "load": "orchestrator.api.runs",
    "sweep": "orchestrator.api.start",
    "tournament": "orchestrator.api.start",
    "RunOptions": "orchestrator.launch.options",
    "UserError": "trainables.errors",
}


def __getattr__(name: str) -> Any:
    """An export, loaded when it is first asked for: a worker or ``--help`` needs none of them."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
