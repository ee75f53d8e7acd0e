"""From a claim to the run that tests it: arms and seeds laid out as a grid of trials, and what
each of them will cost by its own backbone and length."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.claims.claim import (
    DEFAULT_VAL_SHARE,
    LARGEST_VAL_SHARE,
    SEEDED,
    Arm,
    Claim,
    Preset,
    Setting,
)
from orchestrator.claims.experiments import claim_named
from orchestrator.launch import forecast
from orchestrator.launch.continuing import continued
from orchestrator.launch.options import RunOptions
from orchestrator.launch.validation import validate
from orchestrator.ray_cluster.capacity import slots_of
from orchestrator.spec import defaults, limits, named_sweeps, overrides, spaces
from orchestrator.spec.limits import SchedulerSpec
from orchestrator.spec.run import RunSpec, SweepSpec, dataset_name, sanitised, with_axes
from trainables.backbones import describe
from trainables.config import SHIFT_IMAGES, DatasetFacts, DataSpec, stable_hash
from trainables.data.sources import known_images
from trainables.errors import UserError, collected, raise_if_any
from trainables.spec import Spec

DEFAULT_DATASET, DEFAULT_SCALE = "digits", "tiny"
OWN_OPTIONS = ("workers", "gpus_per_worker", "cpus_per_worker")  # the claim lays out the others
LAID_OUT = ("trials", "metric", "scheduler.max_epochs", "scheduler.kind", "scheduler.sampler",
            "scheduler.audit", "data.source", "data.split_seed", *SEEDED,
            "backbone.scale", "backbone.weights")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ClaimOptions(RunOptions):
    """What ``claims run`` is asked for; ``seeds`` and ``max_epochs`` replace the preset's."""

    preset: str = "smoke"
    seeds: int | None = None


def run_spec(claim: Claim, options: ClaimOptions, facts: DatasetFacts) -> RunSpec:
    """The run that tests ``claim``; the same command typed again is the same run. Raises
    ``UserError`` with all that is wrong with it."""
    preset = _preset(claim, options)
    bases = _bases(claim, preset, options, facts)
    _require_enough(claim, bases[0].data, facts)
    backbones = {base.family: base.backbone for base in bases}
    backbone = backbones.get("vit", bases[0].backbone)
    stored = {"height": facts.height, "width": facts.width}
    setting = Setting(
        preset=preset,
        side=describe(replace(backbone, image_size=None, patch=None), **stored).image_size,
        patch=describe(backbone, **stored).patch or 1,
        weights=backbone.weights,
    )
    arms = claim.arms(setting)
    _refuse_laid_out(claim, arms, options.set)
    # The same for all arms, so that seed by seed they share all that a seed draws.
    seeds = [
        int(stable_hash([options.seed or 0, "claim", index])[:7], 16)
        for index in range(preset.seeds)
    ]
    sweeps = tuple(
        _sweep(base, [arm for arm in arms if arm.family == base.family], seeds) for base in bases
    )
    if not any("backbone.image_size" in arm.levels for arm in arms):
        sweeps = defaults.with_stored_side(sweeps)
    dataset, scale = dataset_name(bases[0].data.source), backbone.scale
    name = sanitised("-".join(("claim", claim.name, dataset, scale, options.preset)))
    return replace(options.run(name, sweeps), claim=_declaration(claim, preset, options))


def _declaration(claim: Claim, preset: Preset, options: ClaimOptions) -> dict[str, Any]:
    """The claim's, with ``departures``: what the command line changed in the declared design; and
    ``options``: those that make this run another one than the preset's, for whoever repeats it."""
    # How a run is carried out is no part of its design.
    design_sets = [text for text in options.set if not text.startswith("resources.")]
    given = {"--seeds": options.seeds, "--max-epochs": options.max_epochs, "--seed": options.seed}
    own = [[option, str(value)] for option, value in given.items() if value is not None]
    declared = claim.presets[options.preset]
    departures = [
        f"{name} {getattr(preset, name)} instead of {getattr(declared, name)}"
        for name in ("seeds", "epochs")
        if getattr(preset, name) != getattr(declared, name)
    ]
    return {
        **claim.declaration(),
        "preset": options.preset,
        "options": own + [["--set", text] for text in design_sets],
        "departures": departures + design_sets,
    }


