"""What a ledger's records say of a screen: what is known of each candidate, and when it landed.

A screen has no trials: its header says what was asked for, ``measured`` and ``screened`` records
what workers found, ``sized`` how many training images all candidates are judged by, and ``closed``
which candidates were left out and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainables.config import Screened

STAGE = "screen"  # of a screen's records


@dataclass
class ScreenState:
    """By label: how fast candidates are (``measured``), what came of them (``screened``), and the
    unix second ``landed_at`` of that. ``train_images`` are what probes learn from, ``None`` until
    that is decided; ``left_out`` are reasons, ``None`` where no end is on record that says them."""

    measured: dict[str, Screened] = field(default_factory=dict)
    screened: dict[str, Screened] = field(default_factory=dict)
    landed_at: dict[str, float] = field(default_factory=dict)
    train_images: int | None = None
    left_out: Mapping[str, str] | None = None

    def failed(self) -> dict[str, str]:
        """The reason of each candidate that failed."""
        return {label: one.reason for label, one in self.screened.items() if one.reason is not None}

    def apply(self, event: str, record: Mapping[str, Any]) -> None:
        """Fold one record in. Raises as ``Screened.from_dict`` does for another record than
        this project writes."""
        match event:
            case "sized":
                self.train_images = record["train_images"]
            case "measured":
                self.measured[record["candidate"]] = Screened.from_dict(record["detail"])
            case "screened":
                label = record["candidate"]
                self.screened[label] = Screened.from_dict(record["detail"])
                self.landed_at[label] = record["time"]
            case "closed":
                self.left_out = record.get("detail", {}).get("left_out")
