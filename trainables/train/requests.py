"""What the processes beside a run are asked of backbones and answer, without torch, as JSON:
:mod:`trainables.train.rehearse` tries them, :mod:`trainables.train.measure` measures them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from trainables.config import Assignment
from trainables.spec import Spec


@dataclass(frozen=True, kw_only=True)
class Rehearsal(Spec):
    """A backbone to try on images of ``height`` x ``width`` pixels; ``step`` says whether it trains
    on them, or only its shapes are tried."""

    assignment: Assignment
    height: int
    width: int
    classes: int
    step: bool


@dataclass(frozen=True, kw_only=True)
class Rehearsed(Spec):
    """What came of it: an ``error``, or the ``mistake`` of the user that is why, or the reason for
    which it was ``skipped``, or nothing. ``notes`` are what reading a file of weights has to
    say."""

    label: str
    error: str | None = None
    mistake: str | None = None
    skipped: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Measurable(Spec):
    """A backbone to measure on images of ``height`` x ``width`` pixels, of which a full trial
    trains on ``trial_images``."""

    assignment: Assignment
    height: int
    width: int
    classes: int
    trial_images: int


@dataclass(frozen=True, kw_only=True)
class MeasurementRequest(Spec):
    """``device`` is torch's name, ``seconds`` are those of training for each backbone, and
    ``backbones`` is by label."""

    device: str
    threads: int
    seconds: float
    backbones: Mapping[str, Measurable]


@dataclass(frozen=True, kw_only=True)
class StepCosts(Spec):
    """A backbone's costs on one worker. ``train_seconds_per_image`` is the median of ``n`` steps,
    data and augmentation included; ``setup_seconds`` is of a warm process and
    ``first_setup_seconds`` of a cold one (imports), ``gflops_per_image`` of the forward pass;
    ``memory`` is bytes by purpose."""

    train_seconds_per_image: float
    eval_seconds_per_image: float
    n: int
    first_setup_seconds: float
    setup_seconds: float
    checkpoint_seconds: float
    checkpoint_bytes: int
    params_m: float
    gflops_per_image: float
    memory: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CompiledCosts(Spec):
    """``compile_seconds`` in a process that has not compiled this model before, and the steps after
    that."""

    compile_seconds: float
    train_seconds_per_image: float


@dataclass(frozen=True, kw_only=True)
class Measurement(Spec):
    """Of the backbone ``label``: its ``costs``, or the ``error`` for which there are none, and
    those ``compiled``, where that was tried and worked."""

    label: str
    costs: StepCosts | None = None
    compiled: CompiledCosts | None = None
    error: str | None = None
