"""The recipe: every hyperparameter of one fine-tuning. No torch here, so a CLI can read it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

OPTIMIZERS = ("adamw", "sgd", "lion")
FREEZE_MODES = ("full", "head", "head_then_full")
AUGMENT_LEVELS = ("none", "light", "medium", "heavy")
PRECISIONS = ("fp32", "bf16")
OPTIONAL_AXES = ("clip_grad_norm", "ema_decay")
WHOLE_AXES = ("batch_size_per_worker", "accumulation_steps", "head_epochs")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One complete choice of hyperparameters; every field is a searchable axis.

    ``batch_size_per_worker`` counts images per optimizer step and worker, before it is cut
    into ``accumulation_steps`` micro-batches, so the global batch is
    ``batch_size_per_worker * num_workers`` whatever the memory allows.
    """

    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    momentum: float = 0.9
    layer_decay: float = 1.0
    warmup_epochs: float = 1.0
    final_lr_fraction: float = 0.01
    freeze: str = "full"
    head_epochs: int = 1
    batch_size_per_worker: int = 64
    accumulation_steps: int = 1
    clip_grad_norm: float | None = 1.0
    ema_decay: float | None = None
    augment: str = "light"
    flip: bool = True
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    drop_path: float = 0.0
    precision: str = "fp32"
    compile: bool = False
    channels_last: bool = False

    def mistakes(self) -> list[str]:
        """Every rule this recipe breaks, one line each; empty when it is valid."""
        found: list[str] = []

        def one_of(name: str, valid: tuple[str, ...]) -> None:
            value = getattr(self, name)
            if value not in valid:
                found.append(
                    f"recipe.{name} must be one of {', '.join(valid)}; got {value!r}. "
                    f"Fix: --set recipe.{name}={valid[0]}"
                )

        def within(name: str, low: float, high: float, *, open_low: bool = False) -> None:
            value = getattr(self, name)
            if value is None and name in OPTIONAL_AXES:
                return
            good = isinstance(value, int | float) and not isinstance(value, bool)
            if good:
                good = (low < value if open_low else low <= value) and value <= high
            if not good:
                bracket = "(" if open_low else "["
                found.append(
                    f"recipe.{name} must be in {bracket}{low:g}, {high:g}]; got {value!r}. "
                    f"Fix: --set recipe.{name}=VALUE with a VALUE in that range"
                )

        def typed(kind: type, what: str, *names: str) -> None:
            for name in names:
                value = getattr(self, name)
                if type(value) is not kind:
                    found.append(
                        f"recipe.{name} must be {what}; got {value!r}. "
                        f"Fix: --set recipe.{name}={getattr(Recipe(), name)}"
                    )

        typed(int, "a whole number", *WHOLE_AXES)
        typed(bool, "true or false", "flip", "compile", "channels_last")
        if found:
            return found
        one_of("optimizer", OPTIMIZERS)
        one_of("freeze", FREEZE_MODES)
        one_of("augment", AUGMENT_LEVELS)
        one_of("precision", PRECISIONS)
        within("learning_rate", 0, 100, open_low=True)
        within("weight_decay", 0, 10)
        within("momentum", 0, 0.9999)
        within("layer_decay", 0, 1, open_low=True)
        within("warmup_epochs", 0, 1000)
        within("final_lr_fraction", 0, 1)
        within("head_epochs", 0, 100_000)
        within("batch_size_per_worker", 1, 65_536)
        within("accumulation_steps", 1, 4096)
        within("clip_grad_norm", 0, 1e6, open_low=True)
        within("ema_decay", 0, 0.999999)
        within("random_erasing", 0, 1)
        within("mixup", 0, 10)
        within("cutmix", 0, 10)
        within("label_smoothing", 0, 0.9)
        within("drop_path", 0, 0.9)
        if not found and self.batch_size_per_worker % self.accumulation_steps:
            found.append(
                "recipe.accumulation_steps must divide recipe.batch_size_per_worker; got "
                f"{self.accumulation_steps} and {self.batch_size_per_worker}. "
                "Fix: choose a divisor"
            )
        return found

    def as_dict(self) -> dict[str, Any]:
        """Flat, JSON-ready mapping of every axis."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Inverse of :meth:`as_dict`. Raises ``TypeError`` on an unknown axis."""
        return cls(**values)

    @classmethod
    def axes(cls) -> tuple[str, ...]:
        """Names of all axes, in declaration order."""
        return tuple(field.name for field in fields(cls))


def stable_hash(value: Any) -> str:
    """First 16 hex digits of SHA-256 over canonical JSON: the same on every machine."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
