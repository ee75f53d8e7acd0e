"""From a claim to the run that tests it: arms and seeds laid out as a grid of trials."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.claims.claim import Arm, Claim, Preset, Setting
from orchestrator.spec import limits, named_sweeps, overrides, spaces
from orchestrator.spec.limits import SchedulerSpec
from orchestrator.spec.paths import dataset_name
from orchestrator.spec.run import RunSpec, SweepSpec, sanitised
from trainables.backbones import describe
from trainables.config import DataSpec, stable_hash
from trainables.data.sources import KNOWN_DATASETS
from trainables.errors import UserError

LARGEST_VAL_SHARE = 0.2
DEFAULT_VAL_SHARE = 0.1  # of a source without val, which ``Facts.val_images`` were carved by
# Options that are short for a --set of this path; the claim lays out the others.
OPTION_PATHS = {
    "workers": "resources.num_workers",
    "gpus_per_worker": "resources.gpus_per_worker",
    "cpus_per_worker": "resources.cpus_per_worker",
}
LAID_OUT = ("trials", "seed", "scheduler.max_epochs", "scheduler.kind", "scheduler.sampler",
            "scheduler.audit", "data.source", "data.val_seed", "data.split_seed",
            "backbone.scale", "backbone.weights")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Of a dataset: stored side in pixels, classes, and images of its train and val split as
    they are without a limit."""

    side: int
    classes: int
    train_images: int
    val_images: int


KNOWN = {
    known.name: Facts(
        side=known.side_px,
        classes=known.classes,
        train_images=known.counts(DataSpec())["train"],
        val_images=known.counts(DataSpec())["val"],
    )
    for known in KNOWN_DATASETS.values()
    if known.url
}


def run_spec(claim: Claim, options: Mapping[str, Any], facts: Facts) -> RunSpec:
    """The run that tests ``claim``. Raises ``UserError`` with all that is wrong with it.

    ``options`` are the command line's: ``dataset``, ``scale``, ``weights``, ``preset``, ``seeds``,
    ``max_epochs``, ``seed``, ``name``, ``set`` and where things are kept.
    """
    caps, prices = limits.parse(options.get("budget"), options.get("price") or ())
    preset = _preset(claim, options)
    bases = _bases(claim, preset, options, facts)
    setting = _setting(preset, bases, facts)
    raise_if_too_few(claim, setting, facts)
    arms = claim.arms(setting)
    _refuse_laid_out(claim, arms, options["set"])
    seeds = [_number(options.get("seed") or 0, index) for index in range(preset.seeds)]
    made = tuple(
        _sweep(base, [arm for arm in arms if arm.family == base.family], seeds) for base in bases
    )
    return RunSpec(
        name=options.get("name") or default_name(claim, options),
        sweeps=made,
        storage=options["storage"],
        tracking_uri=options.get("tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI") or None,
        experiment=options.get("experiment"),
        budget=caps,
        prices=prices,
        claim={
            **claim.declaration(),
            "preset": options["preset"],
            "options": _own_options(options),
            "departures": _departures(claim, preset, options),
        },
    )


def default_name(claim: Claim, options: Mapping[str, Any]) -> str:
    """``claim-NAME-DATASET-SCALE-PRESET``: the same command typed again is the same run."""
    dataset = dataset_name(options["dataset"])
    parts = ("claim", claim.name, dataset, options["scale"], options["preset"])
    return sanitised("-".join(parts))


def _preset(claim: Claim, options: Mapping[str, Any]) -> Preset:
    preset = claim.presets[options["preset"]]
    changes = {"seeds": options.get("seeds"), "epochs": options.get("max_epochs")}
    wrong = [
        f"--{option} must be at least {low}, {why}; got {value}. Fix: --{option} {low}"
        for option, value, low, why in (
            ("seeds", changes["seeds"], 2, "for an interval"),
            ("max-epochs", changes["epochs"], 1, "to train at all"),
        )
        if value is not None and value < low
    ]
    if wrong:
        raise UserError(*wrong)
    return replace(preset, **{key: value for key, value in changes.items() if value is not None})


def _own_options(options: Mapping[str, Any]) -> list[list[str]]:
    """The options that make this run another one than the preset's, for whoever repeats it. How
    a run is carried out is none of these."""
    given = {name: options.get(name) for name in ("seeds", "max_epochs", "seed")}
    found = [[f"--{k.replace('_', '-')}", str(v)] for k, v in given.items() if v is not None]
    sets = [text for text in options["set"] if not text.startswith("resources.")]
    return found + [["--set", text] for text in sets]


def _departures(claim: Claim, preset: Preset, options: Mapping[str, Any]) -> list[str]:
    """What the command line changed in the declared design."""
    declared = claim.presets[options["preset"]]
    changed = [
        f"{name} {getattr(preset, name)} instead of {getattr(declared, name)}"
        for name in ("seeds", "epochs")
        if getattr(preset, name) != getattr(declared, name)
    ]
    return [*changed, *(text for text in options["set"] if not text.startswith("resources."))]


