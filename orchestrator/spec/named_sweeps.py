"""From a command's words to a sweep: ``orchestrator sweep CANDIDATE``.

A candidate is ``[LABEL=]TARGET[=WEIGHTS]``. TARGET is a family, a named sweep, timm:MODEL, or a
function in a user's own file that returns a complete ``SweepSpec``: ``path/to/file.py:function``,
or one as JSON: ``path/to/sweep.json``. ``overrides.py`` sets its leaves, ``defaults.py`` says what
follows.
"""

from __future__ import annotations

import json
import runpy
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.spec.candidates import TIMM, Candidate, default_label
from orchestrator.spec.defaults import (
    UNSIZED_EPOCHS,
    default_axes,
    default_grace,
    default_image_size,
    default_space,
    default_steps,
    with_changes,
)
from orchestrator.spec.limits import SchedulerSpec
from orchestrator.spec.run import SweepSpec, with_axes
from orchestrator.spec.spaces import Axes, Choice
from orchestrator.wording import nearest
from trainables.backbones.families import FAMILIES
from trainables.config import BackboneSpec, DataSpec
from trainables.errors import UserError, one_line

TRIALS = 8  # of a search
FILES = ("path/to/file.py:function", "path/to/sweep.json")  # targets too, as they are typed


@dataclass(frozen=True, kw_only=True)
class NamedSweep:
    """``what`` it is, as a sentence, and what it ``changes`` of its family's own sweep, by path. It
    has so many trials, of ``max_epochs``; ``None`` is as :func:`family_sweep` has it."""

    what: str
    family: str
    trials: int = TRIALS
    max_epochs: int | None = None
    changes: Axes


NAMED = {
    "smoke": NamedSweep(
        what="The smallest sweep that goes through every part: two trials of two epochs on digits.",
        family="vit",
        trials=2,
        max_epochs=2,
        changes={"data.train_limit": 256},
    ),
    "vit-patches": NamedSweep(
        what="ViT with the patch side searched too: smaller patches cost more per epoch.",
        family="vit",
        trials=16,
        changes={"backbone.patch": Choice((4, 8), "64 or 16 tokens of a 32-pixel image")},
    ),
    "resnet-sgd": NamedSweep(
        what="ResNet as most papers train it: SGD with momentum, its own learning rates.",
        family="resnet",
        changes={"recipe.optimizer": "sgd"},
    ),
}


def family_sweep(
    family: str,
    *,
    model: str | None = None,
    dataset: str = "digits",
    scale: str = "tiny",
    weights: str | None = None,
    trials: int = TRIALS,
    max_epochs: int | None = None,
    seed: int = 0,
) -> SweepSpec:
    """One family over its default space. ``model`` is timm's name for the family ``timm``, and the
    candidate's label then. Raises ``UserError`` as :func:`default_image_size` does.

    Without ``max_epochs`` the length follows the size of train as the run begins. Eight trials of
    at most nine epochs on digits take about two minutes on two cores.
    """
    sweep = SweepSpec(
        backbone=BackboneSpec(family=family, model=model, scale=scale),
        data=DataSpec(source=dataset),
        scheduler=SchedulerSpec(max_epochs=max_epochs or UNSIZED_EPOCHS),
        trials=trials,
        seed=seed,
        published_first=True,
        label=default_label(model) if model else None,
    )
    sweep = with_axes(sweep, default_axes(family, scale, dataset))
    if weights is not None:
        sweep = with_axes(sweep, {"backbone.weights": weights})
    sweep = with_axes(sweep, {"backbone.image_size": default_image_size(sweep)})
    sweep = replace(sweep, space=default_space(sweep))
    least_steps = None if max_epochs else default_steps(sweep)
    axes = {"scheduler.least_steps": least_steps, "scheduler.grace_epochs": default_grace([sweep])}
    return with_axes(sweep, axes)


def resolve(text: str) -> SweepSpec:
    """The sweep that a candidate names, but for weights of its own, which :func:`own_weights` says.
    Raises ``UserError`` with the near names when its target names none."""
    candidate = Candidate.parse(text)
    sweep = _of_target(candidate.target)
    if candidate.label is None:
        return sweep
    return replace(sweep, label=None if candidate.label == sweep.family else candidate.label)


def own_weights(texts: Iterable[str], sweeps: Iterable[SweepSpec]) -> list[str]:
    """The weights that candidates name themselves, as ``LABEL.PATH=VALUE``; ``sweeps`` are those
    that the ``texts`` resolve to."""
    named = [(Candidate.parse(text), sweep) for text, sweep in zip(texts, sweeps, strict=True)]
    return [
        f"{sweep.candidate}.backbone.weights={candidate.weights}"
        for candidate, sweep in named
        if candidate.weights is not None
    ]


def _of_target(target: str) -> SweepSpec:
    if target.startswith(TIMM):
        model = target.removeprefix(TIMM)
        if not model:
            raise UserError("timm: needs a model's name; got none. Fix: timm:resnet18")
        return family_sweep("timm", model=model)
    if ".py:" in target or target.endswith(".py"):
        return _from_file(target)
    if target.endswith(".json"):
        return _from_json(target)
    if target in NAMED:
        named = NAMED[target]
        plain = family_sweep(named.family, trials=named.trials, max_epochs=named.max_epochs)
        return with_changes(plain, named.changes)
    if target in FAMILIES and target != "timm":
        return family_sweep(target)
    raise unknown_target(target)


def unknown_target(target: str, *, sweeps: bool = True) -> UserError:
    """The mistake of a target that names no backbone and, where ``sweeps`` may be named, none."""
    families = [family for family in FAMILIES if family != "timm"]
    names = [*families, *(NAMED if sweeps else ())]
    valid = ", ".join([*names, "timm:MODEL", *(FILES if sweeps else ())])
    near = " or ".join(nearest(target, names))
    return UserError(f"unknown target {target!r}; valid: {valid}. Fix: did you mean {near}?")


def _from_json(target: str) -> SweepSpec:
    """A sweep that was written as JSON. Its ranges have lost their reasons."""
    try:
        plain = json.loads(Path(target).expanduser().read_text("utf-8"))
        return SweepSpec.from_dict(plain)
    except OSError as error:
        raise UserError(
            f"no file that can be read is at {target!r} ({error.strerror}). Fix: correct the path"
        ) from None
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(
            f"a target FILE.json holds what SweepSpec.as_dict() returns; {target} does not "
            f"({type(error).__name__}: {one_line(error)[:200]}). "
            "Fix: json.dumps(sweep.as_dict())"
        ) from error


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