def specs_of(
    names: Sequence[str], options: ClaimOptions, *, as_job: bool = False
) -> tuple[list[RunSpec], Mapping[str, float] | None]:
    """The runs of the claims of these names, validated all together before the first of them
    starts, and what :func:`validate` returned. Raises ``UserError`` with all that is wrong."""
    if options.name and len(names) > 1:
        raise UserError(
            f"--name is for one claim; got {len(names)} claims. Fix: leave it out, or name one"
        )
    chosen = [claim_named(name) for name in dict.fromkeys(names)]
    facts = facts_of(options)
    specs: list[RunSpec] = []
    mistakes: list[str] = []
    for claim in chosen:
        with collected(mistakes):
            spec = run_spec(claim, options, facts)
            specs.append(continued(spec, options.texts(OWN_OPTIONS)))
    if mistakes:
        with collected(mistakes):
            validate(*specs, as_job=as_job)
        raise_if_any(mistakes)
    return specs, validate(*specs, as_job=as_job, starting=not as_job)


def facts_of(options: ClaimOptions) -> DatasetFacts:
    """Of the data set without a limit; it is read into the image store where they are unknown."""
    source = options.dataset or DEFAULT_DATASET
    recorded = known_images(DataSpec(source=source))
    if recorded is not None:
        return recorded
    changes = [text for text in options.set if text.startswith("data.")]
    return forecast.read_dataset(source, changes).info


def _preset(claim: Claim, options: ClaimOptions) -> Preset:
    preset = claim.presets[options.preset]
    seeds = preset.seeds if options.seeds is None else options.seeds
    epochs = preset.epochs if options.max_epochs is None else options.max_epochs
    raise_if_any(
        f"--{option} must be at least {low}, {why}; got {value}. Fix: --{option} {low}"
        for option, value, low, why in (
            ("seeds", seeds, 2, "for an interval"),
            ("max-epochs", epochs, 1, "to train at all"),
        )
        if value < low
    )
    return replace(preset, seeds=seeds, epochs=epochs)


def _require_enough(claim: Claim, data: DataSpec, facts: DatasetFacts) -> None:
    """Raise ``UserError`` where the smallest arm would see too few images of each class."""
    train = min(facts.counts["train"], data.train_limit or facts.counts["train"])
    train = round(data.fraction * train)
    smallest = round(claim.fewest_share * train)
    needed = claim.fewest_images_per_class * len(facts.class_names)
    if smallest < needed:
        share = f"{100 * claim.fewest_share:g} % of {train} training images"
        raise UserError(
            f"{claim.name} needs {claim.fewest_images_per_class} images of each of "
            f"{len(facts.class_names)} classes in its smallest arm, {needed} in all; {share} are "
            f"{smallest}: it can give no verdict here. Fix: a larger --dataset, or a larger "
            "--set data.train_limit"
        )


def _bases(
    claim: Claim, preset: Preset, options: ClaimOptions, facts: DatasetFacts
) -> tuple[SweepSpec, ...]:
    """A sweep a family with everything that its arms share."""
    source, scale = options.dataset or DEFAULT_DATASET, options.scale or DEFAULT_SCALE
    usual = defaults.default_axes("vit", scale, source)
    weights = options.weights or usual["backbone.weights"]
    share = preset.val_images / (facts.counts["val"] / DEFAULT_VAL_SHARE)
    bases = []
    for family in claim.families:
        plain = named_sweeps.family_sweep(family, dataset=source, scale=scale, weights=weights)
        recipe = claim.shared_recipe(plain.recipe)
        recipe = replace(recipe, batch_size_per_worker=preset.batch_size)
        data = replace(
            plain.data,
            train_limit=preset.train_images,
            val_fraction=float(f"{min(share, LARGEST_VAL_SHARE):.4g}"),
        )
        scheduler = SchedulerSpec(kind="none")
        bases.append(replace(plain, recipe=recipe, data=data, scheduler=scheduler,
                             space={}, published_first=False))  # fmt: skip
    changed = overrides.apply_sets(bases, options.texts(OWN_OPTIONS))
    ranges = [path for sweep in changed for path in sweep.space]
    if ranges:
        raise UserError(
            f"a claim lays out its own levels, so --set takes one value; got a range for "
            f"{', '.join(dict.fromkeys(ranges))}. Fix: --set {ranges[0]}=VALUE"
        )
    return changed


