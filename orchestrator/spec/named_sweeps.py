"""What ``orchestrator sweep TARGET`` starts from: families, named sweeps, a user's own file.

A user's file has a function that returns a complete ``SweepSpec``: ``path/to/file.py:function``.
``--set`` and the options change the result afterwards.
"""

from __future__ import annotations

import runpy
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.spec.limits import SchedulerSpec
from orchestrator.spec.overrides import default_axes, default_space, nearest, with_changes
from orchestrator.spec.run import SweepSpec, with_axes
from orchestrator.spec.spaces import Axes, Choice
from trainables.backbones.families import FAMILIES
from trainables.config import BackboneSpec, DataSpec
from trainables.errors import UserError

# What a named sweep is, its family, the options of ``family_sweep``, and what it changes then.
NAMED: dict[str, tuple[str, str, dict[str, Any], Axes]] = {
    "smoke": (
        "The smallest sweep that goes through every part: two trials of two epochs on digits.",
        "vit",
        {"trials": 2, "max_epochs": 2},
        {"data.train_limit": 256},
    ),
    "vit-patches": (
        "ViT with the patch side searched too: smaller patches cost more per epoch.",
        "vit",
        {"trials": 16},
        {"backbone.patch": Choice((4, 8), "64 or 16 tokens of a 32-pixel image")},
    ),
    "resnet-sgd": (
        "ResNet as most papers train it: SGD with momentum, its own learning rates.",
        "resnet",
        {},
        {"recipe.optimizer": "sgd"},
    ),
}


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
        backbone=BackboneSpec(family=family, model=model, scale=scale),
        data=DataSpec(source=dataset),
        scheduler=SchedulerSpec(max_epochs=max_epochs),
        trials=trials,
        seed=seed,
    )
    sweep = with_axes(sweep, default_axes(family, scale, dataset))
    if weights is not None:
        sweep = with_axes(sweep, {"backbone.weights": weights})
    return replace(sweep, space=default_space(sweep))


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
        _, family, options, changes = NAMED[target]
        return with_changes(family_sweep(family, **options), changes)
    families = [family for family in FAMILIES if family != "timm"]
    if target in families:
        return family_sweep(target)
    near = nearest(target, [*families, *NAMED])
    raise UserError(
        f"unknown target {target!r}; valid: {', '.join(families)}, {', '.join(NAMED)}, "
        f"timm:MODEL, path/to/file.py:function. Fix: did you mean {' or '.join(near)}?"
    )


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
    try:
        module = runpy.run_path(str(path.resolve()), run_name=f"_sweep_{path.stem}")
        function = module.get(name)
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
        functions = [key for key, value in module.items() if callable(value)]
        near = nearest(name, functions) if functions else ["def " + name]
        raise UserError(f"{path_text} has no function {name!r}. Fix: use {' or '.join(near)}")
    if not isinstance(sweep, SweepSpec):
        raise UserError(
            f"{target} must return a SweepSpec; got {type(sweep).__name__}. "
            "Fix: return orchestrator.spec.named_sweeps.family_sweep(...)"
        )
    return sweep
