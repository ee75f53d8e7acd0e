"""What a run is asked to do: frozen, keyword-only, checked before anything starts.

RunSpec ── has a NAME; one sweep, or several candidates on one pool of slots
└── SweepSpec ── one candidate
    ├── BackboneSpec, DataSpec, Recipe   (trainables)
    ├── space                            the axes that are searched
    ├── SchedulerSpec                    epochs and rungs
    └── ResourceSpec                     workers, limits of time and failures

Also here: when two specs are the same run, in which leaves they differ, and the paths of their
data, weights and folders.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.spec import limits, spaces
from orchestrator.spec.candidates import label_mistakes
from orchestrator.spec.limits import ResourceSpec, SchedulerSpec
from orchestrator.spec.published import PublishedStart, published_start
from trainables.config import NAMED_WEIGHTS, Assignment, BackboneSpec, DataSpec, Recipe, stable_hash
from trainables.data.sources import KNOWN_DATASETS
from trainables.errors import collected
from trainables.metrics import TOP1, Metric, metric_of
from trainables.printable import without_login
from trainables.spec import OPERATIONAL, Spec, ruled
from trainables.storage.object_storage import is_remote, working_copy


def absolute(path: str) -> str:
    """The path from the root: a worker's working directory is not the user's."""
    return str(Path(path).expanduser().resolve())


def absolute_data(data: DataSpec) -> DataSpec:
    """``data`` with absolute paths."""
    return replace(
        data,
        source=data.source if data.source in KNOWN_DATASETS else absolute(data.source),
        archive=None if data.archive is None else absolute(data.archive),
        folder=None if data.folder is None else absolute(data.folder),
    )


def absolute_backbone(backbone: BackboneSpec) -> BackboneSpec:
    """``backbone`` with an absolute path of its weights, where they are in a file."""
    if backbone.weights in NAMED_WEIGHTS:
        return backbone
    return replace(backbone, weights=absolute(backbone.weights))


def dataset_name(source: str) -> str:
    """The data's part of a run's default name: its own name, or its path's last one."""
    return source if source in KNOWN_DATASETS else Path(source).resolve().stem


def remote_of(storage: str, name: str) -> str | None:
    """The URI of a run that is kept in object storage; ``None`` for one in a folder."""
    return f"{storage.rstrip('/')}/{name}" if is_remote(storage) else None


def run_folder(storage: str, name: str) -> Path:
    """The run's folder; this machine's working copy of it where it is kept in object storage."""
    remote = remote_of(storage, name)
    return Path(storage) / name if remote is None else working_copy(remote)


def diff(old: RunSpec, new: RunSpec) -> list[str]:
    """``PATH: was OLD, asked NEW`` for each leaf that makes ``new`` another run than ``old``."""
    before, after = (
        leaves({_candidate(sweep): sweep for sweep in plain.pop("sweeps")} | plain)
        for plain in (old.identity(), new.identity())
    )
    return [
        f"{path}: was {before.get(path, 'not there')}, asked {after.get(path, 'not there')}"
        for path in sorted({*before, *after})
        if before.get(path) != after.get(path)
    ]


def _candidate(sweep: Mapping[str, Any]) -> str:
    return str(sweep.get("label") or sweep["backbone"]["family"])