def _refuse_laid_out(claim: Claim, arms: Sequence[Arm], texts: Sequence[str]) -> None:
    laid_out = {*LAID_OUT, *(path for arm in arms for path in arm.levels)}
    paths = {text.partition("=")[0].strip() for text in texts}
    bare = {path.removeprefix(f"{family}.") for path in paths for family in claim.families}
    if conflicts := sorted(laid_out & bare):
        raise UserError(
            f"{claim.name} lays out {', '.join(conflicts)} itself, --set cannot change it. "
            "Fix: leave it out; --dataset, --scale, --weights, --preset, --seeds, --seed and "
            "--max-epochs change the design"
        )


def _sweep(base: SweepSpec, arms: Sequence[Arm], seeds: Sequence[int]) -> SweepSpec:
    """One family's arms, seed after seed, so that a run cut short has whole seeds."""
    # Each seed has training and validation images of its own: on shared ones all seeds would err
    # together, and the spread over seeds would not show it.
    rows = [
        {**arm.levels, **dict.fromkeys(SEEDED, seed), "epochs": arm.epochs}
        | ({"shift_offsets_px": list(arm.shift_offsets_px)} if arm.shift_offsets_px else {})
        for seed in seeds
        for arm in arms
    ]
    return replace(
        base,
        data=replace(base.data, val_seed=seeds[0]),
        space={
            path: spaces.Choice(tuple(dict.fromkeys(arm.levels[path] for arm in arms)))
            for path in arms[0].levels
        },
        scheduler=replace(base.scheduler, max_epochs=max(arm.epochs for arm in arms)),
        trials=len(rows),
        grid=tuple(rows),
    )


# As many forward passes as trainables.evaluate.probes takes: each shift moves along two axes.
SHIFT_WAYS = 2


@dataclass(frozen=True, kw_only=True)
class ArmPrice(Spec):
    """Arms of one family that cost the same: ``trials`` of them over all seeds."""

    family: str
    levels: Mapping[str, Any]
    epochs: int
    trials: int
    basis: str | None
    slot_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class ClaimPlan(Spec):
    """The plan of a claim's run, JSON by :meth:`as_dict`; what is not known is ``None``.

    ``train_images``: of the arms, ascending. ``clip_grad_norm``: by family, ``None`` without
    clipping.
    """

    claim: str
    statement: str
    run: str
    hash: str
    spec_hash: str
    preset: str
    departures: Sequence[str]
    train_images: Sequence[int]
    train_images_available: int
    clip_grad_norm: Mapping[str, float | None]
    trials: int
    epochs: int
    device: str
    slots: int | None
    basis: str | None
    device_hours: float | None = None
    wall_hours: float | None = None
    usd: float | None = None
    arms: tuple[ArmPrice, ...]


def price(spec: RunSpec, options: ClaimOptions, *, totals: Mapping[str, float] | None) -> ClaimPlan:
    """The plan of a claim's run. ``totals`` is what the machine holds, where that is known."""
    arms = tuple(arm for sweep in spec.sweeps for arm in _arm_prices(spec, sweep, options))
    trials = sum(arm.trials for arm in arms)
    resources = spec.sweeps[0].resources
    slots = None if totals is None else slots_of(spec, trials, totals)
    claim = spec.claim or {}
    available = min(facts.counts["train"] for facts in forecast.images_of(spec).values())
    plan = ClaimPlan(
        claim=claim["name"],
        run=spec.name,
        spec_hash=spec.hash(),
        **{key: claim[key] for key in ("statement", "hash", "preset", "departures")},
        train_images=_train_images(spec, available),
        train_images_available=available,
        clip_grad_norm={sweep.family: sweep.recipe.clip_grad_norm for sweep in spec.sweeps},
        trials=trials,
        epochs=sum(arm.trials * arm.epochs for arm in arms),
        device=limits.device(resources),
        slots=slots,
        basis=" and ".join(sorted({arm.basis for arm in arms if arm.basis})) or None,
        arms=arms,
    )
    priced = [arm.slot_seconds for arm in arms if arm.slot_seconds is not None]
    if len(priced) < len(arms):
        return plan
    seconds, cold_start_s = sum(priced), forecast.COLD_START_S
    return replace(
        plan,
        device_hours=limits.device_hours(seconds * resources.num_workers, resources),
        wall_hours=(seconds / slots + cold_start_s) / limits.HOUR_S if slots else None,
        usd=limits.usd(seconds * resources.num_workers, resources, spec.prices),
    )


