"""How fast trained models predict: models in turns, with nothing else at work.

How fast a machine is changes from minute to minute, by its clock rate, its temperature and what
else it does, and models that are timed one after the other differ by that. So each round times all
of them, in an order of its own: what changes slowly meets all alike, and none is always the first
(Mytkowicz et al. 2009, "Producing wrong data without doing anything obviously wrong!", section 7).
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trainables.config import Assignment, SpeedReport
from trainables.data.build import prepare
from trainables.errors import one_line
from trainables.evaluate.model import model_of
from trainables.storage import trial_files
from trainables.train.loop import TrainedModel
from trainables.versions import processor

ROUNDS, FEWEST_ROUNDS = 5, 3
CALLS = {1: 10, 256: 2}  # of one turn, by batch size
TURN_S = 1.0  # of one batch size; a turn ends with the call that passes it
MODEL_S = 10.0  # after so much time for each model there are no more rounds than the fewest

Speed = dict[str, Any]  # JSON


def measure_trials(
    assignments: Sequence[Assignment], device: str = "cpu", *, limit_s: float | None = None
) -> list[SpeedReport]:
    """How fast the models in the assignments' checkpoints are, as :func:`measure_speeds` says, in
    turns that the first assignment's seed draws. What keeps one from being measured is in its
    report and keeps no other; they all end within ``limit_s``, but for building the models."""
    began = time.perf_counter()
    models: dict[str, TrainedModel] = {}
    reasons: dict[str, str] = {}
    for assignment in assignments:
        try:
            models[assignment.trial_id] = _load(assignment, device)
        except Exception as error:
            reasons[assignment.trial_id] = f"{type(error).__name__}: {one_line(error)}"
    left_s = math.inf if limit_s is None else limit_s - (time.perf_counter() - began)
    speeds, failed = measure_speeds(models, seed=assignments[0].seed, limit_s=left_s)
    reasons |= failed
    return [
        SpeedReport(trial=name, speed=speeds.get(name, {}), reason=reasons.get(name))
        for name in (assignment.trial_id for assignment in assignments)
    ]


def _load(assignment: Assignment, device: str) -> TrainedModel:
    if assignment.checkpoint is None:
        raise FileNotFoundError(f"no checkpoint of {assignment.trial_id} is left")
    checkpoint, is_stored = assignment.checkpoint, assignment.remote is not None
    if is_stored:
        checkpoint = trial_files.fetch_checkpoint(assignment, trial_files.name_of(checkpoint))
    try:
        store = prepare(assignment.data, remote=assignment.remote)
        return model_of(assignment, checkpoint, store, device)
    finally:
        if is_stored:
            folder = Path(checkpoint).parents[1]
            trial_files.delete_checkpoints_except(folder, ())


@torch.inference_mode()
def measure_speeds(
    models: Mapping[str, TrainedModel], *, seed: int = 0, limit_s: float = math.inf
) -> tuple[dict[str, Speed], dict[str, str]]:
    """How fast each model is, and why others cannot be measured, both by name.

    A speed is JSON-ready: ``device``, ``precision``, on a CPU ``threads``, ``rounds`` and how many
    ``models`` took turns in them, and for each batch size N of ``CALLS`` ``batch_N`` with what
    :func:`summary` says of the calls of all rounds and ``round_ms``, the median of each round.
    ``seed`` draws the order of each round. After ``limit_s`` no turn begins.
    """
    draw, began = random.Random(seed), time.perf_counter()
    rounds: dict[str, list[dict[int, list[float]]]] = defaultdict(list)  # seconds of calls, by size
    failed: dict[str, str] = {}

    def spent_s() -> float:
        return time.perf_counter() - began

    for number in range(ROUNDS):
        if number >= FEWEST_ROUNDS and spent_s() > MODEL_S * len(models):
            break
        for name in draw.sample(sorted(models), len(models)):
            if name in failed or spent_s() > limit_s:
                continue
            try:
                rounds[name].append(_turn(models[name], warm_up=1 + (number == 0)))
            except RuntimeError as error:
                failed[name] = f"{type(error).__name__}: {one_line(error)}"
    for name in models.keys() - failed.keys():
        if len(rounds[name]) < 2:
            failed[name] = "its time was over before its second turn"
    measured = sorted(models.keys() - failed.keys())
    return {
        name: _conditions(models[name])
        | {"rounds": len(rounds[name]), "models": len(models)}
        | {f"batch_{size}": _pooled([turn[size] for turn in rounds[name]], size) for size in CALLS}
        for name in measured
    }, failed


def _conditions(model: TrainedModel) -> Speed:
    """What a timing depends on beside the model."""
    cuda = model.device.type == "cuda"
    conditions: Speed = {
        "device": torch.cuda.get_device_name(model.device) if cuda else processor(),
        "precision": "bf16" if model.bf16 else "fp32",
    }
    return conditions if cuda else conditions | {"threads": torch.get_num_threads()}


def _turn(model: TrainedModel, *, warm_up: int) -> dict[int, list[float]]:
    """Seconds of calls by batch size."""
    side, device = model.transform.image_size, model.device
    seconds: dict[int, list[float]] = {}
    layout = torch.channels_last if model.transform.channels_last else torch.contiguous_format
    for size, calls in CALLS.items():
        batch = torch.randn(size, 3, side, side, device=device).contiguous(memory_format=layout)
        run = partial(model.logits, batch)
        seconds[size] = timed(run, device=device, n=calls, budget_s=TURN_S, warm_up=warm_up)
    return seconds


def timed(
    run: Callable[[], object],
    *,
    device: torch.device,
    n: int,
    budget_s: float = math.inf,
    warm_up: int = 1,
) -> list[float]:
    """Seconds of ``n`` calls of ``run`` after ``warm_up`` others; fewer, but one at least, beyond
    ``budget_s``. An accelerator is waited for before and after each call."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(warm_up):
        run()
    seconds: list[float] = []
    while len(seconds) < n and sum(seconds) < budget_s:
        wait()
        started = time.perf_counter()
        run()
        wait()
        seconds.append(time.perf_counter() - started)
    return seconds


def _pooled(rounds: Sequence[list[float]], images: int) -> Speed:
    medians = [1e3 * statistics.median(seconds) for seconds in rounds]
    return summary([call for seconds in rounds for call in seconds], images) | {"round_ms": medians}


def summary(seconds: Sequence[float], images: int) -> Speed:
    """Median, quartiles and throughput of calls that took ``seconds`` for ``images`` images each.

    ``latency_ms`` with its quartiles ``latency_ms_low`` and ``latency_ms_high``,
    ``images_per_second`` at the median, and ``n`` calls. Needs two calls.
    """
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {
        "latency_ms": 1e3 * middle,
        "latency_ms_low": 1e3 * low,
        "latency_ms_high": 1e3 * high,
        "images_per_second": images / middle,
        "n": len(seconds),
    }
