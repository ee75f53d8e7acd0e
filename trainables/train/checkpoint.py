"""Exact state in, exact state out: safetensors for tensors, JSON for the rest, nothing pickled."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainables.config import Assignment, BackboneSpec, DataSpec, Recipe
from trainables.errors import UserError
from trainables.spec import values_before
from trainables.storage import digests
from trainables.storage.trial_files import STATE_FILE

SCHEMA = 1
PARTS = (BackboneSpec, Recipe, DataSpec)  # of an assignment, that a checkpoint is of

Tensors = dict[str, Tensor]
State = Mapping[str, Any]  # of ``state.json``, which ``Trial`` writes and reads


def write(folder: Path, tensors: Mapping[str, Tensors], state: State) -> None:
    """Write ``NAME.safetensors`` for each of ``tensors`` and ``state.json`` into ``folder``.

    All is written beside the folder first and then renamed, so a reader sees a complete
    checkpoint or none; one of the same name is replaced. Floats in ``state`` survive exactly.
    Tensors (of any shape) are written dense. Raises ``OSError`` on a full disk.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    temporary.mkdir()
    try:
        for name, values in tensors.items():
            # a copy where memory is shared or strided: safetensors stores plain dense tensors
            dense = {key: value.detach().contiguous() for key, value in values.items()}
            save_file(dense, temporary / f"{name}.safetensors")
        record = digests.sealed({"schema": SCHEMA, **state}, temporary, STATE_FILE)
        text = json.dumps(record, indent=1)
        (temporary / STATE_FILE).write_text(text, encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def identity(assignment: Assignment, dataset_hash: str | None) -> State:
    """What must be the same for a resume to be the same trial; where files lie is not."""
    parts = {
        owner.section: vars(owner)  # with what as_dict() leaves out where it is not used
        for owner in (assignment.backbone, assignment.recipe, assignment.data)
    }
    # where files lie, and which weights a trial began with that has its own by now
    places = ("data.folder", "data.archive", "data.source", "backbone.hub_pins")
    leaves = {f"{part}.{key}": v for part, values in parts.items() for key, v in values.items()}
    return {
        **{path: value for path, value in leaves.items() if path not in places},
        "dataset_hash": dataset_hash,
        "seed": assignment.seed,
    }


def read_state(folder: Path, expected: State | None = None) -> State:
    """The JSON part, of the trial of the ``expected`` :func:`identity` (``None``: of any). Raises
    ``UserError`` where ``folder`` holds no checkpoint of this schema, another trial's, or something
    else than was written."""
    try:
        state = _document((folder / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{folder} holds no readable checkpoint ({error}). Fix: name a folder that has "
            f"{STATE_FILE}, or start without a checkpoint"
        ) from error
    if state.get("schema") != SCHEMA:
        raise UserError(
            f"the checkpoint {folder} has schema {state.get('schema')}; this version reads "
            f"{SCHEMA}. Fix: start without a checkpoint"
        )
    if damage := digests.damage_of(folder, STATE_FILE, only=STATE_FILE):
        raise UserError(_damaged(folder / STATE_FILE, damage))
    state = {key: value for key, value in state.items() if key != digests.KEY}
    expected = expected or {}
    stored = {
        **{f"{owner.section}.{k}": v for owner in PARTS for k, v in values_before(owner).items()},
        **state.get("identity", {}),
    }
    different = [key for key in expected if expected[key] != stored.get(key)]
    if different:
        raise UserError(
            f"the checkpoint {folder} was written with another {', '.join(different)}. "
            "Fix: resume with what wrote it, or start without a checkpoint"
        )
    return state


def read_tensors(folder: Path, name: str) -> Tensors:
    """The tensors (shapes as written) of ``name``, on the CPU; empty when there are none.

    Raises ``UserError`` when the file is damaged.
    """
    file = folder / f"{name}.safetensors"
    if not file.exists():
        return {}
    try:
        tensors: Tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(_damaged(file, str(error))) from error
    if damage := digests.damage_of(folder, STATE_FILE, only=file.name):
        raise UserError(_damaged(file, damage))
    return tensors


def _document(text: str) -> State:
    state: State = json.loads(text)
    if not isinstance(state, dict) or not isinstance(state.get("identity", {}), dict):
        raise ValueError("it is another document")
    return state


def _damaged(file: Path, how: str) -> str:
    return f"{file} is damaged ({how}). Fix: start from an earlier checkpoint, or without one"


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Tensors:
    """Flatten an optimizer's state to ``PARAMETER/KEY`` names; its groups must carry ``names``.

    Each tensor has the shape of its parameter, or () for counts of steps.
    """
    return {
        f"{name}/{key}": value
        for name, parameter in _named(optimizer)
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Inverse of :func:`optimizer_tensors`: each tensor laid out in memory as its parameter is.

    Raises ``KeyError`` for a parameter (of any shape) that the optimizer lacks.
    """
    parameters = dict(_named(optimizer))
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition("/")
        parameter = parameters[name]
        like = value.shape == parameter.shape
        target = torch.empty_like(parameter, dtype=value.dtype) if like else torch.empty_like(value)
        target = target.to(parameter.device)
        optimizer.state[parameter][key] = target.detach().copy_(value)


def _named(optimizer: torch.optim.Optimizer) -> list[tuple[str, torch.nn.Parameter]]:
    return [
        (name, parameter)
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    ]
