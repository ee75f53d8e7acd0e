"""What a screen has a NAME for: its candidates, its images, and what is asked of the best ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from orchestrator.spec.run import RunSpec, run_folder, sanitised
from trainables.config import BackboneSpec, DataSpec
from trainables.printable import without_login
from trainables.spec import Spec, ruled

TOP = 5
# Fields of the data that a tournament from a screen may choose for itself.
OWN_DATA = ("train_limit", "fraction", "train_seed", "folder")


def from_screen(*, is_finalist: bool) -> tuple[str, ...]:
    """Paths of a tournament's candidate that its screen says, of one that was screened with those
    of its backbone."""
    data = [f"data.{one.name}" for one in fields(DataSpec) if one.name not in OWN_DATA]
    return (*data, *(f"backbone.{one.name}" for one in fields(BackboneSpec) if is_finalist))


@dataclass(frozen=True, kw_only=True)
class ScreenSpec(Spec, section="screen"):
    """``candidates`` are backbones with their sides, by label. ``minutes`` is for all of them, wall
    time (``None``: as long as it takes, with all training images). ``top`` go on the shortlist, of
    those within ``max_latency_ms`` (one image, on the device that screens) and ``max_params_m``
    (millions, without the classifier); ``audit`` is the share of the others that is drawn to go
    with them. A login in a URL is left out, as from a run's spec."""

    name: str
    candidates: Mapping[str, BackboneSpec] = field(default_factory=dict)
    data: DataSpec = field(default_factory=DataSpec)
    storage: str = "runs"
    tracking_uri: str | None = field(default=None, metadata={"before": None})
    minutes: float | None = ruled(None, 0, 1e6, open_low=True, option="--minutes")
    top: int = ruled(TOP, 1, option="--top")
    max_latency_ms: float | None = ruled(None, 0, 1e9, open_low=True, option="--max-latency-ms")
    max_params_m: float | None = ruled(None, 0, 1e9, open_low=True, option="--max-params-m")
    audit: float = ruled(0.0, 0, 1, option="--audit")

    def __post_init__(self) -> None:
        object.__setattr__(self, "storage", without_login(self.storage))
        if self.tracking_uri is not None:
            object.__setattr__(self, "tracking_uri", without_login(self.tracking_uri))

    @property
    def run(self) -> RunSpec:
        """What it has in common with every run: its name, and where it is kept and shown."""
        return RunSpec(name=self.name, storage=self.storage, tracking_uri=self.tracking_uri)

    @property
    def folder(self) -> Path:
        """Where the screen keeps its ledger and its shortlist."""
        return run_folder(self.storage, self.name)

    def mistakes(self) -> list[str]:
        """Every rule broken, one line each."""
        mistakes = super().mistakes() + self.data.mistakes()
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name):
            mistakes.append(
                "a screen's name must be 1 to 100 letters, digits, '.', '_' or '-', the first a "
                f"letter or digit; got {self.name!r}. Fix: --name {sanitised(self.name)}"
            )
        return mistakes

    def changes(self, before: ScreenSpec) -> list[str]:
        """What makes this another screen than ``before``: other images, or a label that means
        another backbone. Limits may change, and candidates may be added or left out."""
        changes = []
        own, old = self.data.as_dict(operational=False), before.data.as_dict(operational=False)
        changes += [
            f"data.{name}: was {old.get(name)}, asked {own[name]}"
            for name in own
            if own[name] != old.get(name)
        ]
        changes += [
            f"{label} is another backbone"
            for label, backbone in self.candidates.items()
            if before.candidates.get(label, backbone) != backbone
        ]
        return changes
