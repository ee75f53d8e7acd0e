"""Screens as their ledgers tell them, made up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from orchestrator.ledger.events import Ledger
from orchestrator.ledger.header import RunHeader
from orchestrator.spec.run import RunSpec
from orchestrator.spec.screening import ScreenSpec
from trainables.config import BackboneSpec, DatasetFacts, FrozenSpeed, Screened

IMAGES = 400


def screened(
    label: str, right: int, *, latency_ms: float = 10.0, params_m: float = 5.0, shift: int = 0
) -> Screened:
    """``right`` of 400 images, from number ``shift`` on."""
    bits = np.roll(np.arange(IMAGES) < right, shift)
    return Screened(
        label=label,
        speed=FrozenSpeed(
            device="cpu",
            precision="fp32",
            setup_s=1.0,
            latency_ms=latency_ms,
            seconds_per_image=0.01,
            params_m=params_m,
        ),
        linear_top1=right / IMAGES,
        neighbours_top1=right / IMAGES,
        correct=np.packbits(bits).tobytes().hex(),
        val_images=IMAGES,
        train_images=1000,
        images_per_second=50.0,
        seconds=3.0,
    )


def spec(found: Mapping[str, Screened], **changed: object) -> ScreenSpec:
    candidates = {name: BackboneSpec(family="timm", model=name, image_size=64) for name in found}
    return replace(ScreenSpec(name="s", candidates=candidates, top=2), **changed)  # type: ignore[arg-type]


FOUND = {
    "a": screened("a", 390, latency_ms=30),
    "b": screened("b", 380, latency_ms=20),
    "c": screened("c", 378, latency_ms=25, shift=5),
    "d": screened("d", 300, latency_ms=5),
    "e": screened("e", 280, latency_ms=50),
    "f": Screened(label="f", reason="OutOfMemory: no room"),
}


def write(folder: Path, asked: ScreenSpec, *found: Screened, closed: bool = False) -> None:
    """A screen's ledger."""
    header = RunHeader(
        run=asked.name,
        spec=RunSpec(name=asked.name),
        screen=asked,
        datasets={"screen": DatasetFacts(height=8, width=8, content_hash="c")},
    )
    ledger = Ledger(folder / "ledger.jsonl")
    ledger.append("created", detail=header.as_dict())
    ledger.append("sized", train_images=77)
    for one in found:
        ledger.append("screened", candidate=one.label, detail=one.as_dict())
    if closed:
        ledger.append("closed", detail={"left_out": {}})
    ledger.close()
