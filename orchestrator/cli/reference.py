"""docs/reference.md, from the code: ``python -m orchestrator.cli.reference > docs/reference.md``.

Commands and options come from click, the paths of ``--set`` from the fields of the specs, exit
codes and columns from where they are declared. A test compares the file with this.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from types import NoneType
from typing import Any

import click

from orchestrator.cli.main import group
from orchestrator.compare.table_files import COLUMNS
from orchestrator.compare.trial_tables import Columns
from orchestrator.launch.options import OPTIONS, option_name
from orchestrator.spec import named_sweeps
from orchestrator.spec.defaults import default_axes
from orchestrator.spec.overrides import SECTIONS, leaves
from orchestrator.spec.run import SweepSpec, searchable
from orchestrator.spec.spaces import space_for
from trainables.backbones.adaptation import STEMS
from trainables.backbones.families import FAMILIES, SCALES
from trainables.errors import EXIT_CODES
from trainables.spec import NOUNS, Rule

PROGRAM = "orchestrator"
# Of the commands that take --set, those that refuse all but one section of it.
ONLY = {"screen": "data", "data prepare": "data", "data info": "data", "replay": "scheduler"}
# Rules of fields whose owners check them, for lack of a `ruled` of their own.
CHECKED_ELSEWHERE = {"backbone.scale": SCALES, "backbone.stem": STEMS}
# What a sweep chooses by its weights, images and length, beside `default_axes`.
CHOSEN = (
    *("backbone.image_size", "data.short_side"),
    *("scheduler.max_epochs", "scheduler.least_steps", "scheduler.grace_epochs"),
)
PANDAS = {
    "trials": """pd.read_parquet("trials.parquet").query("stage == 'final'")"""
    """.groupby("candidate").test_top1.mean()""",
    "epochs": """pd.read_csv("epochs.csv").query("stage == 'final'")"""
    """.groupby(["candidate", "epoch"]).val_top1.mean()""",
    "predictions": """pd.read_parquet("predictions.parquet").query("label != predicted")"""
    """.value_counts("path").head()""",
}


def reference_text() -> str:
    """The whole file."""
    parts = [
        "# Reference",
        "All commands, all paths of `--set`, exit codes, and the columns of the tables, as the "
        "code has them. Made by `python -m orchestrator.cli.reference`; a test compares.",
        *_commands(),
        *_paths(),
        *_exit_codes(),
        *_tables(),
    ]
    return "\n\n".join(parts) + "\n"


def commands(inside: click.Group = group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command that can be typed, by its words."""
    for name, command in sorted(inside.commands.items()):
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def takers(section: str) -> list[str]:
    """The commands that take ``--set SECTION.NAME``."""
    return [
        name
        for name, command in commands()
        if any("--set" in parameter.opts for parameter in command.params)
        and ONLY.get(name, section) == section
    ]


def _commands() -> Iterator[str]:
    yield "## Commands"
    yield "Every command has `--help`, and `python -m orchestrator` is the same as `orchestrator`."
    for name, command in commands():
        context = click.Context(command, info_name=name)
        usage = " ".join([PROGRAM, name, *command.collect_usage_pieces(context)])
        yield f"### {PROGRAM} {name}"
        yield f"`{usage}`"
        yield inspect.cleandoc(command.help or "").replace("\b\n", "")
        records = [
            parameter.get_help_record(context)
            for parameter in command.params
            if isinstance(parameter, click.Option)
        ]
        if any(records):
            yield "\n".join(f"- `{head}`: {text}" for head, text in filter(None, records))


def _paths() -> Iterator[str]:
    yield "## Paths of --set"
    yield (
        "A value, or where *range* says yes also `[A,B]`, and for numbers `uniform(LOW,HIGH)` and "
        "`log(LOW,HIGH)`, which are searched then. `none` is written for no value. *Searched* is "
        "what a sweep searches by default; *chosen* is what it chooses by candidate, weights, "
        "images and devices, as `orchestrator plan` prints; the value behind it is what a spec has "
        "that says nothing. A path that an option is short for has it in the last column."
    )
    yield "### Of the search"
    yield _table(_rows(SweepSpec, [path for path in leaves() if "." not in path]), takers("trials"))
    for owner in SECTIONS:
        yield f"### {owner.section}"
        yield _prose(owner)
        paths = [path for path in leaves() if path.startswith(f"{owner.section}.")]
        yield _table(_rows(owner, paths), takers(owner.section))