def _setting(preset: Preset, bases: Sequence[SweepSpec], facts: Facts) -> Setting:
    backbone, data = bases[0].backbone, bases[0].data
    vit = describe(
        next((one.backbone for one in bases if one.family == "vit"), backbone),
        height=facts.side,
        width=facts.side,
    )
    images = min(facts.train_images, data.train_limit or facts.train_images)
    return Setting(
        preset=preset,
        side=vit.image_size,
        patch=vit.patch or 1,
        train_images=round(data.fraction * images),
        scale=backbone.scale,
        weights=backbone.weights,
    )


def raise_if_too_few(claim: Claim, setting: Setting, facts: Facts) -> None:
    """Raise ``UserError`` where the smallest arm would see too few images of each class."""
    smallest = round(claim.fewest_share * setting.train_images)
    needed = claim.fewest_images_per_class * facts.classes
    if smallest < needed:
        share = f"{100 * claim.fewest_share:g} % of {setting.train_images} training images"
        raise UserError(
            f"{claim.name} needs {claim.fewest_images_per_class} images of each of "
            f"{facts.classes} classes in its smallest arm, {needed} in all; {share} are "
            f"{smallest}: it can give no verdict here. Fix: a larger --dataset, or a larger "
            "--set data.train_limit"
        )


def _bases(
    claim: Claim, preset: Preset, options: Mapping[str, Any], facts: Facts
) -> tuple[SweepSpec, ...]:
    """A sweep a family with everything that its arms share."""
    source, scale = options["dataset"], options["scale"]
    weights = options.get("weights") or named_sweeps.default_weights("vit", scale)
    share = preset.val_images / (facts.val_images / DEFAULT_VAL_SHARE)
    made = []
    for family in claim.families:
        plain = named_sweeps.family_sweep(family, dataset=source, scale=scale, weights=weights)
        recipe = replace(plain.recipe, batch_size_per_worker=preset.batch_size, **claim.recipe)
        data = replace(
            plain.data,
            train_limit=preset.train_images,
            val_fraction=float(f"{min(share, LARGEST_VAL_SHARE):.4g}"),
        )
        scheduler = SchedulerSpec(kind="none")
        made.append(replace(plain, recipe=recipe, data=data, scheduler=scheduler, space={}))
    given = {path: options.get(key) for key, path in OPTION_PATHS.items()}
    texts = [f"{path}={value}" for path, value in given.items() if value is not None]
    changed = overrides.apply_sets(made, [*texts, *options["set"]])
    ranges = [path for sweep in changed for path in sweep.space]
    if ranges:
        raise UserError(
            f"a claim lays out its own levels, so --set takes one value; got a range for "
            f"{', '.join(dict.fromkeys(ranges))}. Fix: --set {ranges[0]}=VALUE"
        )
    return changed


def _refuse_laid_out(claim: Claim, arms: Sequence[Arm], texts: Sequence[str]) -> None:
    laid_out = {*LAID_OUT, *(path for arm in arms for path in arm.levels)}
    asked = [text.partition("=")[0].strip() for text in texts]
    bare = [
        path.partition(".")[2] if path.partition(".")[0] in claim.families else path
        for path in asked
    ]
    wrong = sorted(laid_out & set(bare))
    if wrong:
        raise UserError(
            f"{claim.name} lays out {', '.join(wrong)} itself, --set cannot change it. "
            "Fix: leave it out; --dataset, --scale, --weights, --preset, --seeds, --seed and "
            "--max-epochs change the design"
        )


def _number(seed: int, index: int) -> int:
    """The same for all arms, so that seed by seed they share order, first weights and val."""
    return int(stable_hash([seed, "claim", index])[:7], 16)


def _sweep(base: SweepSpec, arms: Sequence[Arm], seeds: Sequence[int]) -> SweepSpec:
    """One family's arms, seed after seed, so that a run cut short has whole seeds."""
    rows = [_row(arm, seed) for seed in seeds for arm in arms]
    paths = list(arms[0].levels)
    levels = {path: list(dict.fromkeys(arm.levels[path] for arm in arms)) for path in paths}
    return replace(
        base,
        data=replace(base.data, val_seed=seeds[0]),
        space={path: spaces.Choice(tuple(values)) for path, values in levels.items()},
        scheduler=replace(base.scheduler, max_epochs=max(arm.epochs for arm in arms)),
        trials=len(rows),
        grid=tuple(rows),
    )


def _row(arm: Arm, seed: int) -> dict[str, Any]:
    probes = {"shift_offsets_px": list(arm.shift_offsets_px)} if arm.shift_offsets_px else {}
    # Each seed has validation images of its own: on shared ones all seeds would err together.
    return {**arm.levels, "data.val_seed": seed, "seed": seed, "epochs": arm.epochs, **probes}
