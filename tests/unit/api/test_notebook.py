"""The notebook prints what it shows: its cells executed in order, as a kernel would."""

from __future__ import annotations

import ast
import io
import json
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

import orchestrator as bt
from orchestrator.cli.run import sweep, tournament

EXAMPLES = Path(__file__).parents[3] / "examples"
NOTEBOOK = EXAMPLES / "read-a-run.ipynb"


def executed(notebook: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Outputs of each code cell in nbformat's form: what it printed, and its last value."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    outputs = []
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        tree, value = ast.parse("".join(cell["source"])), None
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        with redirect_stdout(io.StringIO()) as printed:
            exec(compile(tree, "cell", "exec"), scope)
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), "cell", "eval"), scope)
        made: list[dict[str, Any]] = []
        if text := printed.getvalue():
            lines = text.splitlines(keepends=True)
            made.append({"name": "stdout", "output_type": "stream", "text": lines})
        if value is not None:
            data = {"text/plain": [repr(value)]}
            made.append({"data": data, "metadata": {}, "output_type": "execute_result"})
        outputs.append(made)
    return outputs


def test_the_notebook_prints_what_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    shown = [
        [{k: v for k, v in output.items() if k != "execution_count"} for output in cell["outputs"]]
        for cell in cells
    ]
    assert sum(map(len, shown)) == len(cells) > 5
    monkeypatch.chdir(EXAMPLES)
    assert executed(notebook) == shown


def test_the_runs_that_it_would_start_are_valid() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    text = "".join(line for cell in notebook["cells"] for line in cell["source"])
    calls = re.findall(r"bt\.(sweep|tournament)\((.*), (bt\.RunOptions\(.*\))\)", text)
    assert [name for name, _, _ in calls] == ["sweep", "tournament"]
    for name, target, options in calls:
        words = ast.literal_eval(target)
        words = [words] if isinstance(words, str) else words
        command = {"sweep": sweep, "tournament": tournament}[name]
        arguments = [*eval(options, {"bt": bt}).arguments(), "--", *words]
        assert command.make_context(name, arguments).params["target"]
