"""Command lines out of documents and files, parsed by the CLI that they call; nothing is run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields

import click

from orchestrator.cli.main import group
from orchestrator.launch.options import RunOptions, spec_of

RUNS = ("sweep", "tournament", "plan")
OPTIONS = {field.name for field in fields(RunOptions)}
_ENDS = {"&&", "||", ";", "|", "&"}


def shell_blocks(markdown: str) -> str:
    """The lines of all ``sh`` blocks."""
    return "\n".join(re.findall(r"```sh\n(.*?)```", markdown, re.DOTALL))


def calls(shell: str, program: str) -> Iterator[list[str]]:
    """Arguments of each call of ``program``, without what surrounds it in its line."""
    for line in shell.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if program == "orchestrator" and words[:3] == ["python", "-m", "orchestrator"]:
            words = words[2:]
        while words and re.fullmatch(r"[A-Za-z_]+=.*", words[0]):
            words = words[1:]
        if words and words[0] == program:
            ends = [index for index, word in enumerate(words) if word in _ENDS]
            yield words[1 : min(ends, default=len(words))]


def parse(root: click.Command, arguments: Sequence[str]) -> click.Context:
    """The context of the command that is called. Raises ``click.ClickException``."""
    inside, rest, name = root, list(arguments), "root"
    while isinstance(inside, click.Group):
        above = click.Context(inside, info_name=name)
        resolved, found, rest = inside.resolve_command(above, rest)
        assert found is not None
        inside, name = found, str(resolved)
    return inside.make_context(name, rest)


def check_ours(arguments: Sequence[str]) -> None:
    """The call is one that our CLI carries out: options, targets, ``--set`` and their values."""
    context = parse(group, arguments)
    if context.info_name == "submit":
        return check_ours(context.params["command"])
    if context.params.get("from_screen"):
        return None  # its candidates are in a storage that is not here
    if context.info_name in RUNS:
        params = {name: value for name, value in context.params.items() if name in OPTIONS}
        targets = context.params.get("target") or context.params["family"]
        spec = spec_of([targets] if isinstance(targets, str) else targets, RunOptions(**params))
        assert spec.mistakes() == []
    return None
