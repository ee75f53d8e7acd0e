"""A bar in the terminal for each long step before the first epoch."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from trainables.progress import StepProgress


class StepBars:
    """Draws on ``console``, the terminal behind stderr, what
    :func:`trainables.progress.watch_steps` hears. The last state of a step is left standing; what
    others print meanwhile scrolls by above the bar."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)  # rich obeys NO_COLOR
        self._shown: tuple[Progress, TaskID] | None = None

    def __call__(self, step: StepProgress | None) -> None:
        """Show how far ``step`` is; ``None``: it has ended."""
        if step is None:
            if self._shown is not None:
                self._shown[0].stop()
            self._shown = None
            return
        if self._shown is None:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[text]}", markup=False),
            )
            bars = Progress(*columns, console=self._console, expand=True)
            self._shown = bars, bars.add_task(step.name, total=step.total, text="")
            bars.start()
        bars, task = self._shown
        bars.update(task, completed=step.done, text=step.text)