def _rows(owner: Any, paths: list[str]) -> Iterator[tuple[str, ...]]:
    by_name = {one.name: one for one in fields(owner)}
    options = {entry["path"]: name for name, entry in OPTIONS.items() if "path" in entry}
    searched = {path for family in FAMILIES for path in _searched(family)}
    chosen = {*default_axes("vit", "tiny", "digits"), *CHOSEN}
    for path in paths:
        one = by_name[path.rpartition(".")[2]]
        rule = one.metadata.get("rule") or Rule(choices=CHECKED_ELSEWHERE.get(path, ()))
        default = f"`{_value(_usual(path, one.default))}`"
        if path in searched:
            default = f"searched; {default}"
        elif path in chosen:
            default = f"chosen; {default}"
        option = f"`--{option_name(options[path])}`" if path in options else ""
        may_range = "yes" if searchable(path) else ""
        yield f"`{path}`", _values(rule, leaves()[path]), default, may_range, option


def _searched(family: str) -> set[str]:
    return {path for weights in ("none", "hub") for path in space_for(family, weights=weights)}


def _usual(path: str, default: Any) -> Any:
    """The field's default; of the few that every sweep has otherwise, the sweep's."""
    return (
        named_sweeps.family_sweep("vit").published_first if path == "published_first" else default
    )


def _values(rule: Rule, kinds: tuple[Any, ...]) -> str:
    """Type, choices and range in words."""
    kind = kinds[0]
    text = NOUNS.get(kind, "text")
    if rule.choices:
        text = ", ".join(f"`{choice}`" for choice in rule.choices)
    elif rule.low is not None and rule.high is not None:
        text += f" in {'(' if rule.open_low else '['}{_bound(rule.low)}, {_bound(rule.high)}]"
    elif rule.low is not None:
        text += f", {'above' if rule.open_low else 'at least'} {rule.low:g}"
    unit = f", {rule.unit}" if rule.unit else ""
    return text + unit + (", or `none`" if NoneType in kinds else "")


def _bound(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _value(value: Any) -> str:
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _prose(owner: Any) -> str:
    """A docstring as Markdown."""
    text = re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", inspect.cleandoc(owner.__doc__ or ""))
    return text.replace("``", "`")


def _table(rows: Iterator[tuple[str, ...]], names: list[str]) -> str:
    head = ["| path | value | default | range | option |", "|---|---|---|---|---|"]
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    took = ", ".join(f"`{name}`" for name in names)
    return "\n".join([*head, *lines]) + f"\n\nTaken by {took}."


def _exit_codes() -> Iterator[str]:
    yield "## Exit codes"
    lines = [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()]
    yield "\n".join(["| code | meaning |", "|---|---|", *lines])
    yield "No other code is used."


def _tables() -> Iterator[str]:
    yield "## Tables"
    yield (
        "`orchestrator compare NAME --out trials.parquet --out epochs.csv --out "
        "predictions.parquet`; in Python `bt.load('runs/NAME').trials`, `.epochs` and "
        "`.predictions`. Missing is null. Times are UTC, accuracies "
        "fractions. The descriptions are also in the Parquet file's schema. Whatever else a worker "
        "reports is a column of its own name."
    )
    for name, columns in COLUMNS.items():
        yield f"### {name}"
        yield f"```python\n{PANDAS[name]}\n```"
        yield _columns(columns)


def _columns(columns: Columns) -> str:
    rows = [f"| `{name}` | {column.kind} | {column.text} |" for name, column in columns.items()]
    return "\n".join(["| column | type | what |", "|---|---|---|", *rows])


if __name__ == "__main__":
    print(reference_text(), end="")
