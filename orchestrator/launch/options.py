"""From the options of a command to the run that they ask for.

Nothing heavy is imported: the command line reads its options here.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from orchestrator.launch.entrants import Entrants, pooled, screened, typed
from orchestrator.spec import limits, named_sweeps, overrides
from orchestrator.spec.candidates import Candidate
from orchestrator.spec.run import RunSpec, SweepSpec, dataset_name, sanitised
from trainables.errors import collected, raise_if_any

DEMO_FAMILIES = ("resnet", "vit", "hybrid")
# Two minutes on two CPUs. Digits are 8 px wide: at 16 px an epoch costs half of one at 32 px, and
# the families differ as they do there. With patches of 4 px a ViT learns enough in so few steps to
# be behind for a reason, and not at chance.
DEMO = {
    "trials": 4,
    "max_epochs": 8,
    "final_seeds": 1,
    "set": ("data.train_limit=1000", "backbone.image_size=16", "vit.backbone.patch=4"),
}
# Of a tournament. At equal cost more searches, each with one final, tell candidates apart better
# than three with three: benchmarks/oracle.py.
SEARCHES, FINAL_SEEDS, SEEDS_OF_ONE_SEARCH = 4, 1, 3
# By field of :class:`RunOptions`, what the command line says of it.
OPTIONS = tomllib.loads(Path(__file__).with_name("options.toml").read_text("utf-8"))


def option_name(field: str) -> str:
    """A field of :class:`RunOptions` as the command line calls it, without its hyphens."""
    return field.rstrip("_").replace("_", "-")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a command that starts runs is asked for, in the words of its options; ``None`` is not
    given. ``workers`` is a number or ``LEAST..MOST``, ``set`` and ``price`` are repeatable."""

    name: str | None = None
    dataset: str | None = None
    scale: str | None = None
    weights: str | None = None
    trials: int | None = None
    max_epochs: int | None = None
    seed: int | None = None
    audit: float | None = None
    workers: str | None = None
    gpus_per_worker: float | None = None
    cpus_per_worker: float | None = None
    from_: tuple[str, ...] = ()
    pool: tuple[str, ...] = ()
    from_screen: str | None = None
    searches: int | None = None
    metric: str | None = None
    margin: float | None = None
    final_seeds: int | None = None
    set: tuple[str, ...] = ()
    storage: str = "runs"
    tracking_uri: str | None = None
    experiment: str | None = None
    budget: str | None = None
    price: tuple[str, ...] = ()
    measure: bool | None = None
    tflops: float | None = None
    reopen_test: bool = False

    def texts(self, options: Iterable[str] = ()) -> list[str]:
        """``options``, or all, and ``set`` as ``PATH=VALUE``, those of ``set`` last."""
        paths = {name: OPTIONS[name].get("path") for name in options or OPTIONS}
        values = {path: getattr(self, name) for name, path in paths.items() if path}
        least, is_range, most = str(self.workers or "").partition("..")
        if is_range:
            values |= {"resources.min_workers": least, "resources.num_workers": most}
        given = [f"{path}={value}" for path, value in values.items() if value is not None]
        return [*given, *self.set]

    def arguments(self) -> list[str]:
        """As the words of a command line: those that are not the defaults."""
        words = []
        for one in fields(self):
            value, option = getattr(self, one.name), option_name(one.name)
            if value == one.default:
                continue
            if isinstance(value, bool):
                words.append(f"--{option}" if value else f"--no-{option}")
            else:
                values = value if isinstance(value, tuple) else (value,)
                words += [f"--{option}={each}" for each in values]
        return words

    def run(self, name: str, sweeps: tuple[SweepSpec, ...]) -> RunSpec:
        """A run of ``sweeps``, called ``name`` unless another name was asked for. Raises
        ``UserError`` for a budget or price that cannot be read."""
        budget, prices = limits.parse(self.budget, self.price)
        return RunSpec(
            name=self.name or name,
            sweeps=sweeps,
            storage=self.storage,
            tracking_uri=self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or None,
            experiment=self.experiment,
            searches=1 if self.searches is None else self.searches,
            final_seeds=self.final_seeds or 0,
            margin=RunSpec.margin if self.margin is None else self.margin,
            budget=budget,
            prices=prices,
            from_screen=self.from_screen,
        )


