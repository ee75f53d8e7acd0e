"""Latency and throughput of inference, as a median with its spread, on a named device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from trainables.versions import processor

WARM_UP = 2


def timed(
    run: Callable[[], object], *, device: torch.device, n: int, budget_s: float = float("inf")
) -> list[float]:
    """Seconds of ``n`` calls of ``run``, after warm-up; fewer, but 3 at least, beyond ``budget_s``.

    An accelerator is waited for before and after each call.
    """
    for _ in range(WARM_UP):
        run()
    seconds: list[float] = []
    while len(seconds) < n and (len(seconds) < 3 or sum(seconds) < budget_s):
        _wait(device)
        started = time.perf_counter()
        run()
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return seconds


def summary(seconds: list[float], images: int) -> dict[str, float | int]:
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


def device_name(device: torch.device) -> str:
    """The accelerator's or the processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor()


def conditions(device: torch.device, *, bf16: bool) -> dict[str, Any]:
    """What a timing depends on beside the model: ``device``, CPU ``threads``, ``precision``."""
    found: dict[str, Any] = {
        "device": device_name(device),
        "precision": "bf16" if bf16 else "fp32",
    }
    if device.type == "cpu":
        found["threads"] = torch.get_num_threads()
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
