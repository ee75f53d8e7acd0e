"""What is refused before an image is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.launch.options import RunOptions, spec_of
from orchestrator.launch.validation import validate
from orchestrator.spec.named_sweeps import family_sweep
from trainables.errors import UserError


def test_validation_of_several_runs_tells_the_mistakes_of_all(tmp_path: Path) -> None:
    options = RunOptions(storage=str(tmp_path / "runs"), trials=2)
    specs = [spec_of([family], options) for family in ("vit", "resnet")]
    broken = [family_sweep("vit", dataset="no/such"), family_sweep("resnet", scale="huge")]
    with pytest.raises(UserError) as refused:
        validate(*(replace(s, sweeps=(b,)) for s, b in zip(specs, broken, strict=True)))
    assert refused.value.exit_code == 2
    assert any("no/such" in line for line in refused.value.mistakes)
    assert any("tiny, small, base" in line for line in refused.value.mistakes)
