"""Commands about pools: screen, pool list, pool show."""

from __future__ import annotations

import logging
import shlex
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli import supervise
from orchestrator.cli.options import JSON, SET, STORAGE, TRACKING, beside, show
from orchestrator.spec.screening import TOP
from orchestrator.wording import MISSING

if TYPE_CHECKING:
    from orchestrator.screen.pool import EntryFacts

log = logging.getLogger(__name__)


@click.command()
@click.argument("pools", metavar="POOL...", nargs=-1, required=True)
@click.option(
    "--dataset", default="digits", show_default=True, metavar="NAME|PATH", help="As for a sweep."
)
@click.option(
    "--minutes",
    type=float,
    metavar="M",
    help="For all candidates: as many training images as fit. Default: all of them.",
)
@click.option(
    "--top", type=int, default=TOP, show_default=True, metavar="K", help="So many are shortlisted."
)
@click.option(
    "--max-latency-ms",
    type=float,
    metavar="X",
    help="Of one image, measured on the device that screens.",
)
@click.option(
    "--max-params-m",
    type=float,
    metavar="X",
    help="Millions of parameters, without the classifier.",
)
@click.option(
    "--audit",
    type=float,
    default=0.0,
    show_default=True,
    metavar="SHARE",
    help="Share of those screened out that is drawn to stand beside the shortlist.",
)
@click.option("--name", help="Create this screen, or go on with it. Default: screen-POOL-DATASET.")
@SET
@JSON
@STORAGE
@TRACKING
@click.pass_context
def screen(ctx: click.Context, /, as_json: bool, **options: Any) -> None:
    """Rank a pool of backbones by probes on frozen features. Minutes; prints a shortlist.

    POOL is a pool of `orchestrator pool list`, a text file, or a candidate: a family, timm:MODEL,
    timm:PATTERN, timm:MODEL=WEIGHTS or LABEL=timm:MODEL=WEIGHTS. Each sees images at its own side.
    The same command goes on where it stopped; features are kept beside the image store.
    """
    from orchestrator.compare.shortlist import shortlist_text
    from orchestrator.launch.screens import ScreenOptions, screen_of
    from orchestrator.screen.run import run_screen

    spec = screen_of(ScreenOptions(**options))
    supervise.announce(spec.folder)
    result = run_screen(spec)
    show(as_json, result.as_dict(), lambda: shortlist_text(result))
    log.info(f"shortlist: {spec.folder / 'shortlist.json'}")
    place = beside(spec.storage)
    if result.finalists:
        log.info(f"next: orchestrator tournament --from-screen {spec.name}{place}")
    else:
        log.info(
            f"next: the same command with wider limits; orchestrator compare {spec.name}{place}"
        )
    ctx.exit(result.exit_code)


@click.group()
def pool() -> None:
    """Look into pools of candidates for a screen."""


@pool.command("list")
@JSON
def list_pools(as_json: bool) -> None:
    """The pools of the package and how many candidates each has."""
    from orchestrator.screen.pool import pool_names, read_pools

    pools = [{"pool": name, "candidates": len(read_pools([name]))} for name in pool_names()]
    document = {"schema": 1, "pools": pools}
    show(as_json, document, lambda: "\n".join(f"{p['pool']:<10} {p['candidates']}" for p in pools))
    log.info("next: orchestrator pool show small")


@pool.command("show")
@click.argument("pools", metavar="POOL...", nargs=-1, required=True)
@JSON
def show_pool(pools: tuple[str, ...], as_json: bool) -> None:
    """Parameters, operations, side, pretraining data and licence of each candidate. No network.

    POOL is as for `orchestrator screen`. Parameters and operations (of one image, a multiply-add
    counts as two) are without the classifier; data and licence are what timm says of the weights.
    """
    from orchestrator.screen.pool import described, read_pools

    rows = described(read_pools(pools))
    document = {"schema": 1, "candidates": [_document(row) for row in rows]}
    show(as_json, document, lambda: "\n".join(_table(rows)))
    log.info(f"next: orchestrator screen {shlex.join(pools)} --dataset path/to/images")


def _document(row: EntryFacts) -> dict[str, object]:
    entry, facts = row.entry, row.facts
    return {
        "label": entry.label,
        "backbone": entry.backbone.as_dict(),
        "params_m": facts and facts.params_m,
        "gflops_per_image": facts and facts.gflops_per_image,
        "image_size": entry.backbone.image_size,
        "pretraining_data": facts and facts.pretraining_data,
        "license": facts and facts.license,
        "date": entry.day and entry.day.isoformat(),
        "why": entry.why,
        "reason": row.reason,
    }


def _table(rows: list[EntryFacts]) -> list[str]:
    lines: list[tuple[str, ...]] = [
        ("candidate", "params M", "GFLOPs", "px", "pretraining data", "licence", "why")
    ]
    for row in rows:
        facts = row.facts
        if facts is None:
            lines.append((row.entry.label, *[MISSING] * 5, row.reason or ""))
            continue
        lines.append(
            (
                row.entry.label,
                f"{facts.params_m:.1f}",
                f"{facts.gflops_per_image:.2f}",
                str(facts.image_size),
                facts.pretraining_data or MISSING,
                facts.license or MISSING,
                row.entry.why or "",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
