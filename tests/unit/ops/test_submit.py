"""``orchestrator submit`` finds mistakes here, and goes no further than a head that is there."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from orchestrator.cli.main import main


@pytest.mark.parametrize(
    ("command", "code", "expected"),
    [
        ("sweep vit", 2, "got --storage runs. Fix: --storage /"),
        ("-- sweep vti --storage /s", 2, "did you mean vit"),
        ("-- sweep vit --storage /s --trial 3", 2, "--trials"),
        ("-- sweep vit --storage /s --dataset digit", 2, "did you mean digits"),
        ("-- sweep vit --storage /s --dataset pictures", 2, "got --dataset pictures"),
        ("-- sweep vit --storage /s --weights w.pt", 2, "got --weights w.pt"),
        ("-- sweep vit --storage /s --set data.folder=px", 2, "got --set data.folder=px"),
        ("-- sweep vit --storage /s --tracking-uri sqlite:///m.db", 2, "sqlite:////"),
        ("-- sweep vit --storage /s --tracking-uri m.db", 2, "a tracking URI must"),
        ("-- sweep vit --storage /s --set backbone.patch=5", 2, "backbone.patch"),
        ("-- sweep vit --storage /s --dry-run", 2, "without `submit`"),
        ("-- tournament vit vit --storage /s", 2, "vit twice"),
        ("-- claims run no-such --storage /s", 2, "no-such"),
        ("-- claims", 2, "a whole command"),
        ("-- status", 2, "a job is one of sweep, tournament, screen, demo, claims run"),
        ("-- screen small", 2, "got --storage runs. Fix: --storage /"),
        ("-- screen smal --storage /s", 2, "a pool is one of"),
        ("-- screen timm:resnet18=w.pt --storage /s", 2, "got --weights w.pt"),
        ("-- screen resnet --storage /s --dataset pictures", 2, "got --dataset pictures"),
        ("-- screen resnet --storage /s --top 0", 2, "--top 1"),
        ("-- tournament --storage /s", 2, "needs at least one candidate"),
        ("--working-dir no/such -- demo", 2, "no/such"),
        ("--job-id a/b -- demo --storage /s", 2, "--job-id a-b"),
        ("--address 10.0.0.1:6379 -- demo --storage /s", 2, "Fix: --address http://"),
        ("--address http://127.0.0.1:9 -- demo --storage s3://b/r", 2, "must answer at"),
        ("--address http://127.0.0.1:9 -- sweep vit --storage /s --dataset /d", 2, "must answer"),
        ("--address http://127.0.0.1:9 -- screen resnet --storage /s --dataset /d", 2, "must ans"),
    ],
)
def test_a_mistake_is_found_before_anything_is_submitted(
    command: str,
    code: int,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "pictures" / "train" / "cat").mkdir(parents=True)
    (tmp_path / "pictures" / "train" / "cat" / "a.png").touch()
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")
    with pytest.raises(SystemExit) as ended:
        main(["submit", *shlex.split(command)])
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == code
    assert any(expected in line for line in lines), lines
    assert all(line.startswith("error: ") for line in lines), lines