def asked(
    command: str, target: str | Sequence[str] = (), **options: Any
) -> tuple[RunSpec, RunOptions]:
    """The run that a command and its parameters ask for, and how it is to be carried out. Reads
    the ledger of a run that has begun. Raises ``UserError`` and ``StorageError``."""
    from orchestrator.launch.continuing import continued  # here: reading ledgers takes a while

    if command == "demo":
        target, options = DEMO_FAMILIES, {**DEMO, **options}
    targets, chosen = [target] if isinstance(target, str) else target, RunOptions(**options)
    mistakes: list[str] = []
    entrants = entrants_of(targets, chosen, mistakes)
    spec = _run_of(entrants, chosen, mistakes, compares=command == "tournament")
    texts = [*entrants.texts, *chosen.texts()]
    if chosen.from_:
        from orchestrator.launch.warm_start import warm_started

        spec = warm_started(spec, chosen.from_)
    return continued(spec, texts), chosen


def spec_of(targets: Sequence[str], options: RunOptions, *, compares: bool = False) -> RunSpec:
    """The run of the candidates ``targets``, as they are typed, and of those that ``options`` take
    from pools and a screen; one that ``compares`` them has by default the searches and finals that
    a verdict needs. Raises ``UserError`` with all that is wrong."""
    mistakes: list[str] = []
    entrants = entrants_of(targets, options, mistakes)
    return _run_of(entrants, options, mistakes, compares=compares)


def entrants_of(targets: Sequence[str], options: RunOptions, mistakes: list[str]) -> Entrants:
    """Who takes part: a screen's finalists, then a pool's candidates, then those that are typed.
    What is wrong is added to ``mistakes``."""
    if not targets and not options.pool and options.from_screen is None:
        mistakes.append(
            "a run needs at least one candidate; got none. "
            "Fix: name some, such as resnet vit, or --pool small, or --from-screen NAME"
        )
    entrants = typed(targets, mistakes)
    if options.pool:
        with collected(mistakes):
            entrants = pooled(options.pool).beside(entrants)
    if options.from_screen is not None:
        with collected(mistakes):
            run = options.name or name_after_screen(options.from_screen, entrants.names)
            entrants = screened(options.from_screen, options.storage, run, entrants)
    return entrants


def _run_of(
    entrants: Entrants, options: RunOptions, mistakes: list[str], *, compares: bool
) -> RunSpec:
    # Unknown targets keep their mistakes beside those of --set.
    sweeps = entrants.sweeps or (named_sweeps.family_sweep("vit"),)
    with collected(mistakes):
        sweeps = overrides.apply_sets(sweeps, [*entrants.texts, *options.texts()])
        mistakes += entrants.data_mistakes(sweeps)
    with collected(mistakes):
        run = options.run("", ())
    raise_if_any(mistakes)
    # Searches that begin with the same recipes are not independent.
    if compares and options.searches is None and not options.from_:
        run = replace(run, searches=SEARCHES)
    if compares and options.final_seeds is None:
        run = replace(run, final_seeds=FINAL_SEEDS if run.searches > 1 else SEEDS_OF_ONE_SEARCH)
    name = (
        default_name(entrants.names, sweeps)
        if entrants.screen is None
        else name_after_screen(entrants.screen, entrants.names)
    )
    return replace(run, name=run.name or name, sweeps=entrants.stored(sweeps))


def default_name(targets: Sequence[str], sweeps: Sequence[SweepSpec]) -> str:
    """``TARGET-DATASET``: the same command typed again is the same run. A label that was given
    takes its target's place."""
    return sanitised("-".join([*map(_short, targets), dataset_name(sweeps[0].data.source)]))


def name_after_screen(screen: str, targets: Sequence[str]) -> str:
    """The same of a screen's finalists, with ``targets`` beside them."""
    return sanitised("-".join(["tournament", screen, *map(_short, targets)]))


def _short(text: str) -> str:
    candidate = Candidate.parse(text)
    target = candidate.target
    name = target.rpartition(":")[2] if ".py:" in target else target
    return candidate.label or (Path(name).stem if name.endswith(".json") else name)
