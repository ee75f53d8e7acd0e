"""A run started from Python on a local Ray is the one that the command line would have started."""

from __future__ import annotations

import pytest

import orchestrator as bt
from orchestrator.spec.named_sweeps import resolve
from tests.integration.conftest import Shell

pytestmark = pytest.mark.ray


def test_a_sweep_from_python_is_done_for_the_command_line_too(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(shell.cwd)
    for name, value in shell.env.items():
        monkeypatch.setenv(name, value)
    run = bt.sweep(resolve("smoke"), bt.RunOptions(name="py"))
    assert run.status == "done"
    assert run.folder.samefile(shell.folder("py"))
    assert set(run.trials["status"].to_pylist()) <= {"finished", "pruned"}
    assert run.trials.num_rows == 2
    assert run.epochs.num_rows == sum(run.trials["epochs"].to_pylist())
    out, err = capfd.readouterr()
    assert out == ""
    assert "2 trials to train" in err

    code, _, err = shell("sweep", "smoke", "--name", "py")
    assert code == 0
    assert "nothing to train" in err