def _train_images(spec: RunSpec, available: int) -> list[int]:
    """How many training images arms see of as many as ``available``, ascending."""
    sizes = set()
    for sweep in spec.sweeps:
        limit = min(available, sweep.data.train_limit or available)
        shares = {row.get("data.fraction", sweep.data.fraction) for row in sweep.grid}
        sizes |= {max(1, round(share * limit)) for share in shares}
    return sorted(sizes)


def _arm_prices(spec: RunSpec, sweep: SweepSpec, options: ClaimOptions) -> Iterator[ArmPrice]:
    """By backbone, share of the data and length; a learning rate costs nothing."""
    costly = ("data.fraction", "epochs", "shift_offsets_px")
    rows = Counter(
        json.dumps({k: v for k, v in row.items() if k.startswith("backbone.") or k in costly})
        for row in sweep.grid
    )
    for row, trials in rows.items():
        levels = json.loads(row)
        epochs, offsets = levels.pop("epochs"), levels.pop("shift_offsets_px", ())
        scheduler = replace(sweep.scheduler, max_epochs=epochs)
        arm = replace(
            with_axes(sweep, levels), grid=(), space={}, trials=trials, scheduler=scheduler
        )
        alone, family = replace(spec, sweeps=(arm,), claim=None), sweep.family
        images, measure = forecast.images_of(alone), options.measure is not False
        costs = forecast.costs_of(alone, images, measure=measure, tflops=options.tflops)
        cost, seconds = costs[family], None
        if cost is not None:
            train, val = forecast.images_per_epoch(arm, images[family].counts)
            passes = forecast.STEP_PASSES * train + val
            probes = SHIFT_IMAGES * (1 + SHIFT_WAYS * len(offsets)) if offsets else 0
            epoch_s = cost.epoch_seconds * (passes + probes) / passes
            seconds = trials * (epochs * epoch_s + cost.setup_seconds)
        yield ArmPrice(
            family=family,
            levels=levels,
            epochs=epochs,
            trials=trials,
            basis=cost.basis if cost else None,
            slot_seconds=seconds,
        )


def price_lines(plan: ClaimPlan) -> list[str]:
    """A claim's plan for a terminal."""
    departures = "".join(f", {departure}" for departure in plan.departures)
    lines = [
        f"claim     {plan.claim}: {plan.statement}",
        f"run       {plan.run}, rule {plan.hash}, preset {plan.preset}{departures}",
        f"trials    {plan.trials} on {plan.slots or 'as many as fit'} slots, "
        f"{plan.epochs} epochs in all",
        f"data      {_drawn(plan)}",
        f"clipping  {_clipping(plan)}",
        f"forecast  {_hours(plan)}",
    ]
    for arm in plan.arms:
        levels = ", ".join(
            f"{path.partition('.')[2]} {value}"
            for path, value in arm.levels.items()
            if value is not None
        )
        seconds = arm.slot_seconds
        cost = "unknown" if seconds is None else f"{seconds / 60:.1f} slot minutes"
        name = f"{arm.family:<8}{f' ({levels})' if levels else ''}"
        lines.append(f"  {name} {arm.trials} trials of {arm.epochs} epochs: {cost}")
    return lines


def _drawn(plan: ClaimPlan) -> str:
    available, sizes = plan.train_images_available, list(plan.train_images)
    everything = f"all {available:,} training images in every seed: there is nothing to draw"
    if sizes == [available]:
        return f"{everything}, so no verdict covers which images were collected"
    texts = ", ".join(f"{size:,}" for size in sizes if size < available)
    if available in sizes:
        return f"{everything}; the {texts} of smaller arms are drawn for each seed"
    return f"{texts} of {available:,} training images, drawn for each seed, shared by its arms"


def _clipping(plan: ClaimPlan) -> str:
    norms = plan.clip_grad_norm
    texts = {f: "off" if norm is None else f"at norm {norm:g}" for f, norm in norms.items()}
    if len(set(texts.values())) == 1:
        return f"gradients {next(iter(texts.values()))}, in all arms alike"
    return f"gradients {', '.join(f'{family} {text}' for family, text in texts.items())}: unequal"


def _hours(plan: ClaimPlan) -> str:
    if plan.device_hours is None:
        return "unknown: a backbone's size is known only once it is built; --measure tells"
    parts = [f"{plan.device_hours:.2f} {plan.device} hours"]
    if plan.wall_hours is not None:
        parts.append(f"about {60 * plan.wall_hours:.0f} minutes here")
    if plan.usd is not None:
        parts.append(f"{plan.usd:.2f} USD")
    return f"{', '.join(parts)} ({plan.basis})"
