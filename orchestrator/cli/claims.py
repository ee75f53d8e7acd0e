"""Commands on claims: list them, run them, show their verdicts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.options import JSON, MEANS, STORAGE, SUBJECT, apply, show
from orchestrator.cli.read import run_folder, run_folders
from trainables.errors import UserError

if TYPE_CHECKING:
    from orchestrator.claims.design import Facts
    from orchestrator.spec.run import RunSpec

log = logging.getLogger(__name__)

PRESETS = ("smoke", "standard", "full")
subject, means = partial(apply, SUBJECT), partial(apply, MEANS)


@click.group()
def claims() -> None:
    """Received opinions about architectures, as experiments with verdicts."""


@claims.command("list")
@JSON
def list_(as_json: bool) -> None:
    """List the claims. With --json, every word and number of their declarations."""
    from orchestrator.claims.experiments import CLAIMS

    declared = [claim.declaration() for claim in CLAIMS.values()]
    if as_json:
        show({"schema": 1, "claims": declared})
    else:
        for one in declared:
            click.echo(f"{one['name']:<28} {one['statement']}")
    log.info("next: orchestrator claims run CLAIM --preset smoke --dry-run")


@claims.command()
@subject
@click.argument("claim", nargs=-1, required=True)
@click.option(
    "--preset",
    type=click.Choice(PRESETS),
    default="smoke",
    show_default=True,
    help="How far to go: minutes on a laptop, hours on one, hours on a GPU.",
)
@click.option("--seeds", type=int, help="Seeds of every arm, instead of the preset's.")
@click.option("--max-epochs", type=int, help="Epochs of the reference arm, instead of the preset's")
@click.option("--seed", type=int, help="Draws the seeds. Default 0.")
@click.option("--name", help="Name of the run, for one claim. Default: of claim, data and preset.")
@means
@click.option("--dry-run", is_flag=True, help="Print what it would cost and stop.")
@JSON
@click.pass_context
def run(
    ctx: click.Context, /, claim: tuple[str, ...], dry_run: bool, as_json: bool, **options: Any
) -> None:
    """Run claims one after the other. The same command goes on where it stopped."""
    specs, totals = specs_of(claim, options)
    if dry_run:
        _dry_run(specs, totals, options, as_json)
        return
    if as_json:
        raise UserError("--json is for --dry-run and `claims show`. Fix: leave it out")
    from orchestrator.cli.run import carry_out
    from orchestrator.launch.prepare import RunOptions

    how = RunOptions(measure=options["measure"], tflops=options["tflops"])
    codes = []
    for spec in specs:
        log.info(f"claim: {(spec.claim or {})['name']}, as run {spec.name}")
        codes.append(carry_out(spec, totals, how))
        if codes[-1] == 130:
            break
    place = "" if options["storage"] == "runs" else f" --storage {options['storage']}"
    log.info(f"next: orchestrator claims show {' '.join(spec.name for spec in specs)}{place}")
    ctx.exit(max(codes))


def specs_of(
    names: tuple[str, ...], options: dict[str, Any], *, as_job: bool = False
) -> tuple[list[RunSpec], Mapping[str, float] | None]:
    """The runs asked for, validated all together before the first of them starts, and what
    :func:`orchestrator.launch.validation.validate` returned of them."""
    from orchestrator.claims.design import run_spec
    from orchestrator.claims.experiments import claim_named
    from orchestrator.launch.validation import validate

    if options["name"] and len(names) > 1:
        raise UserError(
            f"--name is for one claim; got {len(names)} claims. Fix: leave it out, or name one"
        )
    options = {**options, "dataset": options["dataset"] or "digits",
               "scale": options["scale"] or "tiny"}  # fmt: skip
    chosen = [claim_named(name) for name in dict.fromkeys(names)]
    facts = _facts(options)
    specs, totals = [], None
    errors: list[UserError] = []
    for claim in chosen:
        try:
            specs.append(run_spec(claim, options, facts))
        except UserError as error:
            errors.append(error)
    try:
        totals = validate(*specs, as_job=as_job)
    except UserError as error:
        errors.append(error)
    if errors:
        mistakes = dict.fromkeys(line for error in errors for line in error.mistakes)
        raise UserError(*mistakes, exit_code=min(error.exit_code for error in errors))
    return specs, totals


def _facts(options: Mapping[str, Any]) -> Facts:
    """Side, classes and images of the dataset; read into the pixel store where it is unknown."""
    from orchestrator.claims.design import KNOWN, Facts
    from orchestrator.spec.named_sweeps import family_sweep
    from orchestrator.spec.overrides import apply_set
    from orchestrator.spec.paths import absolute_data
    from trainables.data.build import prepare
    from trainables.data.sources import check_source
    from trainables.errors import raise_if_any

    if options["dataset"] in KNOWN:
        return KNOWN[options["dataset"]]
    told = [text for text in options["set"] if text.startswith("data.")]
    data = apply_set(family_sweep("vit", dataset=options["dataset"]), told).data
    raise_if_any(check_source(data))
    info = prepare(absolute_data(data)).info
    return Facts(
        side=min(info.height, info.width),
        classes=len(info.class_names),
        train_images=info.counts["train"],
        val_images=info.counts["val"],
    )


def _dry_run(
    specs: list[RunSpec],
    totals: Mapping[str, float] | None,
    options: Mapping[str, Any],
    as_json: bool,
) -> None:
    from orchestrator.claims.design import price, price_lines
    from orchestrator.launch.costs import costs_of, images_of

    measure = options["measure"] is not False

    def cost_of(spec: RunSpec) -> tuple[Any, Any]:
        family = spec.sweeps[0].family
        images = images_of(spec)
        costs = costs_of(spec, images, measure=measure, tflops=options["tflops"])
        return images[family].counts, costs[family]

    made = [price(spec, cost_of, total=totals) for spec in specs]
    hours = [one["wall_hours"] for one in made]
    whole = None if None in hours else sum(hours)
    if as_json:
        show({"schema": 1, "claims": made, "wall_hours": whole})
    else:
        click.echo("\n\n".join("\n".join(price_lines(one)) for one in made))
        if whole is not None and len(made) > 1:
            click.echo(f"\nall       about {60 * whole:.0f} minutes here")
    log.info("next: the same without --dry-run")


@claims.command("show")
@click.argument("name", nargs=-1)
@JSON
@STORAGE
def show_(name: tuple[str, ...], as_json: bool, storage: str) -> None:
    """Show verdicts, recomputed from the ledgers. Without a NAME, all of the storage folder."""
    from orchestrator.claims.verdict import declared, shown, state_of
    from orchestrator.ledger.session import state_of as any_state

    folders = [run_folder(one, storage) for one in name]
    if not name:
        folders = [one for one in run_folders(storage) if declared(any_state(one))]
    verdicts = [shown(state_of(folder)) for folder in folders]
    if as_json:
        show({"schema": 1, "claims": verdicts})
    else:
        from orchestrator.claims.verdict import verdict_lines

        click.echo("\n\n".join("\n".join(verdict_lines(one)) for one in verdicts))
    for one in verdicts:
        if one["rule_changes"]:
            log.info(f"{one['run']}: its rule has changed since: a changed rule is a new claim")
    if not verdicts:
        log.info(f"no claim was run in {storage!r} yet; next: orchestrator claims list")


COMMANDS = (claims,)
