"""The plan of a run, printed."""

from __future__ import annotations

import click

from orchestrator.cli_check import check
from orchestrator.cli_costs import costs_of, images_of, refuse_unaffordable
from orchestrator.cli_options import say, show
from orchestrator.plan import plan
from orchestrator.plan_text import plan_text
from orchestrator.spec import RunSpec


def show_plan(
    spec: RunSpec, *, measure: bool | None, tflops: float | None, as_json: bool = False
) -> None:
    """Print what ``spec`` would do. ``measure`` is ``False`` to do without, and so it is on a
    running cluster: its machines are not this one.

    Raises ``UserError`` for mistakes, and for what can never be scheduled or afforded.
    """
    total = check(spec)
    images, geometry = images_of(spec, say)
    here = measure is not False and total is not None
    costs = costs_of(spec, images, geometry, measure=here, tflops=tflops, say=say)
    refuse_unaffordable(spec, costs)
    made = plan(spec, total=total, geometry=geometry, costs=costs, tflops=tflops)
    if as_json:
        show(made)
    else:
        click.echo(plan_text(made))
    say("next: the same with `orchestrator sweep` or `tournament` and no --dry-run")
