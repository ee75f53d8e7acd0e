"""Commands on claims: list them, run them, show their verdicts."""

from __future__ import annotations

import logging
from typing import Any

import click

from orchestrator.cli.options import JSON, MEANS, STORAGE, SUBJECT, beside, show
from orchestrator.cli.run import carry_out
from orchestrator.ledger import session
from orchestrator.ledger.replication import existing_run, existing_runs
from trainables.errors import UserError

log = logging.getLogger(__name__)


@click.group()
def claims() -> None:
    """Received opinions about architectures, as experiments with verdicts."""


@claims.command("list")
@JSON
def list_(as_json: bool) -> None:
    """List the claims. With --json, every word and number of their declarations."""
    from orchestrator.claims.experiments import CLAIMS

    declared = [claim.declaration() for claim in CLAIMS.values()]
    lines = [f"{claim['name']:<28} {claim['statement']}" for claim in declared]
    show(as_json, {"schema": 1, "claims": declared}, lambda: "\n".join(lines))
    log.info("next: orchestrator claims run CLAIM --preset smoke --dry-run")


@claims.command()
@SUBJECT
@click.argument("claim", nargs=-1, required=True)
@click.option(
    "--preset",
    type=click.Choice(["smoke", "standard", "full"]),
    default="smoke",
    show_default=True,
    help="How far to go: minutes on a laptop, hours on one, hours on a GPU.",
)
@click.option("--seeds", type=int, help="Seeds of every arm, instead of the preset's.")
@click.option("--max-epochs", type=int, help="Epochs of the reference arm, instead of the preset's")
@click.option("--seed", type=int, help="Draws the seeds. Default 0.")
@click.option("--name", help="Name of the run, for one claim. Default: of claim, data and preset.")
@MEANS
@click.option("--dry-run", is_flag=True, help="Print what it would cost and stop.")
@JSON
@click.pass_context
def run(
    ctx: click.Context, /, claim: tuple[str, ...], dry_run: bool, as_json: bool, **options: Any
) -> None:
    """Run claims one after the other. The same command goes on where it stopped."""
    from orchestrator.claims.design import ClaimOptions, price, price_lines, specs_of

    chosen = ClaimOptions(**options)
    specs, totals = specs_of(claim, chosen)
    if dry_run:
        plans = [price(spec, chosen, totals=totals) for spec in specs]
        hours = [plan.wall_hours for plan in plans if plan.wall_hours is not None]
        total_hours = sum(hours) if len(hours) == len(plans) else None
        texts = ["\n".join(price_lines(plan)) for plan in plans]
        if total_hours is not None and len(plans) > 1:
            texts.append(f"all       about {60 * total_hours:.0f} minutes here")
        documents = [plan.as_dict() for plan in plans]
        document = {"schema": 1, "claims": documents, "wall_hours": total_hours}
        show(as_json, document, lambda: "\n\n".join(texts))
        log.info("next: the same without --dry-run")
        return
    if as_json:
        raise UserError("--json is for --dry-run and `claims show`. Fix: leave it out")
    codes = []
    for spec in specs:
        log.info(f"claim: {(spec.claim or {})['name']}, as run {spec.name}")
        codes.append(carry_out(spec, totals, chosen))
        if codes[-1] == 130:
            break
    names = " ".join(spec.name for spec in specs)
    log.info(f"next: orchestrator claims show {names}{beside(chosen.storage)}")
    ctx.exit(max(codes))


@claims.command("show")
@click.argument("name", nargs=-1)
@JSON
@STORAGE
def show_(name: tuple[str, ...], as_json: bool, storage: str) -> None:
    """Show verdicts, recomputed from the ledgers. Without a NAME, all of the storage folder."""
    from orchestrator.claims.verdict import declared, shown, state_of, verdict_lines

    folders = [existing_run(run, storage) for run in name]
    if not name:
        folders = [
            folder for folder in existing_runs(storage) if declared(session.state_of(folder))
        ]
    verdicts = [shown(state_of(folder)) for folder in folders]
    texts = ["\n".join(verdict_lines(verdict)) for verdict in verdicts]
    show(as_json, {"schema": 1, "claims": verdicts}, lambda: "\n\n".join(texts))
    for verdict in verdicts:
        if verdict["rule_changes"]:
            log.info(f"{verdict['run']}: its rule has changed since: a changed rule is a new claim")
    if not verdicts:
        log.info(f"no claim was run in {storage!r} yet; next: orchestrator claims list")
