"""python -m benchmarks.timm_architectures [--part steps|names] [--quick]

Which of timm's classifiers can be fine-tuned, by the code that refuses a backbone before a run.

``steps``: of every module of timm that holds architectures a small one takes a training step on the
CPU, from scratch, two images of 64 pixels, and where it does not take them of its own side.
``names``: every pretrained name is built on torch's meta device, which holds no values, and sees
two images of its own side, once for each architecture and side. A model is ``trained`` or ``built``
or it is ``refused`` with the reason that a user would read; what raises anything else is one of
``tracebacks``. A part that is not run stays in the result as it was.
Minutes for the steps, half an hour for the names. The result goes to
benchmarks/results/timm-architectures.json, a summary to the last line of stdout.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import timm
import torch

from benchmarks.common import arguments, finish
from trainables.backbones import build
from trainables.backbones.catalogue import own_side
from trainables.config import Assignment, BackboneSpec, Recipe
from trainables.errors import UserError, one_line
from trainables.train.rehearse import take_step, try_shapes

CLASSES = 10
SMALL_SIDE = 64  # pixels that a folder's images are stored at where nothing else is asked for
QUICK_NAMES, QUICK_MODULES = 40, 6


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of ``model`` on images of ``side`` pixels: ``trained`` or ``built``, ``refused``
    or ``traceback``, the latter two with a ``reason``, or ``unshown``: built, but the meta device
    cannot run it."""

    model: str
    outcome: str
    side: int | None = None
    module: str | None = None
    seconds: float | None = None
    reason: str | None = None


def spec_of(model: str, side: int | None = None) -> BackboneSpec:
    """The backbone that ``timm:MODEL --weights none`` is."""
    return BackboneSpec(family="timm", model=model, image_size=side)


def walk(models: Sequence[str]) -> Iterator[Outcome]:
    """Each pretrained name, built on the meta device; of names with one architecture and side the
    first that takes its images stands for the others."""
    seen: dict[tuple[str, int], str] = {}
    for name in models:
        side, started = None, time.monotonic()
        outcome, reason = "built", None
        try:
            side = own_side(spec_of(name))
            size = {"height": side, "width": side}
            key = name.partition(".")[0], side
            if key in seen:
                outcome = seen[key]
                with torch.device("meta"):
                    build(spec_of(name, side), num_classes=CLASSES, load=False, **size)
            elif not try_shapes(two_images(name, side), classes=CLASSES, **size):
                outcome = "unshown"
            seen[key] = outcome
        except UserError as error:
            outcome, reason = "refused", one_line(error)
        except Exception as error:  # what must not be: counted, and named
            outcome, reason = "traceback", f"{type(error).__name__}: {one_line(error)[:300]}"
        seconds = round(time.monotonic() - started, 2)
        yield Outcome(model=name, outcome=outcome, side=side, seconds=seconds, reason=reason)


def two_images(model: str, side: int) -> Assignment:
    """The assignment of one step of ``model`` from scratch on two images of ``side`` pixels."""
    return Assignment(
        trial_id="step",
        epochs=1,
        recipe=Recipe(batch_size_per_worker=2),
        backbone=spec_of(model, side),
    )


# What small models are called, the smallest first; timm lists the others by their numbers.
SMALL_WORDS = (
    "test", "atto", "femto", "pico", "nano", "zepto", "xxs", "xxt", "micro", "mini", "tiny", "_xs",
    "_s0", "b0", "small", "_xt", "_t", "_s",
)  # fmt: skip


def small_of_modules() -> dict[str, str]:
    """By module of timm, an architecture that is small by its name."""
    chosen = {}
    for module in timm.list_modules():
        models = timm.list_models(module=module)
        if models:
            by_word = (name for word in SMALL_WORDS for name in models if word in name)
            chosen[module] = next(by_word, models[0])
    return chosen


def step(module: str, model: str, side: int) -> Outcome:
    """One training step of ``model`` from scratch on two images of ``side`` pixels."""
    assignment = two_images(model, side)
    started = time.monotonic()
    outcome, reason = "trained", None
    try:
        try_shapes(assignment, height=side, width=side, classes=CLASSES)
        take_step(assignment, height=side, width=side, classes=CLASSES)
    except UserError as error:
        outcome, reason = "refused", one_line(error)
    except Exception as error:  # as the rehearsal of a run catches it, and says so in a line
        outcome, reason = "refused", f"{type(error).__name__}: {one_line(error)[:300]}"
    # What a rehearsal does not catch, a crash or a hang, ends this program: the table shows none.
    return Outcome(
        module=module,
        model=model,
        outcome=outcome,
        side=side,
        seconds=round(time.monotonic() - started, 2),
        reason=reason,
    )


def steps(quick: bool) -> dict[str, Any]:
    """One step of each module, or of a few."""
    modules = list(small_of_modules().items())
    rows = []
    for module, model in modules[:QUICK_MODULES] if quick else modules:
        for side in dict.fromkeys((SMALL_SIDE, own_side(spec_of(model)))):
            rows.append(step(module, model, side))
            print(rows[-1], flush=True)
            if rows[-1].outcome == "trained":
                break
    last = {row.module: row for row in rows}
    return {
        "modules": len(last),
        "modules_trained": sum(row.outcome == "trained" for row in last.values()),
        "modules_trained_at_64_px": sum(
            row.outcome == "trained" and row.side == SMALL_SIDE for row in last.values()
        ),
        "modules_refused": sum(row.outcome == "refused" for row in last.values()),
        "refusals_slowest_s": max((r.seconds or 0 for r in rows if r.reason), default=None),
        "steps_tracebacks": sum(row.outcome == "traceback" for row in rows),
        "steps": [plain(row) for row in rows],
    }


def names(quick: bool) -> dict[str, Any]:
    """Each pretrained name, or a few of them."""
    every = timm.list_pretrained()
    rows = []
    for row in walk(every[:: len(every) // QUICK_NAMES] if quick else every):
        rows.append(row)
        if row.reason:
            print(f"{row.model}: {row.outcome}: {row.reason}", flush=True)
    return {
        "names": len(rows),
        "names_built": sum(row.outcome == "built" for row in rows),
        "names_unshown": sum(row.outcome == "unshown" for row in rows),
        "names_slowest_s": max((row.seconds or 0 for row in rows), default=None),
        "names_refused": sum(row.outcome == "refused" for row in rows),
        "names_tracebacks": sum(row.outcome == "traceback" for row in rows),
        "not_built": [plain(row) for row in rows if row.outcome != "built"],
    }


PARTS = {"steps": steps, "names": names}


def main() -> None:
    parser = arguments(__doc__, "timm-architectures.json", reads_pictures=False)
    parser.add_argument("--part", choices=PARTS, help="one of the two alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    if options.out.is_file():
        before = json.loads(options.out.read_text(encoding="utf-8"))
        result = before if before.get("timm") == timm.__version__ else {}
    for name in [options.part] if options.part else PARTS:
        result |= PARTS[name](options.quick)
    result |= {
        "timm": timm.__version__,
        "tracebacks": result.get("steps_tracebacks", 0) + result.get("names_tracebacks", 0),
    }
    for key in ("schema", "date", "environment"):
        result.pop(key, None)
    tables = {key: result.pop(key) for key in ("steps", "not_built") if key in result}
    finish(tables, options.out, result)


def plain(row: Outcome) -> dict[str, object]:
    """JSON-ready, without what is missing."""
    return {key: value for key, value in asdict(row).items() if value is not None}


if __name__ == "__main__":
    main()
