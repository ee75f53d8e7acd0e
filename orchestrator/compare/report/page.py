"""The report people open: one HTML file that needs nothing but itself, and its figures as files.

First the answer, what it speaks of, what it cost, what else differed, and one picture. Then, folded
but for what bears the answer: the screen, finals, candidates, classes one by one, mistakes to look
at, what accuracy costs, the screen audited, trials against their cost, learning curves, curves over
budget, the audit of pruning, recipe sensitivity, probes, the forecast scored, failures, the images,
what differed besides the architecture, a paragraph of methods for a paper, how to reproduce. On
paper all of it is unfolded. What a section says is in ``templates/``, one file a section; here is
what the templates are given, and :func:`read_report`, which reads back what the page carries of its
runs.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from orchestrator import wording
from orchestrator.compare import shortlist, table
from orchestrator.compare.choice import PRICE_WORDS
from orchestrator.compare.comparison import ByImage, Comparison, pictures_of
from orchestrator.compare.data_notes import copies_lines
from orchestrator.compare.families import CandidateSummary
from orchestrator.compare.finals import by_search, finished, newest_round
from orchestrator.compare.probes import PooledProbes
from orchestrator.compare.recipe_axes import FEWEST
from orchestrator.compare.report import figures, seed_figures
from orchestrator.compare.report.class_figures import class_figures
from orchestrator.compare.report.figures import Figure
from orchestrator.compare.report.gallery import gallery_of, without_text
from orchestrator.compare.report.methods import methods_of
from orchestrator.compare.runs import RunData, Values, collect
from orchestrator.compare.shortlist import Shortlist
from orchestrator.compare.statistics import POWER, MeanInterval
from orchestrator.compare.verdicts import OF_LEVEL, PairResult, describe_verdict, detectable_text
from orchestrator.ledger import cost
from orchestrator.spec import limits
from orchestrator.spec.candidates import Candidate
from orchestrator.spec.run import RunSpec
from orchestrator.spec.screening import from_screen
from orchestrator.spec.settings import settings
from trainables.errors import UserError, one_line
from trainables.metrics import TOP1, Metric

PAGE, PLOTS = "report.html", "plots"
TABLE_ROWS = 1000
WRAP = 40  # characters beyond which a column wraps
# In the order of the page; a claim's grid of trials has no use for those of a search.
SECTIONS = (
    "claim", "screen", "finals", "families", "classes", "mistakes", "tradeoffs", "screening",
    "cost", "curves", "budget", "audit", "recipe", "probes", "forecast", "failures", "data",
    "differences", "methods", "reproduce",
)  # fmt: skip
OF_A_SEARCH = ("finals", "tradeoffs", "budget", "audit", "recipe", "probes", "methods")
OF_IMAGES = ("classes", "mistakes")  # that finals predicted
OF_A_SCREEN = ("screen", "data", "reproduce")
# Facts in which two architectures differ by being two.
OF_ARCHITECTURE = (
    "family", "model", "scale", "params_m", "gflops_per_image", "patch", "stem", "tokens",
    "adaptation",
)  # fmt: skip


def report_html(comparison: Comparison, *, images: bool = True) -> str:
    """One self-contained offline page, with small pictures of the images that it speaks of where
    they are on this machine; without any unless ``images``."""
    return _page(comparison, figures_of(comparison), images=images)


def write_report(comparison: Comparison, folder: Path) -> list[Path]:
    """Write ``report.html`` and each of its figures as ``plots/*.svg`` into ``folder``.

    Returns the files, the page last: whoever sees it finds the figures beside it.
    """
    made = figures_of(comparison)
    plots = folder / PLOTS
    plots.mkdir(parents=True, exist_ok=True)
    files = {plots / figure.file_name: figure.file_text for of in made.values() for figure in of}
    for earlier in set(plots.glob("*.svg")) - set(files):
        earlier.unlink()
    files[folder / PAGE] = _page(comparison, made)
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return list(files)


def figures_of(comparison: Comparison) -> dict[str, list[Figure]]:
    """The report's figures by the row of the page that they stand in."""
    candidates = collect(comparison.runs)
    search = {candidate.label: candidate.search for candidate in candidates}
    claims = _claims(comparison)
    made = {
        name: seed_figures.claim_figures(claim, run.verdict, name) for name, claim, run in claims
    }
    made["finals"] = []
    made["cost"] = figures.against_cost(search, comparison.metric)
    made["curves"] = figures.learning_curves(search, comparison.metric)
    if comparison.claims:
        return made
    places = {candidate: index for index, candidate in enumerate(search)}
    judged = comparison.metric.name
    tested = {
        candidate.label: list(chain(*by_search(finished(newest_round(candidate)), judged)))
        for candidate in candidates
    }
    if of_finals := seed_figures.finals_figure(comparison.families, tested, places):
        made["finals"] = [of_finals]
    made["tradeoffs"] = seed_figures.front_figures(comparison.tradeoffs, places)
    if curves := comparison.curves_over_budget:
        made["expected"] = figures.expected_best(curves, places)
        made["together"] = figures.expected_together(curves, places)
        made["spent"] = figures.best_so_far(search, comparison.metric)
    if comparison.importance:
        made["importance"], made["lines"] = figures.recipe_figures(candidates, comparison)
    if comparison.by_image and (classes := comparison.by_image.classes):
        made["confusion"], made["reliability"] = class_figures(classes, places)
    made["probes"] = seed_figures.probe_figures(_pooled(comparison), places)
    return made


def unlike_besides_architecture(comparison: Comparison) -> list[str]:
    """What else differs between the candidates, by name."""
    return [
        fact.what
        for fact in comparison.differences
        if not fact.same and fact.what not in OF_ARCHITECTURE
    ]


def spent(runs: Sequence[RunData]) -> list[str]:
    """What all trials took by kind of device, finals and audits among them, and in dollars where
    every run has a price."""
    hours: dict[str, float] = {}
    dollars: list[float | None] = []
    for state in (run.state for run in runs if run.state.trials):
        resources = cost.resources_of(state)
        device = limits.device(resources)
        hours[device] = hours.get(device, 0.0) + cost.spent_device_hours(state)
        dollars.append(limits.usd(cost.device_seconds(state), resources, state.spec.prices))
    texts = [f"{wording.duration(3600 * amount)} of {device}" for device, amount in hours.items()]
    if dollars and None not in dollars:
        texts.append(f"${sum(filter(None, dollars)):.3g}")
    return texts


def _claims(comparison: Comparison) -> list[tuple[str, Values, RunData]]:
    """``(section id, declared claim, run)`` of each run that declared one."""
    return [
        ("claim" if len(comparison.runs) == 1 else f"claim-{place}", claim, run)
        for place, run in enumerate(comparison.runs)
        if (claim := run.state.spec.claim)
    ]


def _pooled(comparison: Comparison) -> dict[str, PooledProbes]:
    """The pooled probes of each candidate whose finals were probed."""
    finals = {e.family: e.final.probes for e in comparison.families if e.final}
    return {candidate: probes for candidate, probes in finals.items() if probes}


def _page(
    comparison: Comparison, made: Mapping[str, Sequence[Figure]], *, images: bool = True
) -> str:
    entries, by_image = comparison.families, comparison.by_image or ByImage()
    metric = comparison.metric
    finals = [entry for entry in entries if entry.final]
    hidden = {
        *(OF_A_SEARCH if comparison.claims else ()),
        *(() if comparison.forecast else ("forecast",)),
        *(OF_IMAGES if comparison.claims or not by_image.classes else ()),
        *(() if comparison.screens else ("screen",)),
        *(() if comparison.screening else ("screening",)),
    }
    if comparison.screens and all(run.state.is_screen for run in comparison.runs):
        hidden |= set(SECTIONS) - set(OF_A_SCREEN)
    gallery = None
    if "mistakes" not in hidden:
        gallery = gallery_of(by_image, pictures_of(comparison.runs) if images else None)
    methods = methods_of(comparison)
    if methods is None:
        hidden.add("methods")
    template = _environment().get_template("page.html")
    return template.render(
        vars(comparison),
        answer=comparison.answer,
        by_image=by_image,
        gallery=gallery,
        validation_images=comparison.validation_images,
        sections=[name for name in SECTIONS if name not in hidden],
        spent=spent(comparison.runs),
        unlike=unlike_besides_architecture(comparison),
        methods=methods,
        claims=_claims(comparison),
        figures=made,
        ranked=sorted(entries, key=table.place_of),
        finals=sorted(finals, key=lambda entry: _final_place(entry, metric)),
        pooled=_pooled(comparison),
        labels=[entry.family for entry in entries],
        embedded=embedded(comparison.runs, comparison.screens),
        copies=copies_lines(comparison.dataset_info) if comparison.dataset_info else [],
        checkpoints=table.checkpoints_text(comparison.runs),
    )


def _final_place(entry: CandidateSummary, metric: Metric) -> float:
    test = entry.final.test if entry.final else None
    return 1.0 if test is None else -float(metric.score(test.mean))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("orchestrator.compare.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_unbroken,
        extensions=["jinja2.ext.do"],
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    filters = (
        wording.axis_name, wording.count, wording.day, wording.moved_texts,
         wording.figure, wording.p_text, wording.percent, wording.percent_ends,
        wording.points, wording.recipe_text, wording.duration, wording.signed, wording.value_text,
        table.budget_lines, table.counts_text, table.domain_text, table.edge_text,
        shortlist.conclusions, shortlist.left_out_rows, shortlist.shortlist_rows,
        table.correlation_text, table.front_text, table.metric_text, table.price_text,
        table.record_lines, table.regret_text, table.tau_text, table.unfinished_text,
        seed_figures.effect_text, seed_figures.number, describe_verdict, without_text, command,
        record, spec_text,
    )  # fmt: skip
    environment.filters |= {function.__name__: function for function in filters}
    environment.filters["column_classes"] = _column_classes
    environment.filters["capital"] = lambda noun: noun[0].upper() + noun[1:]
    environment.filters["price_words"] = PRICE_WORDS.__getitem__
    environment.filters["level_text"] = OF_LEVEL.__getitem__
    environment.filters["mean_interval"] = _mean_interval
    environment.filters["smallest_detectable"] = _smallest_detectable
    environment.globals |= {
        "SCREEN_COLUMNS": shortlist.COLUMNS,
        "MISSING": wording.MISSING, "NONE": wording.NONE, "TABLE_ROWS": TABLE_ROWS,
        "POWER": POWER, "FEWEST": FEWEST, "LINES": figures.LINES,
        "unit_words": seed_figures.UNIT_WORDS, "TOP1": TOP1,
    }  # fmt: skip
    return environment


def _smallest_detectable(pair: PairResult, metric: Metric) -> str:
    if pair.smallest_detectable is None:
        return wording.MISSING
    return detectable_text([pair.smallest_detectable], metric) or wording.NONE


def _mean_interval(mean: MeanInterval | None, metric: Metric = TOP1) -> str:
    return wording.MISSING if mean is None else wording.interval(**vars(mean), metric=metric)


def _unbroken(value: Any) -> Any:
    """A number stays on one line with its percent sign or its ``n =``."""
    if type(value) is not str:
        return value
    return value.replace(" %", "\u00a0%").replace("n = ", "n\u00a0=\u00a0")


def _column_classes(rows: Sequence[Sequence[str]]) -> list[str]:
    """``w`` for a column of long texts, which wraps, ``n`` for one of numbers, set to the right."""
    texts = [[c.striptags() if isinstance(c, Markup) else c for c in row] for row in rows]
    return [_column_class(cells) for cells in zip(*texts, strict=True)]


def _column_class(cells: Sequence[str]) -> str:
    if max(map(len, cells)) > WRAP:
        return "w"
    numbers = all(
        cell.lstrip("−")[:1].isdigit() or cell in (wording.MISSING, wording.NONE) for cell in cells
    )
    return "n" if numbers else ""


# No "<" is left in the JSON itself.
EMBEDDED = re.compile(r'<script type="application/json" id="spec">(.*?)</script>', re.S)


def embedded(runs: Sequence[RunData], screens: Sequence[Shortlist] = ()) -> Values:
    """Name, spec, spec hash and command of each run, which the page carries as JSON."""
    entries = [
        {
            "name": run.name,
            "spec_hash": run.header.spec_hash,
            "command": command(run, screens),
            "spec": run.header.spec.as_dict(),
        }
        for run in runs
    ]
    return {"schema": 1, "runs": entries}


def read_report(path: Path, *, run: str | None = None) -> Values:
    """``{"name", "spec", "spec_hash", "command"}`` of the run that a report was made of.

    ``run`` names it where the report compares several. Raises ``UserError`` for a file that is no
    report, for a run that is not in it, and for several without ``run``.
    """
    try:
        page = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"a report is an HTML file of orchestrator compare; {str(path)!r} cannot be read "
            f"({type(error).__name__}). Fix: name the report.html in a run's folder"
        ) from error
    carried = EMBEDDED.search(page)
    if carried is None:
        raise UserError(
            f"a report holds the spec of its run; {str(path)!r} has none. "
            "Fix: name a report.html that orchestrator compare wrote"
        )
    entries = _entries(carried[1], path)
    if run is None and len(entries) == 1:
        (run,) = entries
    if run not in entries:
        given = "none was named" if run is None else f"got {run!r}"
        raise UserError(
            f"one run of the report is reproduced; {given}; valid: {', '.join(entries)}. "
            "Fix: name one of them"
        )
    entry: Values = entries[run]
    return entry


def _entries(text: str, path: Path) -> dict[str, Values]:
    """By name what a page carries of its runs. Raises ``UserError`` where it is anything else."""
    try:
        runs = json.loads(text)["runs"]
        entries: dict[str, Any] = {str(entry["name"]): dict(entry) for entry in runs}
        for entry in entries.values():
            spec = RunSpec.from_dict(
                entry["spec"]
            )  # without the logins that older reports may hold
            places = {"storage": spec.storage, "tracking_uri": spec.tracking_uri}
            entry |= {key: str(entry[key]) for key in ("command", "spec_hash")}
            entry["spec"] = {**entry["spec"], **places}
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise UserError(
            f"a report holds the spec of its run; that in {str(path)!r} cannot be read "
            f"({one_line(error)[:200]}). Fix: ask for the report again (orchestrator compare)"
        ) from None
    return entries


def record(run: RunData) -> list[list[str]]:
    """Facts of a run, each with its value."""
    environment = run.header.environment.as_dict()
    versions, created = environment.pop("versions"), run.state.created_at
    facts = {
        "spec hash": run.header.spec_hash or wording.MISSING,
        "code version": run.header.code_version or wording.MISSING,
        "created (UTC)": wording.day(created) if created else wording.MISSING,
        "status": run.status,
        **environment,
        **versions,
    }
    return [[fact, str(value)] for fact, value in facts.items() if value is not None]


def spec_text(run: RunData) -> str:
    """The run's whole spec as JSON for people."""
    return json.dumps(run.header.spec.as_dict(), indent=1)


def command(run: RunData, screens: Sequence[Shortlist] = ()) -> str:
    """The command that asks for the run, but for where it is kept and what it may cost; empty
    without a spec. Of a run that came from one of ``screens`` it names the screen in place of its
    finalists."""
    spec = run.header.spec
    if not spec.sweeps:
        return ""
    screen = next((one for one in screens if one.name == spec.from_screen), None)
    finalists = screen.spec.candidates if screen else {}
    first = spec.sweeps[0]
    scheduler, resources = first.scheduler, first.resources
    options: dict[str, object] = {
        "name": run.name,
        "dataset": first.data.source,
        "scale": first.backbone.scale,
        "weights": first.backbone.weights,
    }
    if claim := spec.claim:
        words = ["claims", "run", claim["name"]]
        options["preset"] = claim["preset"]
        others = claim["options"]
    else:
        compares = screen is not None or len(spec.sweeps) > 1  # then its defaults are others
        words = ["tournament" if compares else "sweep"]
        weights = first.backbone.weights
        words += [
            str(Candidate.of(sweep.backbone, sweep.label, weights=weights))
            for sweep in spec.sweeps
            if sweep.candidate not in finalists
        ]
        most = None if resources.num_workers == 1 else resources.num_workers
        options |= {
            "from-screen": spec.from_screen if screen else None,
            "searches": spec.searches if compares or spec.searches > 1 else None,
            "trials": first.trials,
            "max-epochs": scheduler.max_epochs,
            "seed": first.seed,
            "final-seeds": spec.final_seeds if compares or spec.final_seeds else None,
            "metric": spec.metric.name if spec.metric != TOP1 else None,
            "margin": spec.margin if spec.margin != RunSpec.margin else None,
            "audit": scheduler.audit or None,
            "workers": f"{resources.least_workers}..{most}" if resources.elastic else most,
        }
        start = first.warm_start
        others = [["--from", source] for source in (start.sources if start else ())]
        given_elsewhere = {
            sweep.candidate: from_screen(is_finalist=sweep.candidate in finalists)
            for sweep in (spec.sweeps if screen else ())
        }
        others += [["--set", text] for text in settings(spec.sweeps, given=given_elsewhere)]
    given = [[f"--{name}", str(value)] for name, value in options.items() if value is not None]
    return shlex.join(["orchestrator", *words, *chain(*given, *others)])
