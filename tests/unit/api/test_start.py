"""Runs started from Python, as far as that goes without Ray: words, mistakes, interrupts."""

from __future__ import annotations

import io
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import orchestrator as bt
from orchestrator import process
from orchestrator.api import start
from orchestrator.cli.run import tournament
from orchestrator.spec.named_sweeps import family_sweep

ALL = bt.RunOptions(
    name="r", dataset="cifar10", scale="small", weights="none", trials=3, max_epochs=2, seed=5,
    audit=0.25, workers="1..2", gpus_per_worker=0.5, cpus_per_worker=2.5, from_=("a", "-b"),
    searches=3, metric="recall:a b", margin=0.02, final_seeds=2,
    set=("recipe.mixup=0.1", "vit.backbone.patch=8"),
    storage="s3://bucket/with space", tracking_uri="http://127.0.0.1:5000", experiment="-e",
    budget="usd=2", price=("cpu_hour=0.04",), measure=True, tflops=1.5, reopen_test=True,
    pool=("small", "own.txt"), from_screen="s",
)  # fmt: skip


def test_options_are_the_words_of_the_command_line() -> None:
    defaults = bt.RunOptions()
    same = [f.name for f in fields(ALL) if getattr(ALL, f.name) == getattr(defaults, f.name)]
    assert same == []  # a field that comes later is to be in ALL
    for options in (ALL, defaults, bt.RunOptions(measure=False)):
        params = tournament.make_context("tournament", [*options.arguments(), "--", "vit"]).params
        assert params.pop("target") == ("vit",)
        assert params.pop("dry_run") is False
        assert bt.RunOptions(**params) == options
    assert defaults.arguments() == []


def test_a_mistake_is_the_commands_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = str(tmp_path / "runs")
    with pytest.raises(bt.UserError, match="did you mean vit") as raised:
        bt.sweep("vti", bt.RunOptions(set=("recipe.x=1",)))
    assert len(raised.value.mistakes) == 2
    # What only the command finds, in a process of its own, and says on stderr too.
    options = bt.RunOptions(storage=storage, trials=0, dataset=str(tmp_path / "nowhere"))
    with pytest.raises(bt.UserError, match="nowhere") as raised:
        bt.tournament(["vit", family_sweep("resnet")], options)
    assert raised.value.exit_code == 2
    assert any("--trials 1" in line for line in raised.value.mistakes)
    said = capsys.readouterr().err.splitlines()
    assert [f"error: {line}" for line in raised.value.mistakes] == said
    assert list(tmp_path.iterdir()) == []


class InterruptedAt(io.StringIO):
    """Stands for ``sys.stderr``: Ctrl-C arrives while a line that begins with ``text`` is shown."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def write(self, line: str) -> int:
        if line.startswith(self.text):
            self.text = "\0"
            raise KeyboardInterrupt
        return super().write(line)


def test_an_interrupt_ends_the_command_first(monkeypatch: pytest.MonkeyPatch) -> None:
    child = (
        "import signal, sys, time\n"
        "def end(number, frame):\n"
        "    print('stopped cleanly', file=sys.stderr); sys.exit(130)\n"
        "signal.signal(signal.SIGINT, end)\n"
        "print('ready', file=sys.stderr, flush=True)\n"
        "time.sleep(120)\n"
    )
    monkeypatch.setattr(process, "python_module", lambda *_: [sys.executable, "-c", child])
    monkeypatch.setattr(sys, "stderr", shown := InterruptedAt("ready"))
    with pytest.raises(KeyboardInterrupt):
        start._follow(["sweep", "vit"])
    assert shown.getvalue() == "stopped cleanly\n"
