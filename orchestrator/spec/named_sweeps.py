"""What ``orchestrator sweep TARGET`` starts from: families, named sweeps, a user's own file.

A named sweep is a function that returns a complete ``SweepSpec``; a user's file does the same
with ``path/to/file.py:function``. ``--set`` and the options change the result afterwards.
"""

from __future__ import annotations

import difflib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from orchestrator.spec import spaces
from orchestrator.spec.limits import SchedulerSpec
from orchestrator.spec.run import SweepSpec
from trainables.backbones.families import FAMILIES
from trainables.config import BackboneSpec, DataSpec, Recipe
from trainables.data.sources import KNOWN_DATASETS
from trainables.errors import UserError


def default_weights(family: str, scale: str) -> str:
    """``none`` at tiny scale, where a laptop trains from scratch in minutes; else ``hub``."""
    facts = FAMILIES.get(family)
    return "none" if scale in (facts.scratch_scales if facts else ("tiny",)) else "hub"


def default_flip(source: str) -> bool:
    """Mirroring is off where a mirrored image is another sign (digits)."""
    dataset = KNOWN_DATASETS.get(source)
    return dataset is None or dataset.mirror_safe


def default_batch_size(source: str) -> int:
    """Images a step and worker."""
    dataset = KNOWN_DATASETS.get(source)
    return 64 if dataset is None else dataset.batch_size_per_worker


def default_space(sweep: SweepSpec) -> dict[str, spaces.Domain]:
    """The family's space for this sweep's weights, optimizer and length."""
    return spaces.space_for(
        sweep.family,
        weights=sweep.backbone.weights,
        optimizer=sweep.recipe.optimizer,
        max_epochs=sweep.scheduler.max_epochs,
    )


def family_sweep(
    family: str,
    *,
    model: str | None = None,
    dataset: str = "digits",
    scale: str = "tiny",
    weights: str | None = None,
    trials: int = 8,
    max_epochs: int = 9,
    seed: int = 0,
) -> SweepSpec:
    """One family over its default space. ``model`` is timm's name for the family ``timm``.

    Eight trials of at most nine epochs on digits take about two minutes on two cores.
    """
    sweep = SweepSpec(
        backbone=BackboneSpec(
            family=family,
            model=model,
            scale=scale,
            weights=default_weights(family, scale) if weights is None else weights,
        ),
        data=DataSpec(source=dataset),
        recipe=Recipe(
            flip=default_flip(dataset), batch_size_per_worker=default_batch_size(dataset)
        ),
        space={},
        scheduler=SchedulerSpec(max_epochs=max_epochs),
        trials=trials,
        seed=seed,
    )
    return replace(sweep, space=default_space(sweep))


def smoke() -> SweepSpec:
    """The smallest sweep that goes through every part: two trials of two epochs on digits."""
    sweep = family_sweep("vit", trials=2, max_epochs=2)
    return replace(sweep, data=replace(sweep.data, train_limit=256))


def vit_patches() -> SweepSpec:
    """ViT with the patch side searched too: smaller patches cost more per epoch."""
    sweep = family_sweep("vit", trials=16)
    patch = spaces.Choice((4, 8), "64 or 16 tokens of a 32-pixel image")
    return replace(sweep, space={**sweep.space, "backbone.patch": patch})


def resnet_sgd() -> SweepSpec:
    """ResNet as most papers train it: SGD with momentum, its own learning rates."""
    sweep = family_sweep("resnet")
    sweep = replace(sweep, recipe=replace(sweep.recipe, optimizer="sgd"))
    return replace(sweep, space=default_space(sweep))


NAMED: dict[str, Callable[[], SweepSpec]] = {
    "smoke": smoke,
    "vit-patches": vit_patches,
    "resnet-sgd": resnet_sgd,
}


def resolve(target: str) -> SweepSpec:
    """The sweep that TARGET names. Raises ``UserError`` with the near names when none does."""
    if target.startswith("timm:"):
        model = target.removeprefix("timm:")
        if not model:
            raise UserError("timm: needs a model's name; got none. Fix: timm:resnet18")
        return family_sweep("timm", model=model)
    if ".py:" in target or target.endswith(".py"):
        return _from_file(target)
    if target in NAMED:
        return NAMED[target]()
    families = [family for family in FAMILIES if family != "timm"]
    if target in families:
        return family_sweep(target)
    near = nearest(target, [*families, *NAMED])
    raise UserError(
        f"unknown target {target!r}; valid: {', '.join(families)}, {', '.join(NAMED)}, "
        f"timm:MODEL, path/to/file.py:function. Fix: did you mean {' or '.join(near)}?"
    )


def nearest(name: str, valid: list[str]) -> list[str]:
    """Up to three of ``valid`` that look like ``name``; the first one when none does."""
    return difflib.get_close_matches(name, valid, n=3, cutoff=0.5) or valid[:1]


def _from_file(target: str) -> SweepSpec:
    path_text, _, name = target.rpartition(":")
    if not path_text or not name.isidentifier():
        raise UserError(
            f"a sweep in a file is named path/to/file.py:function; got {target!r}. "
            f"Fix: {target.removesuffix(':')}:my_sweep"
        )
    path = Path(path_text).expanduser()
    if not path.is_file():
        raise UserError(f"no such file {path_text!r} for target {target!r}. Fix: correct the path")
    module_spec = importlib.util.spec_from_file_location(f"_sweep_{path.stem}", path.resolve())
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # dataclasses of the file look themselves up here
    try:
        module_spec.loader.exec_module(module)
        function = getattr(module, name, None)
        sweep = function() if callable(function) else None
    except UserError:
        raise
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(line.filename).name} line {line.lineno}"
        what = str(error).partition("\n")[0]
        raise UserError(
            f"{target} raised {type(error).__name__} at {where}: {what}. Fix: correct the file"
        ) from error
    if not callable(function):
        functions = [key for key, value in vars(module).items() if callable(value)]
        near = nearest(name, functions) if functions else ["def " + name]
        raise UserError(f"{path_text} has no function {name!r}. Fix: use {' or '.join(near)}")
    if not isinstance(sweep, SweepSpec):
        raise UserError(
            f"{target} must return a SweepSpec; got {type(sweep).__name__}. "
            "Fix: return orchestrator.spec.named_sweeps.family_sweep(...)"
        )
    return sweep
