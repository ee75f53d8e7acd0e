"""Weights that a user has, a file or a folder -> tensors under the model's own names.

Other tools keep a model inside a larger one and among what else a training needs: its names have a
prefix, its state dict is an entry of another. What is the model's is found by its names. Importing
this loads neither torch nor timm.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainables.backbones.adaptation import Member
from trainables.backbones.families import weights_config
from trainables.backbones.hub import HUB_FILES
from trainables.errors import UserError, one_line
from trainables.storage.pointers import why_absent

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt")
DEEPEST = 3  # entries within entries that a state dict may be in
FIX = "Fix: save model.state_dict() of a timm model as .safetensors"

StateDict = dict[str, "Tensor"]


def weights_file(path: str) -> Path:
    """The one weights file that ``path`` (file or folder) means; raises ``UserError``."""
    place = Path(path).expanduser()
    if place.is_dir():
        place = _file_in(place, path)
    elif not place.is_file():
        reason = "does not exist"
        if place.is_symlink():
            reason = f"is {why_absent(place)}"
        raise UserError(f"--weights {path} {reason}. Fix: correct the path, or hub|none")
    elif place.suffix not in SUFFIXES:
        raise UserError(
            f"--weights must be a file ending in {', '.join(SUFFIXES)} or a folder; got {path}. "
            "Fix: save a timm state dict as .safetensors"
        )
    if absent := why_absent(place):
        raise UserError(f"--weights {path}: {place.name} is {absent}. Fix: fetch it, or hub|none")
    return place


def _file_in(folder: Path, path: str) -> Path:
    named = [folder / name for name in HUB_FILES if (folder / name).is_file()]
    if named:
        return named[0]
    files = sorted(
        file
        for file in folder.iterdir()
        if file.suffix in SUFFIXES and not file.name.startswith(".") and not file.is_dir()
    )
    if not files:
        raise UserError(
            f"--weights {path} is a folder without weights; expected one of "
            f"{', '.join(HUB_FILES)}. Fix: name the file, or --weights hub|none"
        )
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:5])
        raise UserError(
            f"--weights must mean one file; the folder {path} has {len(files)}: "
            f"{names}{' …' if len(files) > 5 else ''}. Fix: name one, --weights {files[-1]}"
        )
    return files[0]


def read_weights(
    path: str, member: Member, wanted: Mapping[str, Tensor], heads: Collection[str]
) -> StateDict:
    """The tensors in ``path`` under the names of ``wanted``, of the shapes stored (of any
    geometry); those below ``heads`` may be missing.

    Pickled files are read with ``weights_only``. Where all of the model's names are there behind
    one prefix it is left out, which is logged. Raises ``UserError`` when the file holds no state
    dict, or the model more than once, when values are not finite or not floating-point numbers, and
    when a folder in timm's format says that it holds another architecture.
    """
    from timm.models import load_state_dict

    file, expected = weights_file(path), member.model.partition(".")[0]
    architecture = weights_config(path).get("architecture", expected)
    if architecture != expected:
        raise UserError(
            f"--weights {path} holds {architecture}; this backbone is {member.model}. "
            "Fix: choose the family and scale of these weights, or other weights"
        )
    try:
        stored: Any = load_state_dict(str(file))
    except Exception as error:  # each format fails in its own way; the line is the same
        raise UserError(
            f"--weights {path} is not a readable state dict ({one_line(error)[:200]}). {FIX}"
        ) from error
    body = [name for name in wanted if not name.startswith(tuple(f"{h}." for h in heads))]
    state = _chosen(path, dict(_state_dicts(stored)), body)
    _require_usable(path, state, wanted)
    return state


def _state_dicts(stored: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, StateDict]]:
    """Every dict of tensors within ``stored``, by the path of its keys."""
    if not isinstance(stored, dict) or depth > DEEPEST:
        return
    tensors = {
        str(key): value for key, value in stored.items() if hasattr(value, "is_floating_point")
    }
    if tensors:
        yield place, tensors
    for key, value in stored.items():
        yield from _state_dicts(value, f"{place}{key}/", depth + 1)


def _chosen(path: str, found: Mapping[str, StateDict], body: Collection[str]) -> StateDict:
    """The state dict, without its prefix, that has most of the names in ``body``."""
    if not found:
        raise UserError(f"--weights {path} holds no state dict of tensors. {FIX}")
    covered = {
        (place, prefix): count
        for place, state in found.items()
        for prefix, count in _prefixes(state, body).items()
    }
    most = max(covered.values(), default=0)
    best = [one for one, count in covered.items() if count == most]
    plain = next((one for one in best if not one[1]), None)
    if most < len(body) / 2 or (plain and len({place for place, _ in best}) == 1):
        # It is what it is: whether it fits is for whoever loads it to say.
        return found[plain[0]] if plain else next(iter(found.values()))
    if len(best) > 1:
        names = ", ".join(repr(f"{place}{prefix}") for place, prefix in best[:5])
        raise UserError(
            f"--weights {path} holds the model {len(best)} times, behind {names}. "
            "Fix: save the one that is meant, under the model's own names"
        )
    [(place, prefix)] = best
    state = {k.removeprefix(prefix): v for k, v in found[place].items() if k.startswith(prefix)}
    if prefix:
        dropped = len(found[place]) - len(state)
        rest = f"; {dropped} tensors without it are not used" if dropped else ""
        log.info(f"--weights {path}: the prefix {prefix!r} of its names is left out{rest}")
    return state


def _prefixes(state: StateDict, body: Collection[str]) -> Counter[str]:
    """How many names of ``body`` are in ``state`` behind each prefix, none included."""
    wanted = set(body)
    counts: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in wanted:
                counts[".".join([*parts[:start], ""]) if start else ""] += 1
    return counts


def _require_usable(path: str, state: StateDict, wanted: Mapping[str, Tensor]) -> None:
    for name, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UserError(
                f"weights must be finite; {name} in --weights {path} holds NaN or infinity. "
                "Fix: take a checkpoint from before the training diverged"
            )
        if name in wanted and wanted[name].is_floating_point() and not value.is_floating_point():
            raise UserError(
                f"weights must be floating-point numbers; {name} in --weights {path} is "
                f"{value.dtype}. Fix: save the model before it is quantised"
            )
