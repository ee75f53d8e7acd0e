"""python -m benchmarks.timm_architectures [--quick]

Which of timm's classifiers can be fine-tuned, by the code that refuses a backbone before a run.

``names``: every pretrained name is built on torch's meta device, which holds no values, and sees
two images of its own side, once for each architecture and side. ``modules``: of every module of
timm that holds architectures the smallest one takes a training step on the CPU, two images of 64
pixels and of its own side, from scratch. A model is ``trained``, or it is ``refused`` with the
reason that a user would read; what raises anything else is one of ``tracebacks``.
About an hour on 2 cores. The result goes to benchmarks/results/timm-architectures.json, a summary
to the last line of stdout.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import timm
import torch

from benchmarks.common import arguments, finish
from trainables.backbones import build
from trainables.backbones.catalogue import own_side
from trainables.config import Assignment, BackboneSpec, Recipe
from trainables.errors import UserError, one_line
from trainables.train.rehearse import require_classifier, take_step

CLASSES = 10
SMALL_SIDE = 64  # pixels that a folder's images are stored at where nothing else is asked for
QUICK_NAMES, QUICK_MODULES = 40, 6


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of ``model`` on images of ``side`` pixels: ``trained`` or ``built``, ``refused``
    or ``traceback``, the latter two with a ``reason``. ``params_m`` is in millions."""

    model: str
    outcome: str
    side: int | None = None
    module: str | None = None
    params_m: float | None = None
    seconds: float | None = None
    reason: str | None = None


def spec_of(model: str, side: int | None = None) -> BackboneSpec:
    """The backbone that ``timm:MODEL --weights none`` is."""
    return BackboneSpec(family="timm", model=model, image_size=side)


def walk(names: Sequence[str]) -> Iterator[Outcome]:
    """Each pretrained name, built on the meta device; each architecture and side is shown images
    the first time that it comes."""
    seen: dict[tuple[str, int], str | None] = {}
    for name in names:
        side = None
        try:
            side = own_side(spec_of(name))
            with torch.device("meta"):
                module = build(
                    spec_of(name, side), num_classes=CLASSES, height=side, width=side, load=False
                ).module
                key = name.partition(".")[0], side
                if key not in seen:
                    seen[key] = _forward(module, side)
            params_m = sum(parameter.numel() for parameter in module.parameters()) / 1e6
            reason = seen[key]
            yield Outcome(
                model=name,
                outcome="refused" if reason else "built",
                side=side,
                params_m=round(params_m, 3),
                reason=reason,
            )
        except UserError as error:
            yield Outcome(model=name, outcome="refused", side=side, reason=one_line(error))
        except Exception as error:  # what must not be: counted, and named
            reason = f"{type(error).__name__}: {one_line(error)[:300]}"
            yield Outcome(model=name, outcome="traceback", side=side, reason=reason)


def _forward(module: torch.nn.Module, side: int) -> str | None:
    """Why the model fails on two images, or gives no (2, classes) logits; ``None`` if it does."""
    try:
        logits = module.train()(torch.empty(2, 3, side, side))
    except Exception as error:  # each model fails in its own way
        return f"{type(error).__name__}: {one_line(error)[:300]}"
    shape = tuple(getattr(logits, "shape", ()))
    return None if shape == (2, CLASSES) else f"its output has the shape {shape}"


def smallest_of_modules(sizes: dict[str, float]) -> dict[str, str]:
    """By module of timm, its architecture of the fewest parameters: of those in ``sizes``, which
    are in millions by architecture, else the first that it lists."""
    smallest = {}
    for module in timm.list_modules():
        models = timm.list_models(module=module)
        if models:
            smallest[module] = min(models, key=lambda name: sizes.get(name, float("inf")))
    return smallest


def step(module: str, model: str, side: int) -> Outcome:
    """One training step of ``model`` from scratch on two images of ``side`` pixels."""
    assignment = Assignment(
        trial_id="step",
        epochs=1,
        recipe=Recipe(batch_size_per_worker=2),
        backbone=spec_of(model, side),
    )
    started = time.monotonic()
    outcome, reason = "trained", None
    try:
        require_classifier(assignment, height=side, width=side, classes=CLASSES)
        take_step(assignment, height=side, width=side, classes=CLASSES)
    except UserError as error:
        outcome, reason = "refused", one_line(error)
    except Exception as error:  # as the rehearsal of a run catches it, and says so in a line
        outcome, reason = "refused", f"{type(error).__name__}: {one_line(error)[:300]}"
    return Outcome(
        module=module,
        model=model,
        outcome=outcome,
        side=side,
        seconds=round(time.monotonic() - started, 2),
        reason=reason,
    )


def main() -> None:
    options = arguments(__doc__, "timm-architectures.json", reads_pictures=False).parse_args()
    torch.set_num_threads(1)
    names = timm.list_pretrained()
    if options.quick:
        names = names[:: len(names) // QUICK_NAMES]
    walked = []
    for each in walk(names):
        walked.append(each)
        if each.reason:
            print(f"{each.model}: {each.outcome}: {each.reason}", flush=True)
    sizes = {row.model.partition(".")[0]: row.params_m for row in walked if row.params_m}
    smallest = smallest_of_modules(sizes)
    if options.quick:
        smallest = dict(sorted(smallest.items(), key=lambda item: sizes.get(item[1], 1e9)))
        smallest = dict(list(smallest.items())[:QUICK_MODULES])
    stepped = []
    for module, model in smallest.items():
        for side in dict.fromkeys((SMALL_SIDE, own_side(spec_of(model)))):
            stepped.append(step(module, model, side))
            print(stepped[-1], flush=True)
    by_module = {row.module: row for row in stepped if row.outcome == "trained"}
    summary = {
        "timm": timm.__version__,
        "names": len(walked),
        "names_built": sum(row.outcome == "built" for row in walked),
        "names_refused": sum(row.outcome == "refused" for row in walked),
        "modules": len(smallest),
        "modules_trained": len(by_module),
        "steps_trained": sum(row.outcome == "trained" for row in stepped),
        "steps_refused": sum(row.outcome == "refused" for row in stepped),
        "tracebacks": sum(row.outcome == "traceback" for row in (*walked, *stepped)),
    }
    failed = [row for row in walked if row.outcome != "built"]
    finish(
        {"steps": [*map(plain, stepped)], "not_built": [*map(plain, failed)]}, options.out, summary
    )


def plain(row: Outcome) -> dict[str, object]:
    """JSON-ready, without what is missing."""
    return {key: value for key, value in asdict(row).items() if value is not None}


if __name__ == "__main__":
    main()
