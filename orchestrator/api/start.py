"""Runs started from Python, carried out by the very command that a terminal would run.

The command runs in a process of its own, so a notebook's kernel loads neither torch nor Ray, and
validation, locks, exit codes and resuming are the command's. What it says on stderr is shown here.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from orchestrator import process
from orchestrator.api.runs import Run, load
from orchestrator.launch.options import RunOptions, asked
from orchestrator.ledger.events import FILE_NAME
from orchestrator.spec.run import RunSpec, SweepSpec
from trainables.errors import EXIT_CODES, UserError
from trainables.storage.object_storage import is_remote

Target = str | SweepSpec
DEFAULTS = RunOptions()
REFUSED = (2, 3)  # exit codes of a command that started nothing
MISTAKE = "error: "  # what a line of the command's stderr begins with that says one


def sweep(candidate: Target, options: RunOptions = DEFAULTS) -> Run:
    """``orchestrator sweep``: search one candidate's recipes; returns when it has ended.

    ``candidate`` is what is typed (``"vit"``, ``"timm:resnet18=none"``, ``"my.py:sweep"``), or a
    ``SweepSpec``. A run that has begun under the same name goes on. One that was stopped, by
    ``orchestrator stop`` or its budget, or whose trials failed, is returned: see its ``status``.

    Raises ``UserError`` with the command's mistakes and its exit code where nothing was started;
    ``KeyboardInterrupt`` once the run has stopped, resumable.
    """
    return _carry_out("sweep", [candidate], options)


def tournament(candidates: Sequence[Target], options: RunOptions = DEFAULTS) -> Run:
    """``orchestrator tournament``: several candidates on equal budgets, then the finals.

    As :func:`sweep`, which says what a candidate is and what is raised.
    """
    return _carry_out("tournament", candidates, options)


def _carry_out(command: str, candidates: Sequence[Target], options: RunOptions) -> Run:
    with TemporaryDirectory(prefix="orchestrator-") as folder:
        targets = [
            candidate if isinstance(candidate, str) else _written(candidate, Path(folder, str(i)))
            for i, candidate in enumerate(candidates)
        ]
        spec, _ = asked(command, targets, **vars(options))
        arguments = [*replace(options, name=spec.name).arguments(), "--", *targets]
        code, mistakes = _follow([command, *arguments])
    if code in REFUSED or not _has_begun(spec):
        rule = f"a run ends with one of {', '.join(map(str, EXIT_CODES))}; got {code}"
        unsaid = f"{rule}. Fix: orchestrator doctor"
        raise UserError(*(mistakes or [unsaid]), exit_code=code)
    return load(
        f"{spec.storage.rstrip('/')}/{spec.name}" if is_remote(spec.storage) else spec.folder
    )


def _written(sweep: SweepSpec, folder: Path) -> str:
    """A file that the command reads ``sweep`` from."""
    folder.mkdir()
    path = folder / f"{sweep.candidate}.json"
    path.write_text(json.dumps(sweep.as_dict()), encoding="utf-8")
    return str(path)


def _has_begun(spec: RunSpec) -> bool:
    return (spec.folder / FILE_NAME).is_file()


def _follow(arguments: Sequence[str]) -> tuple[int, list[str]]:
    """The command's exit code, and the mistakes that it named. An interrupt is handed on, and
    raised again when the command has ended."""
    mistakes: list[str] = []
    interrupted = False
    child = subprocess.Popen(
        process.python_module("orchestrator", *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # the comparison, which the run that is returned has
        stderr=subprocess.PIPE,
        env=process.module_environment(),
        start_new_session=True,  # a notebook's interrupt goes to its whole process group
        text=True,
        encoding="utf-8",
        errors="backslashreplace",
    )
    assert child.stderr is not None
    while True:
        try:
            for line in child.stderr:
                print(line, end="", file=sys.stderr, flush=True)
                if line.startswith(MISTAKE):
                    mistakes.append(line.removeprefix(MISTAKE).rstrip("\n"))
            code = child.wait()
            break
        except KeyboardInterrupt:
            interrupted = True
            child.send_signal(signal.SIGINT)
    child.stderr.close()
    if interrupted:
        raise KeyboardInterrupt
    return code, mistakes