def leaves(plain: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Path -> value, as text, of each leaf of a spec's ``as_dict()``."""
    texts: dict[str, str] = {}
    for key, value in plain.items():
        path = f"{prefix}{key}"
        if key == "space":
            domains = spaces.from_dict(value)
            texts |= {f"{path}.{axis}": str(domain) for axis, domain in domains.items()}
        elif key == "grid":
            texts[path] = f"{len(value)} trials, {stable_hash(value)}"
        elif key == "warm_start" and value:
            texts[path] = f"from {', '.join(value['sources'])}, {stable_hash(value)}"
        elif isinstance(value, Mapping):
            texts |= leaves(value, f"{path}.")
        else:
            texts[path] = "none" if value is None else str(value)
    return texts


# Of the values that options leave open, where they change what is trained. Raised by hand, once a
# release; `launch/continuing.py` lets a run go on with those that it began with.
DEFAULTS_VERSION = 2
SEARCHABLE_DATA = ("data.fraction", "data.train_limit")
HasSections = TypeVar("HasSections", "SweepSpec", Assignment)
# By all candidates of a run.
SHARED = ("trials", "seed", "metric", "scheduler", "data", "resources")


@dataclass(frozen=True, kw_only=True)
class SweepSpec(Spec):
    """One candidate's trials. ``label`` is its name in the run, ``None`` for its family's.
    ``recipe`` holds the values of the axes that are not searched. A
    ``grid`` says by paths of its assignment what trial i has for itself; then nothing is drawn.
    Trial 0 of one that is ``published_first`` has the published recipe, where one is on record, in
    all that is searched. After a ``warm_start`` the first trials, or those after it, have the
    recipes of earlier runs. ``compile_pays`` is
    what a measured step said where ``recipe.compile`` is ``None``: decided once, as the run begins;
    ``None`` where nothing was measured. ``metric`` is what trials are judged by, as
    :func:`trainables.metrics.metric_of` reads it; specs of before it were judged by ``top1``."""

    backbone: BackboneSpec
    data: DataSpec = field(default_factory=DataSpec)
    recipe: Recipe = field(default_factory=Recipe)
    space: spaces.Space = field(default_factory=dict, metadata={"read": spaces.from_dict})
    scheduler: SchedulerSpec = field(default_factory=SchedulerSpec)
    resources: ResourceSpec = field(default_factory=ResourceSpec)
    trials: int = ruled(8, 1, option="--trials", operational=True)
    seed: int = ruled(0, 0, option="--seed")
    metric: str = field(default="top1", metadata={"before": "top1"})
    grid: Sequence[spaces.Axes] = ()
    warm_start: spaces.WarmStart | None = None
    published_first: bool = ruled(False, before=False)
    compile_pays: bool | None = ruled(None, operational=True, before=None)
    label: str | None = field(default=None, metadata={"before": None})

    @property
    def family(self) -> str:
        """The backbone's family: its default space and its published recipe."""
        return self.backbone.family

    @property
    def candidate(self) -> str:
        """What the sweep is called inside its run."""
        return self.label or self.family

    def trial_name(self, index: int, search: int = 1) -> str:
        """``LABEL-0000``, from the second search on ``LABEL-s2-0000``."""
        return f"{search_name(self.candidate, search)}-{index:04d}"

    def search_seed(self, search: int) -> int:
        """All that a search draws follows from it; the same for all candidates of a run."""
        return self.seed if search == 1 else _seed(self.seed, "search", search)

    def axes(
        self, index: int, past: Sequence[spaces.Observation] = (), *, search: int = 1
    ) -> spaces.Axes:
        """The searched axes of trial ``index``: path -> value. TPE goes by ``past`` trials."""
        if self.grid:
            return {path: self.grid[index][path] for path in self.space}
        start = self.published_start()
        if start is not None and index == 0:
            return {**self._drawn(0, search), **start.axes}
        if self.warm_start is not None:
            place = index if start is None else index - 1
            if place < len(self.warm_start.recipes):
                return self.warm_start.recipes[place]
            past = [*self.warm_start.observations, *past]
        return self._drawn(index, search, past)

    def _drawn(
        self, index: int, search: int, past: Sequence[spaces.Observation] = ()
    ) -> spaces.Axes:
        return spaces.suggest(
            self.scheduler.sampler,
            self.space,
            seed=self.search_seed(search),
            candidate=self.candidate,
            index=index,
            past=past,
        )

    def published_start(self) -> PublishedStart | None:
        """What trial 0 of each search has as it was published; ``None`` where it is drawn."""
        if not self.published_first or self.grid:
            return None
        return published_start(
            self.space,
            self.backbone,
            self.recipe,
            batch_size=self.recipe.batch_size_per_worker * self.resources.num_workers,
            max_epochs=self.scheduler.max_epochs,
        )

    def submission(self, index: int, search: int = 1) -> dict[str, Any]:
        """What is known of trial ``index`` before it starts: ``assignment`` and ``axes``. With TPE
        it is drawn when it starts: no ``axes`` yet, and an assignment without their values."""
        start = self.published_start() if index == 0 else None
        published = {} if start is None else {"published": start.as_dict()}
        if self.scheduler.sampler == "tpe" and self.space and not self.grid and not published:
            plain = self.assignment(index, axes={}, search=search).as_dict()
            for section, _, name in (path.partition(".") for path in self.space):
                plain[section].pop(name, None)
            return {"assignment": plain}
        axes = self.axes(index, search=search)
        plain = self.assignment(index, axes, search=search).as_dict()
        return {"assignment": plain, "axes": axes, **published}

    def assignment(
        self, index: int, axes: spaces.Axes | None = None, *, search: int = 1
    ) -> Assignment:
        """Trial ``index`` complete, paths absolute for any worker; its searched ``axes`` are drawn
        where they are not given. A second search validates on images of its own and, where not
        all are used, trains on a subset of its own: the same for all candidates."""
        drawn = self.axes(index, search=search) if axes is None else axes
        own, seed = self.grid[index] if self.grid else drawn, self.search_seed(search)
        data = self.data if search == 1 else replace(self.data, val_seed=seed, train_seed=seed)
        assignment = Assignment(
            trial_id=self.trial_name(index, search),
            attempt=1,
            backbone=self.backbone,
            recipe=self._decided_recipe(),
            data=data,
            seed=_seed(seed, self.candidate, index),
            epochs=self.scheduler.max_epochs,
            epoch_timeout_s=self.resources.epoch_timeout_s,
            metric=self.metric,
        )
        assignment = with_axes(assignment, own)
        backbone, data = absolute_backbone(assignment.backbone), absolute_data(assignment.data)
        return replace(assignment, backbone=backbone, data=data)

    def _decided_recipe(self) -> Recipe:
        if self.recipe.compile is not None:
            return self.recipe
        return replace(self.recipe, compile=bool(self.compile_pays))

    def variants(self, prefix: str) -> Iterator[SweepSpec]:
        """The sweep, and what it is at each end or value of its searched axes below ``prefix``."""
        yield self
        for path, domain in self.space.items():
            ends = domain.values if isinstance(domain, spaces.Choice) else (domain.low, domain.high)
            for value in ends if path.startswith(prefix) else ():
                yield with_axes(self, {path: value})

    def mistakes(self) -> list[str]:
        """Every rule broken, one line each; data and backbone are checked by their owners."""
        mistakes = super().mistakes() + self.scheduler.mistakes() + self.resources.mistakes()
        if self.grid and len(self.grid) != self.trials:
            rows = len(self.grid)
            mistakes.append(f"a grid has a row a trial; got {rows} for {self.trials} trials")
        if self.scheduler.sampler == "tpe":
            mistakes += spaces.tpe_mistakes(self.space)
        mistakes += self._metric_mistakes()
        return mistakes + (self._space_mistakes() or self.recipe.mistakes())

    def _metric_mistakes(self) -> list[str]:
        with collected([]) as mistakes:
            metric, rule = metric_of(self.metric), self.scheduler.noise_rule
            if rule != "off" and not metric.is_image_share:
                mistakes.append(
                    "scheduler.noise_rule goes by the binomial error of a share of images, which "
                    f"top1 and top5 are; got {rule} with metric {self.metric}. "
                    "Fix: --set scheduler.noise_rule=off"
                )
        return mistakes

    def _space_mistakes(self) -> list[str]:
        mistakes: list[str] = []
        for path, domain in self.space.items():
            if not searchable(path):
                mistakes.append(
                    f"{path} cannot be searched; valid: recipe.*, backbone.*, "
                    f"{', '.join(SEARCHABLE_DATA)}. Fix: give it one value"
                )
                continue
            wrong = spaces.domain_mistakes(path, domain)
            mistakes += wrong
            for variant in () if wrong else self.variants(path):
                mistakes += variant.recipe.mistakes()
        return list(dict.fromkeys(mistakes))


@dataclass(frozen=True, kw_only=True)
class RunSpec(Spec):
    """What has a NAME. Several sweeps share one pool of slots and one budget. Each is carried out
    in as many independent ``searches``: a statement about candidates needs three. ``margin``: a
    difference of accuracies, as a fraction, within which two of them are equivalent. ``claim`` is
    the declaration of the claim that the run tests. ``from_screen`` names the screen in the same
    storage whose shortlist the run began with. ``defaults`` is the version of what filled in
    the values that nobody gave. A login in a URL is left out: the spec is kept and shown, and
    :mod:`orchestrator.logins` hands the login on."""

    name: str = field(metadata=OPERATIONAL)
    sweeps: tuple[SweepSpec, ...] = ()
    storage: str = field(default="runs", metadata=OPERATIONAL)
    tracking_uri: str | None = field(default=None, metadata=OPERATIONAL)
    experiment: str | None = field(default=None, metadata=OPERATIONAL)
    searches: int = ruled(1, 1, option="--searches", operational=True)
    final_seeds: int = ruled(0, 0, option="--final-seeds", operational=True)
    margin: float = ruled(0.01, 0, 1, open_low=True, option="--margin", operational=True)
    budget: Mapping[str, float] | None = field(default=None, metadata=OPERATIONAL)
    prices: Mapping[str, float] | None = field(default=None, metadata=OPERATIONAL)
    claim: Mapping[str, Any] | None = None
    from_screen: str | None = field(default=None, metadata={**OPERATIONAL, "before": None})
    defaults: int = ruled(DEFAULTS_VERSION, 1, operational=True, before=1)

    def __post_init__(self) -> None:
        object.__setattr__(self, "storage", without_login(self.storage))
        if self.tracking_uri is not None:
            object.__setattr__(self, "tracking_uri", without_login(self.tracking_uri))

    @property
    def folder(self) -> Path:
        """Where the run keeps its ledger, checkpoints and report."""
        return run_folder(self.storage, self.name)

    @property
    def metric(self) -> Metric:
        """What all candidates are judged by; top1 where there is none. Raises ``UserError`` where
        its name is not valid."""
        return metric_of(self.sweeps[0].metric) if self.sweeps else TOP1

    def trial_names(self) -> set[str]:
        """Of all search trials."""
        return {
            sweep.trial_name(index, search)
            for sweep in self.sweeps
            for search in range(1, self.searches + 1)
            for index in range(sweep.trials)
        }

    def search_share_s(self) -> float | None:
        """Seconds of slots that each search may spend of the budget, its finals included; ``None``
        without one."""
        for unit, amount in (self.budget or {}).items():
            resources = self.sweeps[0].resources
            slot_second = limits.spent_in(unit, resources.num_workers, resources, self.prices)
            shares = len(self.sweeps) * self.searches
            return None if slot_second is None else amount / slot_second / shares
        return None

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same: all but the number of trials (a run may be extended), where
        things are kept, and how it is carried out. What came later counts only where it is used."""
        plain = self.as_dict(operational=False)
        owners = [(plain, ("claim",)), *((s, ("grid", "warm_start")) for s in plain["sweeps"])]
        for owner, later in owners:
            for name in later:
                if not owner[name]:
                    del owner[name]
        return plain

    def hash(self) -> str:
        """The same for two specs that train the same trials."""
        return stable_hash(self.identity())

    def mistakes(self) -> list[str]:
        """Every rule broken, one line each; empty when the run may start."""
        mistakes = []
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name):
            mistakes.append(
                "a run's name must be 1 to 100 letters, digits, '.', '_' or '-', the first a "
                f"letter or digit; got {self.name!r}. Fix: --name {sanitised(self.name)}"
            )
        mistakes += label_mistakes([(sweep.candidate, sweep.backbone) for sweep in self.sweeps])
        if not self.sweeps:
            mistakes.append(
                "a run needs at least one candidate; got none. Fix: name one, such as vit"
            )
        mistakes += self._unequal() + super().mistakes()
        if self.searches == 2:
            mistakes.append(
                "searches must be 1, or 3 and more: the spread over two says next to nothing of "
                f"the candidates; got {self.searches}. Fix: --searches 3"
            )
        if self.searches > 1 and any(sweep.grid or sweep.warm_start for sweep in self.sweeps):
            mistakes.append(
                "independent searches need draws of their own, which neither a grid nor --from "
                f"gives them; got {self.searches} searches. Fix: --searches 1"
            )
        for sweep in self.sweeps[:1]:
            mistakes += limits.mistakes(self.budget, self.prices, sweep.resources)
        for sweep in self.sweeps:
            mistakes += sweep.mistakes()
        return list(dict.fromkeys(mistakes))

    def _unequal(self) -> list[str]:
        """What keeps candidates from sharing slots or, but in a claim, from being compared."""
        shared = ("resources",) if self.claim else SHARED
        each_sweep = [leaves(sweep.as_dict()) for sweep in self.sweeps]
        mistakes = []
        for path in dict.fromkeys(path for texts in each_sweep for path in texts):
            values = [texts.get(path) for texts in each_sweep]
            if path.partition(".")[0] in shared and len(set(values)) > 1:
                pairs = zip(self.sweeps, values, strict=True)
                got = ", ".join(f"{sweep.candidate} {value}" for sweep, value in pairs)
                mistakes.append(
                    f"candidates of one run must have equal {path}; got {got}. "
                    f"Fix: --set {path}=VALUE for all of them"
                )
        return mistakes


def search_name(candidate: str, search: int) -> str:
    """What one of a candidate's searches is called, ``search`` from 1: ``vit``, ``vit-s2``."""
    return candidate if search == 1 else f"{candidate}-s{search}"


def _seed(*parts: Any) -> int:
    return int(stable_hash(list(parts))[:7], 16)


def searchable(path: str) -> bool:
    """Whether an axis may have a range; the others are the same for all trials of a sweep."""
    return path.startswith(("recipe.", "backbone.")) or path in SEARCHABLE_DATA


def with_axes(spec: HasSections, axes: spaces.Axes) -> HasSections:
    """``spec`` with the fields replaced that paths as ``SECTION.FIELD`` or ``FIELD`` name."""
    for path, value in axes.items():
        section, _, name = path.rpartition(".")
        changed = replace(getattr(spec, section), **{name: value}) if section else value
        spec = replace(spec, **{section or name: changed})
    return spec


def sanitised(text: str) -> str:
    """The nearest valid run name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:100] or "run"
